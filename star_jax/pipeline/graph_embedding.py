"""Seeds to vectors outside training: sampled in batches, embedded by one compiled program each.

Under the split rule no time hides an edge, so that a node looks the same to everyone who asks: it
is embedded once. Its texts are those it had at its last visible event, because a later text may
tell of events that the split hides.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Float32, Int, Int32, Int64

from star_jax.graph.batches import Budget, Subgraph
from star_jax.graph.decoders import SeedVectors
from star_jax.graph.model import GraphModel, LinkTask, Role, rounds_of
from star_jax.graph.samplers.calibrate import SeedBatch, calibrate
from star_jax.graph.samplers.sample import NO_EXCLUSION, Fanouts, sample
from star_jax.graph.store import SPLIT_BITS, TIMED_BIT, GraphStore, TextVersions
from star_jax.pipeline.ahead import ahead
from star_jax.pipeline.graph_loader import Sampling
from star_jax.pipeline.progress import Work
from star_jax.pipeline.tables.read import SPLIT_CODES
from star_jax.shapes import NO_TIME, PyTree

KEY = 0
"""Of all draws: a node looks the same in every batch."""

_MOST_SEEDS = 1024  # Of one batch.
_BLOCK_PAIRS = 1 << 14
_HEADROOM = 1.02  # For batches of further nodes; the first ones are measured as they will be drawn.
_CHUNK_EDGES = 1 << 22  # Of a graph whose edges are all looked at.
_CHUNK_NODES = 1 << 16
_AHEAD = 2  # Batches sampled while one is embedded.


Sampled: TypeAlias = list[tuple[int, Subgraph]]
"""Batches of seeds: how many are real, and their padded subgraph."""


class Seeds(NamedTuple):
    """Whose vectors are wanted."""

    node: Int32[np.ndarray, " S"]
    text: Int32[np.ndarray, " S"] | None  # Text each one shows; -1: none. None: as of its time.
    time: Int64[np.ndarray, " S"]


def splits_until(split: str) -> int:
    """Bits of `split` and of those before it: always visible, train, val, test."""
    return sum(1 << code for code in SPLIT_CODES.values() if code <= SPLIT_CODES[split])


def splits_before(split: str) -> int:
    """What scoring `split` may see: val sees train, test sees train and val."""
    return splits_until(split) & ~(1 << SPLIT_CODES[split])


def visible_until(store: GraphStore, visible_splits: int) -> int:
    """Just after the last visible edge; NO_TIME if no edge has a time."""
    latest = [NO_TIME]
    for adjacency in store.adjacency.values():
        for first in range(0, len(adjacency.flags), _CHUNK_EDGES):
            part = slice(first, first + _CHUNK_EDGES)
            seen = adjacency.time[part][_timed(adjacency.flags[part], visible_splits)]
            latest += [int(seen.max()) + 1] if len(seen) else []
    return max(latest)


def view_of_splits(store: GraphStore, visible_splits: int) -> GraphStore:
    """The store with no text later than its node's last visible event.

    A node without one keeps its first text.
    """
    view = copy.copy(store)
    view.text_versions = {
        name: _until(versions, _last_event(store, name, visible_splits))
        for name, versions in store.text_versions.items()
    }
    return view


class SplitView(NamedTuple):
    """The graph as it is seen just after the last visible edge."""

    store: GraphStore
    splits: int
    time: int


def split_view(store: GraphStore, visible: str) -> SplitView:
    """What may be seen of all edges and texts up to those of the split `visible`."""
    splits = splits_until(visible)
    seen = view_of_splits(store, splits)
    return SplitView(seen, splits, visible_until(seen, splits))


class Wanted(NamedTuple):
    """Whose vectors are wanted, of which graph, under the split rule.

    Attributes:
      store: The graph, or a view of it.
      role: Of the seeds.
      node_type: Of the seeds.
      seeds: Those of one time share a group.
      visible_splits: As in `sample`.
    """

    store: GraphStore
    role: Role
    node_type: str
    seeds: Seeds
    visible_splits: int

    @classmethod
    def of_view(
        cls, view: SplitView, role: Role, node_type: str, nodes: Int32[np.ndarray, " S"]
    ) -> "Wanted":
        """Nodes as the view shows them, texts included."""
        seeds = Seeds(nodes, None, np.full(len(nodes), view.time, np.int64))
        return cls(view.store, role, node_type, seeds, view.splits)


def fanouts_of(model: GraphModel, sampling: Sampling, role: Role, node_type: str) -> Fanouts:
    """Neighbours to draw around seeds, one hop per layer that updates their type.

    Nodes of a type that is no end of a task are met in training after some hops; they are given
    the neighbours that they have there.
    """
    met_at = model.config.encoder.layers - rounds_of(model, role, node_type)
    return {key: hops[met_at:] for key, hops in sampling.of(role).items()}


class Embedder:
    """The encoders, compiled once per role and type: all seeds come in batches of one size."""

    def __init__(
        self,
        model: GraphModel,
        sampling: Sampling,
        resolve: Callable[[Subgraph], Subgraph] | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
          model: Embeds.
          sampling: How neighbours are drawn.
          resolve: Puts text vectors in the place of numbers; None: samples have vectors.
        """
        self._model, self._sampling = model, sampling
        self._resolve = resolve or (lambda subgraph: subgraph)
        self._budgets: dict[tuple[Role, str], Budget] = {}
        self._embed = jax.jit(
            lambda variables, subgraph, role, node_type: model.apply(
                variables, subgraph, role, node_type, False, method="embed"
            ),
            static_argnames=("role", "node_type"),
        )

    def batches(self, wanted: Wanted) -> Iterator[tuple[int, Subgraph]]:
        """Samples seeds batch by batch; nothing is cut off.

        The draws depend on the node alone, so that a node has one neighbourhood whoever asks. A
        batch that does not fit is drawn again with more room, which those after it have too.

        Yields:
          How many seeds are real, and their padded subgraph.
        """
        kind = (wanted.role, wanted.node_type)
        size = self._budget(wanted).block(wanted.node_type, 0)[1]
        for part in _parts(len(wanted.seeds.node), size):
            batch = _seed_batch(wanted.seeds, part)
            while True:
                subgraph, stats = sample(
                    wanted.store,
                    seed_type=wanted.node_type,
                    visible_splits=wanted.visible_splits,
                    fanouts=self._fanouts(wanted),
                    budget=self._budgets[kind],
                    key=KEY,
                    sampler=self._sampling.sampler,
                    use_time=False,
                    **batch._asdict(),
                )
                if not stats.num_dropped:
                    break
                self._budgets[kind] = _larger(self._budgets[kind], wanted.node_type)
            yield len(batch.seeds), subgraph

    def prepare(self, wanted: Wanted) -> Sampled:
        """All of `batches`, for whoever embeds them again and again: of one shape."""
        name = f"sampling around {wanted.node_type} {wanted.role}s"
        while True:
            budget, made = self._budget(wanted), []
            work = Work(name, len(wanted.seeds.node), "nodes")
            for batch in self.batches(wanted):
                made.append(batch)
                work.advance(batch[0])
            if self._budget(wanted) == budget:
                return made

    def _fanouts(self, wanted: Wanted) -> Fanouts:
        return fanouts_of(self._model, self._sampling, wanted.role, wanted.node_type)

    def _budget(self, wanted: Wanted) -> Budget:
        """The sizes as they are; measured when seeds of the kind are first asked for."""
        kind = (wanted.role, wanted.node_type)
        if kind not in self._budgets:
            self._budgets[kind] = self._first_budget(wanted)
        return self._budgets[kind]

    def _first_budget(self, wanted: Wanted) -> Budget:
        total = len(wanted.seeds.node)
        num_seeds = min(_MOST_SEEDS, 1 << max(3, (total - 1).bit_length()))
        parts = list(_parts(total, num_seeds))
        work = Work(f"measuring samples of {wanted.node_type}", len(parts), "batches")

        def seeds_of(number: int) -> SeedBatch:
            work.advance(min(number, 1))  # The one before is done.
            return _seed_batch(wanted.seeds, parts[number])

        return calibrate(
            wanted.store,
            seeds_of,
            self._fanouts(wanted),
            seed_type=wanted.node_type,
            num_seeds=num_seeds,
            visible_splits=wanted.visible_splits,
            sampler=self._sampling.sampler,
            use_time=False,
            num_batches=len(parts),
            key=KEY,
            headroom=_HEADROOM,
        )

    def __call__(
        self, variables: PyTree, role: Role, node_type: str, prepared: Sampled
    ) -> SeedVectors:
        """Vectors of prepared seeds, in their order."""
        total = sum(size for size, _ in prepared)
        return self._vectors(variables, role, node_type, prepared, total)

    def embed(self, variables: PyTree, wanted: Wanted) -> SeedVectors:
        """Vectors of seeds, in their order, sampled ahead: few batches are held at a time."""
        with ahead(self.batches(wanted), _AHEAD) as batches:
            total = len(wanted.seeds.node)
            return self._vectors(variables, wanted.role, wanted.node_type, batches, total)

    def _vectors(
        self,
        variables: PyTree,
        role: Role,
        node_type: str,
        batches: Iterable[tuple[int, Subgraph]],
        total: int,
    ) -> SeedVectors:
        made = []
        work = Work(f"embedding {node_type} {role}s", total, "nodes")
        for size, subgraph in batches:
            vectors = self._embed(variables, self._resolve(subgraph), role, node_type)
            made.append(SeedVectors(*(np.asarray(part)[:size] for part in vectors)))
            work.advance(size)
        return SeedVectors(*(np.concatenate(parts) for parts in zip(*made, strict=True)))


