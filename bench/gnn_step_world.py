"""What both sides of bench/gnn_step.py work on: the graph, the model's sizes, the batches.

The peer reads `model.json`, `vectors_<type>.npy`, `step_<i>.npz`, `nodes_<i>.npz` and `whole.npz`
in the working folder; `pack` says what a file of a subgraph holds.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from bench.drawn_graph import make_graph
from star_jax.graph.batches import Budget, PairBatch, Subgraph, edge_lists
from star_jax.graph.decoders import DecoderConfig
from star_jax.graph.encoder import receiving_types
from star_jax.graph.engines.host import HostEngine
from star_jax.graph.match import MatchConfig
from star_jax.graph.model import ROLES, GraphModel, GraphModelConfig, LinkTask
from star_jax.graph.samplers.calibrate import SeedBatch, calibrate
from star_jax.graph.samplers.fanouts import FanoutConfig, resolve
from star_jax.graph.samplers.sample import NO_EXCLUSION, sample
from star_jax.graph.schema import parse_key
from star_jax.graph.segments import hop_blocks
from star_jax.graph.store import GraphStore
from star_jax.pipeline.graph_embedding import KEY, SplitView, fanouts_of
from star_jax.pipeline.graph_loader import Groups, Sampling
from star_jax.pipeline.graph_model import GraphModelFile, node_features
from star_jax.pipeline.graph_streams import BatchMaker, make_streams
from star_jax.pipeline.tables.read import PairTable
from star_jax.train.optimizers import OptimizerConfig

TASK = LinkTask("apply", "member", "job")
APPLY = "member__apply__job"
EXPORTED = "job"
TEXT_SIZE = 384
MODEL = GraphModelConfig(
    decoder=DecoderConfig(match=MatchConfig(enabled=False)),
    kernel_l2=0.0,
)
OPTIMIZER = OptimizerConfig()
RATE = 1e-3
NUM_NEGATIVES = 1


class Size(NamedTuple):
    """What is measured."""

    relations: tuple[str, ...]  # Of the paper's.
    num_edges: int  # Before their reverses.
    least_nodes: int  # Of a type.
    num_pairs: int  # Of a batch.
    num_batches: int  # Of an epoch.
    fanouts: tuple[int, ...]  # Per hop, of all relations into a node together.
    num_exported: int  # At most; nodes beyond stay without a vector.
    num_steps: int  # Of one turn.
    num_turns: int


class World(NamedTuple):
    """The graph, a model of it, and what makes the batches of its training."""

    store: GraphStore
    file: GraphModelFile
    maker: BatchMaker


def make_world(folder: Path, size: Size) -> World:
    """Draws the graph, its text vectors and the training pairs; measures the sizes of batches."""
    ends = (TASK.sender, TASK.receiver)
    graph = folder / "graph"
    make_graph(
        graph,
        size.num_edges,
        relations=tuple(size.relations),
        least=size.least_nodes,
        text_types=ends,
    )
    store = GraphStore.open(graph, dict.fromkeys(ends, TEXT_SIZE))
    rng = np.random.default_rng(1)
    for name in ends:
        vectors = rng.standard_normal((store.num_nodes[name], TEXT_SIZE), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        np.save(folder / f"vectors_{name}.npy", vectors)
        store.text_vectors[name] = vectors
    fanouts = resolve(FanoutConfig(total=tuple(size.fanouts)), store.meta)
    file = GraphModelFile(
        model=MODEL,
        features=node_features(MODEL.features, store, (TASK,)),
        keys=tuple(sorted(store.meta.num_edges)),
        tasks=(TASK,),
        sampling=Sampling(fanouts=dict(fanouts)),
        inputs={},
    )
    num_positives = size.num_batches * size.num_pairs // (1 + NUM_NEGATIVES)
    streams = make_streams(
        file,
        {TASK.name: Groups(_positives(store, num_positives, rng))},
        store,
        hides={TASK.name: (APPLY,)},
        num_negatives=NUM_NEGATIVES,
        know_links=False,
        correct=False,
        batch_size=float(size.num_pairs),
        size_power=1.0,
        seed=0,
        engine=HostEngine(store),
    )
    budgets = {name: stream.budgets() for name, stream in streams.items()}
    return World(store, file, BatchMaker(streams, budgets, 1))


def _positives(store: GraphStore, count: int, rng: np.random.Generator) -> PairTable:
    """Some edges of the task as examples, each a group of its own."""
    adjacency = store.adjacency[TASK.receiver]
    column = [edge.key for edge in store.relations[TASK.receiver]].index(APPLY)
    bounds = np.asarray(adjacency.bounds, np.int64)[:, column : column + 2]
    degrees = bounds[:, 1] - bounds[:, 0]
    before = np.cumsum(degrees) - degrees
    edge = np.arange(degrees.sum()) + np.repeat(bounds[:, 0] - before, degrees)
    chosen = rng.choice(len(edge), count, replace=False)
    receiver = np.repeat(np.arange(len(bounds), dtype=np.int32), degrees)[chosen]
    sender = np.asarray(adjacency.sender)[edge[chosen]]
    missing: Any = np.full(count, -1, np.int32)
    return PairTable(
        sender=sender,
        receiver=receiver,
        label=np.ones(count, np.int8),
        negative=np.full(count, ""),
        t=np.asarray(adjacency.time)[edge[chosen]],
        group=np.arange(count, dtype=np.int32),
        sender_text=sender,
        sender_resume=missing,
        receiver_text=receiver,
        warm_sender=np.ones(count, bool),
        warm_receiver=np.ones(count, bool),
        true_logit=np.full(count, np.nan, np.float32),
        slice=np.full(count, ""),
    )


def pack(subgraph: Subgraph, seed_type: str) -> dict[str, np.ndarray]:
    """The real rows and edges alone, as PyG takes them.

    Returns:
      Of every node type `<type>/node`, `/seen`, `/text_row` and `/rows`, the rows of every hop;
      `/texts`, the numbers of the texts that `text_row` counts. Of every edge key `<key>/edges`,
      rows of senders over rows of receivers, hop by hop, and `/sizes`, the edges of every hop.
    """
    blocks = hop_blocks(subgraph, seed_type)
    rows = {
        name: (*sizes, len(subgraph.nodes[name].mask) - sum(sizes))
        for name, sizes in blocks.items()
    }
    budget = Budget(rows=tuple(rows.items()), fanout=(), texts=())
    packed: dict[str, np.ndarray] = {}
    number: dict[str, np.ndarray] = {}
    for name, nodes in subgraph.nodes.items():
        mask = np.asarray(nodes.mask)
        number[name] = np.cumsum(mask) - 1
        spans = [budget.block(name, hop) for hop in range(budget.num_hops + 1)]
        text_row, node = np.asarray(nodes.text_row)[mask], np.asarray(nodes.node)[mask]
        packed[f"{name}/node"], packed[f"{name}/text_row"] = node, text_row
        packed[f"{name}/seen"] = np.asarray(nodes.seen)[mask]
        packed[f"{name}/rows"] = np.array([mask[at : at + size].sum() for at, size in spans])
        texts = np.zeros(text_row.max(initial=-1) + 1, np.int32)
        texts[text_row[text_row >= 0]] = node[text_row >= 0]  # A text has its node's number.
        packed[f"{name}/texts"] = texts
    lists = edge_lists(subgraph, budget)
    for key in sorted({key for hop in lists for key in hop}):
        sender, _, receiver = parse_key(key)
        edges = []
        for hop in lists:
            each = hop.get(key)
            ends = (
                np.zeros((2, 0), np.int64)
                if each is None
                else np.stack(
                    [
                        number[sender][each.sender_row[each.mask]],
                        number[receiver][each.receiver_row[each.mask]],
                    ]
                )
            )
            edges.append(ends)
        packed[f"{key}/edges"] = np.concatenate(edges, axis=1).astype(np.int64)
        packed[f"{key}/sizes"] = np.array([ends.shape[1] for ends in edges])
    return packed


def pack_pairs(pairs: PairBatch) -> dict[str, np.ndarray]:
    """Both subgraphs, named by role, and the real pairs."""
    real = np.asarray(pairs.mask)
    packed = {
        name: np.asarray(getattr(pairs, name))[real]
        for name in ("sender_row", "receiver_row", "label")
    }
    for role in ROLES:
        subgraph = pack(getattr(pairs, role), getattr(TASK, role))
        packed |= {f"{role}/{name}": array for name, array in subgraph.items()}
    return packed


def describe(file: GraphModelFile) -> dict[str, Any]:
    """What the peer has to know to build a model of the same sizes."""
    encoder, layers = file.model.encoder, file.model.encoder.layers
    receiving = {role: receiving_types(file.keys, (getattr(TASK, role),), layers) for role in ROLES}
    return {
        "dim": encoder.dim,
        "multiplier": encoder.multiplier,
        "heads": encoder.heads,
        "receiving": receiving,
        "keys": file.keys,
        "text_size": {each.node_type: each.text_size for each in file.features},
        "num_identities": {each.node_type: each.num_identities for each in file.features},
        "ends": {role: getattr(TASK, role) for role in ROLES},
        "exported_role": "receiver",
        "hidden_size": file.model.decoder.hidden_size,
        "dropout": file.model.decoder.dropout,
        "rate": RATE,
        "weight_decay": OPTIMIZER.weight_decay,
        "clip_norm": OPTIMIZER.clip_norm,
    }


def whole(
    world: World, model: GraphModel, view: SplitView, nodes: Int32[np.ndarray, " S"]
) -> Subgraph:
    """One subgraph around all nodes to export, each other node in it once."""
    file = world.file
    fanouts = fanouts_of(model, file.sampling, "receiver", EXPORTED)
    seeds = SeedBatch(
        seeds=nodes,
        groups=np.zeros(len(nodes), np.int32),
        group_time=np.asarray([view.time], np.int64),
        exclude=NO_EXCLUSION,
        seed_text_row=None,
    )
    budget = calibrate(
        view.store,
        lambda _: seeds,
        fanouts,
        seed_type=EXPORTED,
        num_seeds=len(nodes),
        visible_splits=view.splits,
        sampler=file.sampling.sampler,
        use_time=False,
        num_batches=1,
        key=KEY,
        headroom=1.0,
    )
    subgraph, stats = sample(
        view.store,
        seed_type=EXPORTED,
        visible_splits=view.splits,
        fanouts=fanouts,
        budget=budget,
        key=KEY,
        sampler=file.sampling.sampler,
        use_time=False,
        **seeds._asdict(),
    )
    assert not stats.num_dropped
    return subgraph
