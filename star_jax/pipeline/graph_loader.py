"""Pairs with their neighbourhoods: groups of the tables, and the sampler that pads them.

A group is a positive with its negatives: one sender, one time. It sees only edges of the splits
that training may see, from before its time, without its own supervised pairs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64

from star_jax.graph.batches import Budget, OldVectors, PairBatch, padded
from star_jax.graph.engines.host import HostEngine
from star_jax.graph.engines.protocol import GraphEngine, Question
from star_jax.graph.model import ROLES, LinkTask, Role
from star_jax.graph.samplers.calibrate import SeedBatch, calibrate
from star_jax.graph.samplers.sample import Exclusion, Fanouts
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.store import GraphStore
from star_jax.pipeline.graph_compatible import OldVersion
from star_jax.pipeline.hard_negatives import HARD
from star_jax.pipeline.progress import Work
from star_jax.pipeline.tables.read import SPLIT_CODES, PairTable
from star_jax.shapes import check_int32

TRAIN_SPLITS = 1 << SPLIT_CODES["always"] | 1 << SPLIT_CODES["train"]


class Pairs(NamedTuple):
    """Pairs of some groups, group after group; groups are counted from 0 within the batch."""

    sender: Int32[np.ndarray, " B"]
    receiver: Int32[np.ndarray, " B"]
    label: Float32[np.ndarray, " B"]
    group: Int32[np.ndarray, " B"]
    time: Int64[np.ndarray, " G"]  # Per group.
    sender_text: Int32[np.ndarray, " B"]
    receiver_text: Int32[np.ndarray, " B"]

    @property
    def first(self) -> Int[np.ndarray, " G"]:
        """The first pair of each group: all have its sender."""
        return np.searchsorted(self.group, np.arange(len(self.time)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How neighbourhoods are drawn, in training and in scoring alike.

    Attributes:
      fanouts: Edge key -> neighbours at every hop.
      channels: Channel of personalised PageRank -> neighbours of a seed, in place of those of the
        first hop; see `channel_key`.
      sampler: How to choose among the visible edges.
      receiver_keys: Edge keys that are followed from a seed of the receiver role, for one hop;
        None: all keys and hops, as from a sender.
    """

    fanouts: dict[str, tuple[int, ...]]
    channels: dict[str, int] = dataclasses.field(default_factory=dict)
    sampler: SamplerConfig = dataclasses.field(default_factory=SamplerConfig)
    receiver_keys: tuple[str, ...] | None = None

    def of(self, role: Role) -> Fanouts:
        """The fanouts of one role's seeds."""
        if role == "sender" or self.receiver_keys is None:
            return self._whole
        return {
            key: (hops[0] if key in self.receiver_keys else 0, *(0 for _ in hops[1:]))
            for key, hops in self.fanouts.items()
        }

    @property
    def _whole(self) -> Fanouts:
        if not self.channels:
            return self.fanouts
        later = {key: (0, *hops[1:]) for key, hops in self.fanouts.items()}
        return later | {
            key: (count, *(0 for _ in range(self.num_hops - 1)))
            for key, count in self.channels.items()
        }

    @property
    def num_hops(self) -> int:
        """Hops of neighbours."""
        return len(next(iter(self.fanouts.values())))


class Groups:
    """The groups of one task and split."""

    def __init__(self, pairs: PairTable) -> None:
        """Sorts pairs by group, the positives of each first.

        Args:
          pairs: At least one; groups need not lie together.
        """
        self.order = np.lexsort((-pairs.label.astype(np.int64), pairs.group))
        self._pairs = PairTable(*(column[self.order] for column in pairs))
        starts = np.flatnonzero(np.diff(self._pairs.group, prepend=self._pairs.group[0] - 1))
        self._bounds = np.append(starts, len(self.order))

    @property
    def sizes(self) -> Int[np.ndarray, " G"]:
        """Pairs per group."""
        return np.diff(self._bounds)

    @property
    def num_positives(self) -> Int[np.ndarray, " G"]:
        """Positives per group."""
        return self._count(self._pairs.label == 1)

    @property
    def num_mined(self) -> Int[np.ndarray, " G"]:
        """Mined negatives per group."""
        return self._count(self._pairs.negative == HARD)

    def _count(self, rows: Bool[np.ndarray, " B"]) -> Int[np.ndarray, " G"]:
        return np.add.reduceat(rows.astype(np.int64), self._bounds[:-1])

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def positives(self) -> PairTable:
        """The positive pairs of all groups."""
        return PairTable(*(column[self._pairs.label == 1] for column in self._pairs))

    def take(self, chosen: Int[np.ndarray, " G"], *, drawn: bool = True) -> Pairs:
        """The pairs of some groups.

        Args:
          chosen: Numbers of the groups.
          drawn: With the negatives that the import drew or found; without, positives and those
            that were mined for them.
        """
        sizes = self.sizes[chosen]
        rows = np.repeat(self._bounds[chosen], sizes) + _ranges(sizes)
        group = np.repeat(np.arange(len(chosen), dtype=np.int32), sizes)
        time = self._pairs.t[self._bounds[chosen]]
        if not drawn:
            keep = (self._pairs.label[rows] == 1) | (self._pairs.negative[rows] == HARD)
            rows, group = rows[keep], group[keep]
        table = self._pairs
        return Pairs(
            sender=check_int32("sender", table.sender[rows]),
            receiver=check_int32("receiver", table.receiver[rows]),
            label=table.label[rows].astype(np.float32),
            group=group,
            time=time.astype(np.int64),
            sender_text=table.sender_text[rows],
            receiver_text=table.receiver_text[rows],
        )


