"""Shapes of what the step that samples inside the program reads, of a graph like the paper's."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bench.drawn_graph import LEAST_NODES, RELATIONS, SPAN, meta_of, schema_of
from configs.run import faithful
from star_jax import trees
from star_jax.graph.batches import Budget, PairBatch
from star_jax.graph.engines.drawing import in_step
from star_jax.graph.engines.mesh.engine import MeshArrays, MeshProgram, Request, Seeds
from star_jax.graph.engines.mesh.expand import SeedRows
from star_jax.graph.engines.mesh.features import NodeArrays
from star_jax.graph.engines.mesh.topology import (
    Clock,
    Edges,
    Places,
    local_count,
    type_places,
)
from star_jax.graph.engines.mesh.visibility import Viewers
from star_jax.graph.engines.protocol import Question
from star_jax.graph.features import NodeFeatures
from star_jax.graph.identities import num_rows
from star_jax.graph.model import GraphBatch, GraphModel, LinkTask, init_model
from star_jax.graph.objective import make_loss
from star_jax.graph.samplers.fanouts import FanoutConfig, resolve
from star_jax.graph.samplers.sample import Fanouts
from star_jax.graph.schema import GraphSchema, parse_key
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.parallel.mesh import ROW_AXES, MeshConfig, make_mesh, num_row_shards
from star_jax.pipeline.graph_loader import TRAIN_SPLITS
from star_jax.pipeline.graph_training import graph_rules, make_graph_optimizer
from star_jax.train.state import shapes_of_state
from star_jax.train.step import make_step

TASK = LinkTask("apply", "member", "job")
APPLY = "member__apply__job"
TEXT_TYPES, TEXT_WIDTH = ("member", "job"), 256
COLUMNS, CODES = 11, 1000  # Categorical columns of each of the two, and the codes of each.
NEGATIVES = 1  # A positive's: a group is one sender and two receivers.
UNEVEN = 1.01  # A shard of edges against an even share: hubs are few and spread.
HEADROOM = 1.1
ROOM = 2  # The longest row against the mean of the relation that has the longest ones.

Budgets = dict[str, Budget]


def graph_shapes(
    schema: GraphSchema,
    mesh: Mesh,
    *,
    edges: int,
    removed: bool,
    weighted: bool,
    texts: dict[str, int],
    text_width: int,
) -> MeshArrays:
    """The arrays of `MeshEngine` with int8 texts, as shapes.

    Args:
      schema: Of the graph.
      mesh: The devices.
      edges: Of a shard, reverses included.
      removed: Whether any edge was.
      weighted: Whether edges can be drawn by unequal weights.
      texts: Versions of a shard by node type; types without any have none.
      text_width: Of the vectors.
    """
    shards = num_row_shards(mesh)

    def like(*shape: int, dtype: Any = jnp.int32) -> Any:
        joined = (shards * shape[0], *shape[1:])
        where = NamedSharding(mesh, PartitionSpec(ROW_AXES))
        return jax.ShapeDtypeStruct(joined, dtype, sharding=where)

    bounds = sum(
        place.stride * local_count(schema.nodes[name].count, shards)
        for name, place in type_places(schema, shards)
    )
    nodes = {}
    for name, node in schema.nodes.items():
        room, versions = local_count(node.count, shards), texts.get(name, 1)
        width = text_width if name in texts else 0
        nodes[name] = NodeArrays(
            text_bounds=like(room + 1),
            text_time=like(versions),
            texts=like(versions, width, dtype=jnp.int8),
            text_scale=like(versions, dtype=jnp.float32),
            categorical=like(room, len(node.categorical)),
            dense=like(room, 2 * len(node.dense), dtype=jnp.float32),
            seen=like(room, dtype=jnp.bool_),
        )
    return MeshArrays(
        Edges(
            bounds=like(bounds),
            sender=like(edges),
            time=like(edges),
            removed=like(edges if removed else 0),
            weight=like(edges, dtype=jnp.float32),
            flags=like(edges, dtype=jnp.uint8),
            digits=like(edges if weighted else 0),
            exponent=like(edges if weighted else 0, dtype=jnp.int16),
        ),
        nodes,
    )


def spread_shape(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> Any:
    """Of an array with an entry per device in front."""
    where = NamedSharding(mesh, PartitionSpec(ROW_AXES))
    return jax.ShapeDtypeStruct((num_row_shards(mesh), *shape), dtype, sharding=where)


def request_shape(mesh: Mesh, question: Question) -> Request:
    """What `MeshEngine.prepare` makes, of all devices."""
    size = question.budget.block(question.seed_type, 0)[1]
    groups, pairs = question.num_groups, question.pairs_per_group

    def like(*shape: int, dtype: Any = jnp.int32) -> Any:
        return spread_shape(mesh, shape, dtype)

    flag = like(size, dtype=jnp.bool_)
    return Request(
        seeds=Seeds(SeedRows(like(size), like(size), flag, flag), like(size)),
        viewers=Viewers(like(groups), like(groups, pairs), like(groups, pairs)),
        key=like(2, dtype=jnp.uint32),
        question=question,
    )


def paper_arrays(schema: GraphSchema, share: float, mesh: Mesh) -> MeshArrays:
    """The paper's graph, or a share of it, on a mesh: no edge was removed, one text per node."""
    num_edges = sum(2 * 1e6 * RELATIONS[key] * share for key in RELATIONS)
    shards = num_row_shards(mesh)
    return graph_shapes(
        schema,
        mesh,
        edges=int(UNEVEN * num_edges / shards),
        removed=False,
        weighted=False,
        texts={name: local_count(schema.nodes[name].count, shards) for name in TEXT_TYPES},
        text_width=TEXT_WIDTH,
    )