class PairDecoder:
    """One task's decoder, compiled for blocks of pairs."""

    def __init__(self, model: GraphModel, task: LinkTask) -> None:
        self._decode = jax.jit(
            lambda variables, senders, receivers: model.apply(
                variables, task.name, senders, receivers, False, method="decode"
            )
        )

    def __call__(
        self,
        variables: PyTree,
        senders: SeedVectors,
        receivers: SeedVectors,
        sender_row: Int[np.ndarray, " B"],
        receiver_row: Int[np.ndarray, " B"],
    ) -> Float32[np.ndarray, " B"]:
        """Logit of every pair of rows."""
        num_pairs = len(sender_row)
        block = min(_BLOCK_PAIRS, 8 * math.ceil(max(num_pairs, 1) / 8))
        logits = np.empty(num_pairs, np.float32)
        work = Work("scoring by graph", num_pairs, "pairs")
        for part in _parts(num_pairs, block):
            rows = [
                np.pad(row[part], (0, block - len(row[part]))) for row in (sender_row, receiver_row)
            ]
            found = self._decode(variables, senders.take(rows[0]), receivers.take(rows[1]))
            logits[part] = np.asarray(found)[: len(logits[part])]
            work.advance(len(logits[part]))
        return logits

    def grid(
        self, variables: PyTree, senders: SeedVectors, receivers: SeedVectors
    ) -> Float32[np.ndarray, "Q C"]:
        """Logit of every sender with every receiver."""
        num_senders, num_receivers = len(senders.embedding), len(receivers.embedding)
        rows = np.arange(num_senders * num_receivers)
        logits = self(variables, senders, receivers, rows // num_receivers, rows % num_receivers)
        return logits.reshape(num_senders, num_receivers)


def distinct(seeds: Seeds) -> tuple[Seeds, Int[np.ndarray, " S"]]:
    """Every different seed once, and the row of each among them."""
    assert seeds.text is not None
    columns = np.stack([seeds.node, seeds.text, seeds.time], axis=1)
    unique, row = np.unique(columns, axis=0, return_inverse=True)
    node, text, time = unique.T
    return Seeds(node.astype(np.int32), text.astype(np.int32), time), row.reshape(-1)


def _larger(budget: Budget, seed_type: str) -> Budget:
    """A tenth more room for everything but the seeds."""

    def more(size: int) -> int:
        return 8 * math.ceil(1.1 * size / 8)

    rows = []
    for name, sizes in budget.rows:
        seeds = sizes[0] if name == seed_type else more(sizes[0])
        rows.append((name, (seeds, *map(more, sizes[1:]))))
    texts = tuple((name, more(size)) for name, size in budget.texts)
    return Budget(rows=tuple(rows), fanout=budget.fanout, texts=texts)


def _seed_batch(seeds: Seeds, part: slice) -> SeedBatch:
    times, groups = np.unique(seeds.time[part], return_inverse=True)
    return SeedBatch(
        seeds=seeds.node[part],
        groups=groups.reshape(-1).astype(np.int32),
        group_time=times,
        exclude=NO_EXCLUSION,
        seed_text_row=None if seeds.text is None else seeds.text[part],
    )


def _parts(total: int, size: int) -> Iterator[slice]:
    for start in range(0, max(total, 1), size):
        yield slice(start, min(start + size, total))


def _timed(flags: np.ndarray, visible_splits: int) -> np.ndarray:
    split = flags & SPLIT_BITS
    return ((flags & TIMED_BIT) != 0) & ((visible_splits >> split) & 1 == 1)


def _last_event(store: GraphStore, node_type: str, visible_splits: int) -> Int64[np.ndarray, " N"]:
    """Time of each node's last edge of a visible split; NO_TIME without any."""
    adjacency = store.adjacency[node_type]
    of_split = visible_splits & ~(1 << SPLIT_CODES["always"])
    last = np.full(len(adjacency.bounds), NO_TIME, np.int64)
    for first in range(0, len(last), _CHUNK_NODES):
        bounds = np.asarray(adjacency.bounds[first : first + _CHUNK_NODES])
        node = np.repeat(np.arange(first, first + len(bounds)), bounds[:, -1] - bounds[:, 0])
        edges = slice(bounds[0, 0], bounds[-1, -1])
        seen = _timed(adjacency.flags[edges], of_split)
        np.maximum.at(last, node[seen], adjacency.time[edges][seen])
    return last


def _until(versions: TextVersions, last: Int64[np.ndarray, " N"]) -> TextVersions:
    bounds = np.asarray(versions.bounds, np.int64)
    sizes = np.diff(bounds)
    node = np.repeat(np.arange(len(sizes)), sizes)
    first = np.arange(len(node)) == bounds[:-1][node]
    keep = first | (versions.time <= last[node])
    kept = np.bincount(node[keep], minlength=len(sizes))
    return TextVersions(
        np.concatenate([[0], np.cumsum(kept)]).astype(versions.bounds.dtype),
        versions.time[keep],
        versions.text[keep],
    )