class RoleBudgets(NamedTuple):
    """The padded sizes of one task's two subgraphs."""

    sender: Budget
    receiver: Budget


class PairSampler:
    """Pairs to a `PairBatch` of static shape; a pure function of pairs and key."""

    def __init__(
        self,
        store: GraphStore,
        task: LinkTask,
        hides: tuple[str, ...],
        sampling: Sampling,
        *,
        visible_splits: int,
        use_time: bool = True,
        engine: GraphEngine | None = None,
        group_size: int | None = None,
        old: OldVersion | None = None,
    ) -> None:
        """Fixes the rule of what is visible; every group sees only what was there at its time.

        Args:
          store: The graph.
          task: Node types of the two roles.
          hides: Edge keys that hold the supervised link.
          sampling: How to draw.
          visible_splits: As in `sample`.
          use_time: As in `sample`.
          engine: Draws neighbourhoods; None: the host.
          group_size: The most pairs of a group; None: those of a whole batch.
          old: Given, batches have its vectors of their seeds.
        """
        self._store, self._task, self._hides = store, task, hides
        self._engine = HostEngine(store) if engine is None else engine
        self._group_size, self._old = group_size, old
        self._use_time = use_time
        self._sampling = sampling
        self._visible_splits = visible_splits

    def __call__(
        self, pairs: Pairs, budgets: RoleBudgets, num_pairs: int, key: int
    ) -> tuple[PairBatch, int]:
        """Asks the engine for both roles' subgraphs.

        Args:
          pairs: At most as many groups and pairs as the budgets have seeds.
          budgets: Sizes of the subgraphs.
          num_pairs: Rows of the batch, padding included.
          key: Of the draws of this batch.

        Returns:
          The batch, and how many edges and texts did not fit into the budgets.
        """
        subgraphs, num_cut = [], 0
        for role, budget in zip(ROLES, budgets, strict=True):
            question = Question(
                seed_type=getattr(self._task, role),
                visible_splits=self._visible_splits,
                budget=budget,
                sampler=self._sampling.sampler,
                use_time=self._use_time,
                edge_keys=self._hides,
                num_groups=budgets.sender.block(self._task.sender, 0)[1],
                pairs_per_group=self._group_size or num_pairs,
            )
            subgraph, cut = self._engine.prepare(question, self._seeds(role, pairs), key)
            subgraphs.append(subgraph)
            num_cut += cut
        size = len(pairs.group)
        batch = PairBatch(
            sender=subgraphs[0],
            receiver=subgraphs[1],
            sender_row=padded(pairs.group, num_pairs),
            receiver_row=padded(np.arange(size, dtype=np.int32), num_pairs),
            label=padded(pairs.label, num_pairs),
            mask=np.arange(num_pairs) < size,
            old=None if self._old is None else self._older(self._old, pairs, budgets, num_pairs),
        )
        return batch, num_cut

    def budgets(
        self,
        make_pairs: Callable[[int], Pairs],
        *,
        num_groups: int,
        num_pairs: int,
        num_batches: int,
    ) -> RoleBudgets:
        """Measures the sizes that batches need.

        Args:
          make_pairs: Batch number, from 0 on, to its pairs.
          num_groups: The most groups of a batch.
          num_pairs: The most pairs of a batch.
          num_batches: How many to look at.
        """
        total = len(ROLES) * num_batches
        work = Work(f"measuring samples of {self._task.name}", total, "batches")

        def seeds_of(number: int, role: Role) -> SeedBatch:
            seeds = self._seeds(role, make_pairs(number))
            work.advance(1)
            return seeds

        return RoleBudgets(
            *(
                calibrate(
                    self._store,
                    lambda number, role=role: seeds_of(number, role),
                    self._sampling.of(role),
                    seed_type=getattr(self._task, role),
                    num_seeds=num_seeds,
                    visible_splits=self._visible_splits,
                    sampler=self._sampling.sampler,
                    num_batches=num_batches,
                )
                for role, num_seeds in zip(ROLES, (num_groups, num_pairs), strict=True)
            )
        )

    def _older(
        self, old: OldVersion, pairs: Pairs, budgets: RoleBudgets, num_pairs: int
    ) -> dict[str, OldVectors]:
        """The older vectors of the seeds of both roles; a receiver's row is that of its pair."""
        nodes: dict[Role, Any] = {"sender": pairs.sender[pairs.first], "receiver": pairs.receiver}
        num_groups = budgets.sender.block(self._task.sender, 0)[1]
        return old.of_task(self._task, nodes, {"sender": num_groups, "receiver": num_pairs})

    def _seeds(self, role: str, pairs: Pairs) -> SeedBatch:
        """A group has one sender, and a seed of its own for every receiver."""
        exclude = Exclusion(pairs.group, pairs.sender, pairs.receiver, self._hides)
        if role == "receiver":
            return SeedBatch(pairs.receiver, pairs.group, pairs.time, exclude, pairs.receiver_text)
        first = pairs.first
        groups = np.arange(len(first), dtype=np.int32)
        return SeedBatch(pairs.sender[first], groups, pairs.time, exclude, pairs.sender_text[first])


def _ranges(sizes: Int[np.ndarray, " G"]) -> Int[np.ndarray, " B"]:
    """0 .. size - 1 for every size, one after the other."""
    starts = np.cumsum(sizes) - sizes
    return np.arange(int(sizes.sum())) - np.repeat(starts, sizes)