def paper_schema(share: float) -> GraphSchema:
    """The paper's types and relations, with features."""
    schema = schema_of(tuple(RELATIONS), share, LEAST_NODES)
    columns = {f"column_{i}": CODES for i in range(COLUMNS)}
    nodes = {
        name: dataclasses.replace(node, categorical=columns) if name in TEXT_TYPES else node
        for name, node in schema.nodes.items()
    }
    return dataclasses.replace(schema, nodes=nodes)


def degrees(schema: GraphSchema, share: float) -> dict[str, float]:
    """Edge key, reverses included, to its mean degree."""
    found = {}
    for edge in schema.edges:
        for each in (edge, edge.reverse):
            total = 1e6 * RELATIONS[edge.key] * share
            found[each.key] = total / schema.nodes[each.receiver].count
    return found


def poisson_above(mean: float, most: int) -> np.ndarray:
    """P(X > i) for i below `most`."""
    if mean > 50 + 2 * most:
        return np.ones(most)
    index = np.arange(most)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most)))])
    return 1.0 - np.cumsum(np.exp(index * np.log(mean) - mean - logs))


def fanouts_of(total: tuple[int, ...], schema: GraphSchema, mean: dict[str, float]) -> Fanouts:
    """As `resolve` shares a total out on a graph of such degrees."""
    most = max(total) + 1
    wide = {}
    for key, degree in mean.items():
        above = poisson_above(degree, most)
        wide[key] = int(np.sum(above > 0.01 * (1 - np.exp(-degree))))
    return dict(resolve(FanoutConfig(total=total), meta_of(schema, wide)))


def budget_of(fanouts: Fanouts, mean: dict[str, float], seed_type: str, num_seeds: int) -> Budget:
    """Rows that batches can be expected to need, every seed in a group of its own."""
    num_hops = len(next(iter(fanouts.values())))
    rows: dict[str, list[int]] = defaultdict(lambda: [0] * (num_hops + 1))
    rows[seed_type][0] = num_seeds
    for hop in range(num_hops):
        met: dict[str, float] = defaultdict(float)
        for key, hops in fanouts.items():
            sender, _, receiver = parse_key(key)
            drawn = float(poisson_above(mean[key], hops[hop]).sum()) if hops[hop] else 0.0
            if receiver in rows and rows[receiver][hop] and drawn:
                met[sender] += rows[receiver][hop] * drawn
        for name, number in met.items():
            rows[name][hop + 1] = 8 * int(np.ceil(number * HEADROOM / 8))
    return Budget(
        rows=tuple((name, tuple(sizes)) for name, sizes in sorted(rows.items())),
        fanout=tuple(sorted((key, tuple(hops)) for key, hops in fanouts.items())),
        texts=tuple((name, 0) for name in sorted(rows)),
    )


def train_config(total: tuple[int, ...], devices: int) -> GraphTrainConfig:
    """The preset `faithful` with tables that are updated by rows and split over all devices."""
    config = faithful.get_config().train_graph
    model = config.model
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            model,
            encoder=dataclasses.replace(model.encoder, layers=len(total)),
            features=dataclasses.replace(model.features, identity_update="adagrad"),
        ),
        fanouts=FanoutConfig(total=total),
        mesh=MeshConfig(fsdp=devices),
    )


