"""Our side of bench/gnn_step.py: draws the batches, writes them for the peer, measures star_jax.

The peer reads `model.json`, `vectors_<type>.npy`, `step_<i>.npz` and `nodes_<i>.npz` in the
working folder; `pack` says what a file of a subgraph holds.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from bench.drawn_graph import make_graph
from bench.turns import Answer, take_turns
from star_jax.graph.batches import Budget, PairBatch, Subgraph, edge_lists
from star_jax.graph.decoders import DecoderConfig
from star_jax.graph.encoder import receiving_types
from star_jax.graph.engines.host import HostEngine
from star_jax.graph.match import MatchConfig
from star_jax.graph.model import ROLES, GraphModelConfig, LinkTask, init_model, make_loss
from star_jax.graph.samplers import sample as sampling
from star_jax.graph.samplers.fanouts import FanoutConfig, resolve
from star_jax.graph.schema import parse_key
from star_jax.graph.segments import hop_blocks
from star_jax.graph.store import GraphStore
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import FSDP_RULES
from star_jax.pipeline.graph_embedding import Embedder, Sampled, Seeds, splits_until
from star_jax.pipeline.graph_loader import Groups, Sampling
from star_jax.pipeline.graph_model import GraphModelFile, node_features
from star_jax.pipeline.graph_streams import BatchMaker, count_pairs, make_batches, make_streams
from star_jax.pipeline.tables.read import PairTable
from star_jax.shapes import NO_TIME
from star_jax.train.optimizers import OptimizerConfig, make_optimizer
from star_jax.train.state import create_state
from star_jax.train.step import make_step

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


class Star:
    """The model under training, and the functions of a turn."""

    def __init__(self, folder: Path, size: Size) -> None:
        """Draws everything, writes what the peer reads, compiles."""
        self._size, self._world = size, make_world(folder, size)
        world = self._world
        self._model = world.file.build()
        (folder / "model.json").write_text(json.dumps(describe(world.file)), encoding="utf-8")
        self._edges = 0
        for number in range(size.num_batches):
            batch = world.maker(number)
            self._edges += int(count_pairs(batch).figures["neighbours"])
            pairs = jax.tree.map(lambda array: array[0], batch.tasks[TASK.name])
            arrays: Any = pack_pairs(pairs)
            np.savez(folder / f"step_{number}.npz", **arrays)
        self._loss = make_loss(
            self._model, task_weights={TASK.name: 1.0}, positive_weight={TASK.name: 1.0}
        )
        self._forward = jax.jit(lambda *arguments: self._loss(*arguments)[0])
        params, statistics = init_model(self._model, 0)
        optimizer = make_optimizer(OPTIMIZER)
        mesh = self._mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
        self._state = create_state(
            params, optimizer, seed=0, mesh=mesh, rules=FSDP_RULES, statistics=statistics
        )
        self._step = make_step(self._loss, optimizer, state=self._state, mesh=mesh, stateful=True)
        self._embedder = Embedder(self._model, world.file.sampling)
        for number, (_, subgraph) in enumerate(self._sampled(self._embedder)):
            arrays = pack(subgraph, EXPORTED)
            np.savez(folder / f"nodes_{number}.npz", **arrays)

    def about(self) -> Answer:
        """Compiles everything, and counts."""
        batch, state = self._step.place(self._world.maker(0)), self._state
        begun = time.monotonic()
        with jax.set_mesh(self._mesh):  # As the step has it: calling it then compiles nothing.
            update = self._step._update.lower(
                state=state, frozen={}, batch=batch, rate=jnp.float32(RATE)
            )
            step_gflop = _gflop(update.compile())
        self._update(batch)
        compile_s = time.monotonic() - begun
        state = self._state
        jax.block_until_ready(
            self._forward(state.trainable, state.statistics, {}, batch, state.rng)
        )
        sampled = self._sampled(self._embedder)
        embed = self._embedder._embed.lower(self._variables, sampled[0][1], "receiver", EXPORTED)
        export_gflop = _gflop(embed.compile())
        self._embedder(self._variables, "receiver", EXPORTED, sampled[:1])
        return {
            "compile_s": compile_s,
            "step_gflop": step_gflop,
            "export_gflop": export_gflop,
            "edges": self._edges,
            "num_nodes": self._world.store.num_nodes,
            "export_batches": len(sampled),
            "num_exported": len(self._exported()),
        }

    def step(self) -> Answer:
        """Some updates, one phase after the other; seconds of every phase, and losses."""
        found: dict[str, list[float]] = {
            name: [] for name in ("sample", "gather", "place", "forward", "compute", "loss")
        }
        for number in range(self._size.num_steps):
            drawn = _Stopwatch(sampling.expand)
            begun = time.monotonic()
            with mock.patch.object(sampling, "expand", drawn):
                host = self._world.maker(number % self._size.num_batches)
            made = time.monotonic()
            batch = jax.block_until_ready(self._step.place(host))
            placed = time.monotonic()
            state = self._state
            jax.block_until_ready(
                self._forward(state.trainable, state.statistics, {}, batch, state.rng)
            )
            forward = time.monotonic()
            loss = self._update(batch)
            found["sample"].append(drawn.seconds)
            found["gather"].append(made - begun - drawn.seconds)
            found["place"].append(placed - made)
            found["forward"].append(forward - placed)
            found["compute"].append(time.monotonic() - forward)
            found["loss"].append(loss)
        return found

    def epoch(self) -> Answer:
        """All batches once, made by threads meanwhile."""
        begun = time.monotonic()
        batches = make_batches(self._world.maker)
        for _ in range(self._size.num_batches):
            batch = self._step.place(next(batches))
            self._state, _ = self._step(self._state, {}, batch, RATE)
        jax.block_until_ready(self._state)
        seconds = time.monotonic() - begun
        batches.close()  # Those made ahead must not run into the peer's turn.
        return {"seconds": seconds}

    def export(self) -> Answer:
        """Vectors of all nodes of a type, sizes measured and neighbours drawn anew."""
        begun = time.monotonic()
        fresh = Embedder(self._model, self._world.file.sampling)  # Without sizes.
        sampled = self._sampled(fresh)
        drawn = time.monotonic()
        vectors = self._embedder(self._variables, "receiver", EXPORTED, sampled)
        assert np.isfinite(np.asarray(vectors.embedding)).all()
        return {"seconds": time.monotonic() - begun, "sample": drawn - begun}

    @property
    def _variables(self) -> dict[str, Any]:
        return {"params": self._state.trainable, "batch_stats": self._state.statistics}

    def _exported(self) -> np.ndarray:
        total = self._world.store.num_nodes[EXPORTED]
        return np.arange(min(total, self._size.num_exported), dtype=np.int32)

    def _sampled(self, embedder: Embedder) -> Sampled:
        nodes = self._exported()
        seeds = Seeds(nodes, None, np.full(len(nodes), NO_TIME, np.int64))
        visible = splits_until("val")
        return embedder.prepare(self._world.store, "receiver", EXPORTED, seeds, visible)

    def _update(self, batch: Any) -> float:
        self._state, metrics = self._step(self._state, {}, batch, RATE)
        jax.block_until_ready(self._state)
        loss = float(metrics["loss"])
        assert np.isfinite(float(metrics["gradient_norm"])), f"loss {loss}"
        return loss


def _gflop(program: Any) -> float:
    return program.cost_analysis()["flops"] / 1e9


class _Stopwatch:
    """A function that adds up how long it takes."""

    def __init__(self, function: Any) -> None:
        self._function, self.seconds = function, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        begun = time.monotonic()
        result = self._function(*args, **kwargs)
        self.seconds += time.monotonic() - begun
        return result


def main() -> None:
    """Takes turns, as bench/gnn_step.py asks for them."""
    folder, sizes = sys.argv[1:]
    star = Star(Path(folder), Size(*json.loads(sizes)))
    take_turns({"about": star.about, "step": star.step, "epoch": star.epoch, "export": star.export})


if __name__ == "__main__":
    main()
