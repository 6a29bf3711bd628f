"""Random graphs in the proportions of the paper's, on the device that samples them; batches."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32, Key

from bench.drawn_graph import SPAN, TIMED
from bench.mesh_shapes import NEGATIVES, TASK, TEXT_WIDTH, Budgets, batch_shape
from star_jax.graph.batches import PairBatch
from star_jax.graph.engines.mesh.engine import MeshArrays, Request, Seeds
from star_jax.graph.engines.mesh.expand import SeedRows
from star_jax.graph.engines.mesh.features import AS_OF, NodeArrays
from star_jax.graph.engines.mesh.topology import NO_TIME32, Edges, spread, type_places
from star_jax.graph.engines.mesh.visibility import Viewers
from star_jax.graph.model import ROLES, GraphBatch
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.schema import GraphSchema, parse_key
from star_jax.graph.store import TIMED_BIT
from star_jax.parallel.mesh import ROW_AXES

_TRAIN = 1  # The split of all edges.


class _Columns(NamedTuple):
    """Of the edges into one node type."""

    sender: Array
    time: Array
    flags: Array


class _Relations(NamedTuple):
    """By column of the bounds."""

    mean: Float32[Array, " r"]  # Degree.
    senders: Int32[Array, " r"]  # Nodes of the sender type.
    timed: Array


def draw_arrays(
    schema: GraphSchema, degrees: dict[str, float], texts: tuple[str, ...], mesh: Mesh
) -> tuple[MeshArrays, int]:
    """What `MeshEngine` holds of a graph, on the one device of a mesh.

    Degrees are Poisson, ends uniform, and the timed edges of a row spread over the span. A relation
    and its reverse are drawn apart, which no sampler can tell.

    Args:
      schema: Of the graph.
      degrees: Edge key, reverses included, to its mean degree.
      texts: Node types whose nodes have one int8 vector each.
      mesh: Of one device.

    Returns:
      The arrays, and how many edges there are, reverses included.
    """
    keys = iter(jax.random.split(jax.random.key(0, impl="rbg"), 3 * len(schema.nodes)))
    drawn: dict[str, tuple[Array, _Relations]] = {}
    total = 0
    for name, place in type_places(schema, 1):
        relations = _relations(schema, degrees, place.columns)
        bounds = _bounds(next(keys), relations.mean, total, schema.nodes[name].count)
        drawn[name] = (bounds, relations)
        total = int(bounds[-1, -1])
    columns = _Columns(*(jnp.zeros(total, kind) for kind in (jnp.int32, jnp.int32, jnp.uint8)))
    for bounds, relations in drawn.values():
        count = int(bounds[-1, -1]) - int(bounds[0, 0])
        columns = _filled(columns, next(keys), bounds, relations, count)
    edges = Edges(
        bounds=jnp.concatenate([bounds.reshape(-1) for bounds, _ in drawn.values()]),
        sender=columns.sender,
        time=columns.time,
        removed=jnp.zeros(0, jnp.int32),
        weight=jnp.ones(total, jnp.float32),
        flags=columns.flags,
        digits=jnp.zeros(0, jnp.int32),
        exponent=jnp.zeros(0, jnp.int16),
    )
    nodes = {
        name: _features(next(keys), node.count, tuple(node.categorical.values()), name in texts)
        for name, node in schema.nodes.items()
    }
    return spread(lambda _: MeshArrays(edges, nodes), mesh, ROW_AXES), total


def _relations(
    schema: GraphSchema, degrees: dict[str, float], columns: tuple[str, ...]
) -> _Relations:
    ends = [parse_key(key) for key in columns]
    return _Relations(
        mean=jnp.asarray([degrees[key] for key in columns], jnp.float32),
        senders=jnp.asarray([schema.nodes[sender].count for sender, _, _ in ends], jnp.int32),
        timed=jnp.asarray([relation.removeprefix("rev_") in TIMED for _, relation, _ in ends]),
    )


@partial(jax.jit, static_argnames="count")
def _bounds(
    key: Key[Array, ""], mean: Float32[Array, " r"], first: int, count: int
) -> Int32[Array, "N r_plus_1"]:
    """Normal where Poisson is as good as that, for its speed."""
    keys = jax.random.split(key)
    rough = mean + jnp.sqrt(mean) * jax.random.normal(keys[0], (count, mean.size))
    exact = _poisson(keys[1], jnp.minimum(mean, 30.0), count)
    degree = jnp.where(mean > 30, jnp.maximum(jnp.round(rough), 0), exact).astype(jnp.int32)
    stops = first + jnp.cumsum(degree.reshape(-1)).reshape(degree.shape)
    return jnp.concatenate([stops[:, :1] - degree[:, :1], stops], axis=1)


def _poisson(key: Key[Array, ""], mean: Float32[Array, " r"], count: int) -> Array:
    """By inversion: how many steps of the distribution lie below a uniform number."""
    uniform = jax.random.uniform(key, (count, mean.size))

    def step(k: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        degree, chance, below = state
        return degree + (uniform >= below), chance * mean / (k + 1), below + chance * mean / (k + 1)

    chance = jnp.exp(-mean)
    start = (jnp.zeros(uniform.shape), chance, chance)
    return jax.lax.fori_loop(0, 64, step, start)[0]


@partial(jax.jit, static_argnames="count", donate_argnums=0)
def _filled(
    columns: _Columns,
    key: Key[Array, ""],
    bounds: Int32[Array, "N r_plus_1"],
    relations: _Relations,
    count: int,
) -> _Columns:
    """The columns with the edges of one type written in."""
    first = bounds[0, 0]
    begin = bounds[:, :-1].reshape(-1) - first
    size = (bounds[:, 1:] - bounds[:, :-1]).reshape(-1)
    opened = jnp.zeros(count, jnp.int32).at[begin].add(1, mode="drop")
    row = jnp.cumsum(opened) - 1
    of = row % relations.mean.size
    place = jnp.arange(count) - begin[row]
    ends, moments = jax.random.uniform(key, (2, count))
    timed = relations.timed[of]
    time = ((place + moments) / size[row] * SPAN).astype(jnp.int32)
    drawn = _Columns(
        sender=jnp.minimum(ends * relations.senders[of], relations.senders[of] - 1),
        time=jnp.where(timed, time, NO_TIME32),
        flags=jnp.where(timed, _TRAIN | TIMED_BIT, _TRAIN),
    )
    return _Columns(
        *(
            jax.lax.dynamic_update_slice(whole, part.astype(whole.dtype), (first,))
            for whole, part in zip(columns, drawn, strict=True)
        )
    )


@partial(jax.jit, static_argnums=(1, 2, 3))
def _features(
    key: Key[Array, ""], count: int, cardinalities: tuple[int, ...], has_text: bool
) -> NodeArrays:
    keys = jax.random.split(key, 2)
    shape = (count, TEXT_WIDTH) if has_text else (1, 0)
    most = jnp.asarray(cardinalities or (1,), jnp.int32)
    codes = jax.random.randint(keys[1], (count, len(cardinalities)), 0, most[: len(cardinalities)])
    return NodeArrays(
        text_bounds=jnp.arange(count + 1) if has_text else jnp.zeros(count + 1, jnp.int32),
        text_time=jnp.full(shape[0], NO_TIME32),
        texts=jax.lax.bitcast_convert_type(jax.random.bits(keys[0], shape, jnp.uint8), jnp.int8),
        text_scale=jnp.full(shape[0], 1 / 127 / 16),
        categorical=codes,
        dense=jnp.zeros((count, 0)),
        seen=jnp.ones(count, bool),
    )


def batch_of(
    schema: GraphSchema, budgets: Budgets, pairs: int, sampler: SamplerConfig, mesh: Mesh
) -> GraphBatch:
    """Random pairs of random times in the second half of the span, each hidden from itself."""
    shapes = batch_shape(mesh, budgets, pairs, sampler).tasks[TASK.name]
    rng = np.random.default_rng(0)
    groups = pairs // (1 + NEGATIVES)
    sender = rng.integers(0, schema.nodes[TASK.sender].count, groups)
    receiver = rng.integers(0, schema.nodes[TASK.receiver].count, pairs)
    group = np.repeat(np.arange(groups), 1 + NEGATIVES)
    viewers = Viewers(
        time=rng.integers(SPAN // 2, SPAN, groups),
        sender=np.repeat(sender[:, None], 1 + NEGATIVES, 1),
        receiver=receiver.reshape(groups, -1),
    )
    ones = np.ones((1, pairs), bool)
    batch = PairBatch(
        sender=_request(shapes.sender, sender, np.arange(groups), viewers),
        receiver=_request(shapes.receiver, receiver, group, viewers),
        sender_row=group[None].astype(np.int32),
        receiver_row=np.arange(pairs, dtype=np.int32)[None],
        label=np.tile([1.0] + [0.0] * NEGATIVES, groups)[None].astype(np.float32),
        mask=ones,
    )
    return jax.device_put(GraphBatch({TASK.name: batch}, ones))


def with_key(batch: GraphBatch, number: int) -> GraphBatch:
    """The same pairs with other draws."""
    key = jnp.asarray([[number, 7]], jnp.uint32)
    pairs = batch.tasks[TASK.name]
    roles: dict[str, Any] = {role: getattr(pairs, role)._replace(key=key) for role in ROLES}
    return batch._replace(tasks={TASK.name: pairs._replace(**roles)})


def _request(shape: Any, node: np.ndarray, group: np.ndarray, viewers: Viewers) -> Any:
    size = shape.seeds.version.shape[1]

    def filled(values: np.ndarray, fill: int) -> np.ndarray:
        return np.pad(values, (0, size - len(values)), constant_values=fill)[None].astype(np.int32)

    real = (np.arange(size) < len(node))[None]
    rows = SeedRows(filled(node, 0), filled(group, 0), real, real)
    return Request(
        Seeds(rows, filled(np.full(len(node), AS_OF), AS_OF)),
        Viewers(*(np.asarray(part, np.int32)[None] for part in viewers)),
        np.asarray([[0, 7]], np.uint32),
        shape.question,
    )
