"""Seeds to vectors outside training: sampled in batches, embedded by one compiled program each.

Under the split rule no time hides an edge, so that a node looks the same to everyone who asks: it
is embedded once. Its texts are those it had at its last visible event, because a later text may
tell of events that the split hides.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int, Int32, Int64

from star_jax.graph.batches import Budget, Subgraph
from star_jax.graph.decoders import SeedVectors
from star_jax.graph.model import GraphModel, Role, rounds_of
from star_jax.graph.samplers.calibrate import SeedBatch, calibrate
from star_jax.graph.samplers.sample import NO_EXCLUSION, Fanouts, sample
from star_jax.graph.store import SPLIT_BITS, TIMED_BIT, GraphStore, TextVersions
from star_jax.pipeline.ahead import ahead
from star_jax.pipeline.graph_loader import Sampling
from star_jax.pipeline.graph_programs import Rows, embed
from star_jax.pipeline.progress import Work
from star_jax.pipeline.tables.read import SPLIT_CODES
from star_jax.shapes import NO_TIME, PyTree

KEY = 0
"""Of all draws: a node looks the same in every batch."""

_MOST_SEEDS = 1024  # Of one batch.
_HEADROOM = 1.02  # For batches of further nodes; the first ones are measured as they will be drawn.
_CHUNK_EDGES = 1 << 22  # Of a graph whose edges are all looked at.
_CHUNK_NODES = 1 << 16
_AHEAD = 2  # Stacks sampled while one is embedded.


class Stack(NamedTuple):
    """Batches of seeds that are embedded together, one to each part of a mesh.

    Attributes:
      group: Which of the seeds asked for are in each.
      parts: Their padded subgraphs, all of one shape; those that this process makes.
      room: How often they were given more of it.
    """

    group: Sequence[slice]
    parts: list[Subgraph]
    room: int

    @property
    def sizes(self) -> list[int]:
        """Seeds of each batch."""
        return [part.stop - part.start for part in self.group]


Sampled: TypeAlias = list[Stack]
"""All batches of some seeds."""


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
    store.release()  # All times and flags were read, and few are needed again.
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
    store.release()  # As above.
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
        rows: Rows,
        resolve: Callable[[Subgraph], Subgraph] | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
          model: Embeds.
          sampling: How neighbours are drawn.
          rows: Where batches go, one to each part.
          resolve: Puts text vectors in the place of numbers; None: samples have vectors.
        """
        self._model, self._sampling, self._rows = model, sampling, rows
        self._resolve = resolve or (lambda subgraph: subgraph)
        self._budgets: dict[tuple[Role, str], list[Budget]] = {}  # Each with more room.

    def measure(self, wanted: Wanted) -> None:
        """Sets how large samples are around seeds of a role and type, where that is not set.

        All that is made of such seeds is a function of this and of the seeds. Without it, the
        first that are asked for are measured.
        """
        self._budget(wanted, 0)

    def batches(self, wanted: Wanted, room: int = 0) -> Iterator[Stack]:
        """Samples seeds, as many batches as a mesh takes at a time; nothing is cut off.

        The draws depend on the node alone, so that a node has one neighbourhood whoever asks.
        Batches that do not fit are drawn again with more room, which those after them have too.

        Args:
          wanted: The seeds.
          room: How often there was more room already.
        """
        size = self._budget(wanted, 0).block(wanted.node_type, 0)[1]
        for group in self._rows.groups(len(wanted.seeds.node), size):
            batches = self._drawn(wanted, group, room)
            room = batches.room
            yield batches

    def prepare(self, wanted: Wanted) -> Sampled:
        """All of `batches`, for whoever embeds them again and again: of one shape."""
        name, room = f"sampling around {wanted.node_type} {wanted.role}s", 0
        while True:
            made, work = [], Work(name, len(wanted.seeds.node), "nodes")
            for batches in self.batches(wanted, room):
                made.append(batches)
                work.advance(sum(batches.sizes))
            needed = self._rows.agreed(made[-1].room)
            if needed == room:
                return made
            room = needed

    def __call__(
        self, variables: PyTree, role: Role, node_type: str, prepared: Sampled
    ) -> SeedVectors:
        """Vectors of prepared seeds, in their order."""
        total = sum(sum(batches.sizes) for batches in prepared)
        return self._vectors(variables, role, node_type, prepared, total)

    def embed(self, variables: PyTree, wanted: Wanted) -> SeedVectors:
        """Vectors of seeds, in their order, sampled ahead: few batches are held at a time."""
        with ahead(self.batches(wanted), _AHEAD) as sampled:
            fitting = (self._fitting(wanted, batches) for batches in sampled)
            total = len(wanted.seeds.node)
            return self._vectors(variables, wanted.role, wanted.node_type, fitting, total)

    def _fitting(self, wanted: Wanted, batches: Stack) -> Stack:
        """The same with as much room as those of the other processes have."""
        room = self._rows.agreed(batches.room)
        return batches if room == batches.room else self._drawn(wanted, batches.group, room)

    def _drawn(self, wanted: Wanted, group: Sequence[slice], room: int) -> Stack:
        """This process's own of a group of batches, and how much room they needed."""
        while True:
            parts = []
            for part in (group[number] for number in self._rows.own):
                subgraph, stats = sample(
                    wanted.store,
                    seed_type=wanted.node_type,
                    visible_splits=wanted.visible_splits,
                    fanouts=self._fanouts(wanted),
                    budget=self._budget(wanted, room),
                    key=KEY,
                    sampler=self._sampling.sampler,
                    use_time=False,
                    **_seed_batch(wanted.seeds, part)._asdict(),
                )
                if stats.num_dropped:
                    break
                parts.append(subgraph)
            else:
                return Stack(group, parts, room)
            room += 1

    def _fanouts(self, wanted: Wanted) -> Fanouts:
        return fanouts_of(self._model, self._sampling, wanted.role, wanted.node_type)

    def _budget(self, wanted: Wanted, room: int) -> Budget:
        """The sizes; measured when seeds of the kind are first asked for."""
        kind = (wanted.role, wanted.node_type)
        if kind not in self._budgets:
            self._budgets[kind] = [self._first_budget(wanted)]
        known = self._budgets[kind]
        while len(known) <= room:
            known.append(_larger(known[-1], wanted.node_type))
        return known[room]

    def _first_budget(self, wanted: Wanted) -> Budget:
        total = len(wanted.seeds.node)
        num_seeds = min(_MOST_SEEDS, 1 << max(3, (total - 1).bit_length()))
        parts = [slice(s, min(s + num_seeds, total)) for s in range(0, max(total, 1), num_seeds)]
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

    def _vectors(
        self,
        variables: PyTree,
        role: Role,
        node_type: str,
        sampled: Iterable[Stack],
        total: int,
    ) -> SeedVectors:
        made = []
        work = Work(f"embedding {node_type} {role}s", total, "nodes")
        for batches in sampled:
            parts = [self._resolve(subgraph) for subgraph in batches.parts]
            vectors = self._rows.run(
                embed, self._model, variables, parts, role=role, node_type=node_type
            )
            for number, size in enumerate(batches.sizes):
                made.append(SeedVectors(*(array[number, :size] for array in vectors)))
            work.advance(sum(batches.sizes))
        return SeedVectors(*(np.concatenate(parts) for parts in zip(*made, strict=True)))


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