def model_of(config: GraphTrainConfig, schema: GraphSchema) -> GraphModel:
    """The model of one task."""
    features = tuple(
        NodeFeatures(
            node_type=name,
            num_identities=(
                0 if name in TEXT_TYPES else num_rows(config.model.features, node.count)
            ),
            text_size=TEXT_WIDTH if name in TEXT_TYPES else 0,
            cardinalities=tuple(node.categorical.values()),
            dense_size=0,
        )
        for name, node in sorted(schema.nodes.items())
    )
    keys = tuple(sorted(edge.key for edge in schema.all_edges()))
    return GraphModel(config.model, features, keys, (TASK,))


def budgets_of(total: tuple[int, ...], schema: GraphSchema, share: float, pairs: int) -> Budgets:
    """By role, of a device's pairs."""
    mean = degrees(schema, share)
    fanouts = fanouts_of(total, schema, mean)
    return {
        "sender": budget_of(fanouts, mean, TASK.sender, pairs // (1 + NEGATIVES)),
        "receiver": budget_of(fanouts, mean, TASK.receiver, pairs),
    }


def batch_shape(mesh: Mesh, budgets: Budgets, pairs: int, sampler: Any) -> GraphBatch:
    """One step's batch of all devices."""
    groups = pairs // (1 + NEGATIVES)
    requests: dict[str, Any] = {
        role: request_shape(
            mesh,
            Question(
                seed_type=getattr(TASK, role),
                visible_splits=TRAIN_SPLITS,
                budget=budget,
                sampler=sampler,
                use_time=True,
                edge_keys=(APPLY,),
                num_groups=groups,
                pairs_per_group=1 + NEGATIVES,
            ),
        )
        for role, budget in budgets.items()
    }
    mask = spread_shape(mesh, (pairs,), jnp.bool_)
    index = spread_shape(mesh, (pairs,), jnp.int32)
    label = spread_shape(mesh, (pairs,), jnp.float32)
    batch = PairBatch(requests["sender"], requests["receiver"], index, index, label, mask)
    return GraphBatch({TASK.name: batch}, mask)


def places_of(schema: GraphSchema, num_shards: int, share: float) -> Places:
    """Of a graph of the paper's relations."""
    return Places(
        axes=ROW_AXES,
        num_shards=num_shards,
        types=type_places(schema, num_shards),
        clock=Clock(0),
        age_unit=SPAN / 1000,
        longest=int(ROOM * max(degrees(schema, share).values())),
        most_texts=1,
        weighted=(),
    )


class MeshStep(NamedTuple):
    """The update of `train-graph` on the engine `mesh`, of shapes.

    Attributes:
      lower: Traces it.
      parameters: Of the model.
      arrays: Of the graph.
      budgets: Of a device's pairs.
    """

    lower: Callable[[], jax.stages.Lowered]
    parameters: int
    arrays: MeshArrays
    budgets: Budgets


def mesh_step(
    config: GraphTrainConfig, devices: Sequence[Any], share: float, pairs: int
) -> MeshStep:
    """The whole update on a share of the paper's graph.

    Args:
      config: From `train_config`.
      devices: All of its mesh, which need not be there.
      share: Of the paper's graph.
      pairs: Of a device.
    """
    mesh, schema = make_mesh(config.mesh, devices), paper_schema(share)
    places = places_of(schema, num_row_shards(mesh), share)
    model = model_of(config, schema)
    params, statistics = jax.eval_shape(lambda: init_model(model, 0))
    optimizer = make_graph_optimizer(config, model)
    state = shapes_of_state(
        params, optimizer, mesh=mesh, rules=graph_rules(config), statistics=statistics
    )
    weights = {TASK.name: 1.0}
    step = make_step(
        make_loss(model, task_weights=weights, positive_weight=weights),
        optimizer,
        state=state,
        mesh=mesh,
        prepare=in_step(MeshProgram(schema, places, mesh, config.engine.slack)),
        stateful=True,
    )
    budgets = budgets_of(config.fanouts.total, schema, share, pairs)
    arrays = paper_arrays(schema, share, mesh)
    batch = batch_shape(mesh, budgets, pairs, config.sampler)
    return MeshStep(
        lower=lambda: step.lower(state, arrays, batch),
        parameters=trees.count(params),
        arrays=arrays,
        budgets=budgets,
    )
