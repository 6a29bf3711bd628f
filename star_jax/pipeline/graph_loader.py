"""Batches of graph pairs: Grain shuffles groups, the sampler gives each its own neighbourhood.

A group is a positive with its negatives: one sender, one time. It sees only edges of the splits
that training may see, from before its time, without its own supervised pairs.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jaxtyping import Float32, Int, Int32, Int64

from star_jax.graph.batches import Budget, PairBatch
from star_jax.graph.model import ROLES, GraphBatch, LinkTask, Role
from star_jax.graph.samplers.calibrate import SeedBatch, calibrate
from star_jax.graph.samplers.uniform import Exclusion, Fanouts, sample, sampling_key
from star_jax.graph.store import GraphStore
from star_jax.pipeline.graph_links import KnownLinks
from star_jax.pipeline.progress import Work
from star_jax.pipeline.tables.read import SPLIT_CODES, PairTable
from star_jax.shapes import check_int32
from star_jax.train.loop import Counts

_log = logging.getLogger(__name__)

TRAIN_SPLITS = 1 << SPLIT_CODES["always"] | 1 << SPLIT_CODES["train"]
_THREADS = 2
_BUFFERED_BATCHES = 4
_CALIBRATED_BATCHES = 16


class Pairs(NamedTuple):
    """Pairs of some groups, group after group; groups are counted from 0 within the batch."""

    sender: Int32[np.ndarray, " B"]
    receiver: Int32[np.ndarray, " B"]
    label: Float32[np.ndarray, " B"]
    group: Int32[np.ndarray, " B"]
    time: Int64[np.ndarray, " G"]  # Per group.
    sender_text: Int32[np.ndarray, " B"]
    receiver_text: Int32[np.ndarray, " B"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How neighbourhoods are drawn, in training and in scoring alike.

    Attributes:
      fanouts: Edge key -> neighbours at every hop.
      replace: Draw with replacement.
      receiver_keys: Edge keys that are followed from a seed of the receiver role, for one hop;
        None: all keys and hops, as from a sender.
    """

    fanouts: dict[str, tuple[int, ...]]
    replace: bool
    receiver_keys: tuple[str, ...] | None = None

    def of(self, role: Role) -> Fanouts:
        """The fanouts of one role's seeds."""
        if role == "sender" or self.receiver_keys is None:
            return self.fanouts
        return {
            key: (hops[0] if key in self.receiver_keys else 0, *(0 for _ in hops[1:]))
            for key, hops in self.fanouts.items()
        }


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
        return np.add.reduceat(self._pairs.label.astype(np.int64), self._bounds[:-1])

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def positives(self) -> PairTable:
        """The positive pairs of all groups."""
        return PairTable(*(column[self._pairs.label == 1] for column in self._pairs))

    def take(self, chosen: Int[np.ndarray, " G"], *, positives_only: bool = False) -> Pairs:
        """The pairs of some groups."""
        sizes = self.sizes[chosen]
        rows = np.repeat(self._bounds[chosen], sizes) + _ranges(sizes)
        group = np.repeat(np.arange(len(chosen), dtype=np.int32), sizes)
        time = self._pairs.t[self._bounds[chosen]]
        if positives_only:
            keep = self._pairs.label[rows] == 1
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
    ) -> None:
        """Fixes the rule of what is visible; every group sees only what was there at its time.

        Args:
          store: The graph.
          task: Node types of the two roles.
          hides: Edge keys that hold the supervised link.
          sampling: How to draw.
          visible_splits: As in `sample`.
        """
        self._store, self._task, self._hides = store, task, hides
        self._sampling = sampling
        self._visible_splits = visible_splits

    def __call__(
        self, pairs: Pairs, budgets: RoleBudgets, num_pairs: int, key: int
    ) -> tuple[PairBatch, int]:
        """Samples both roles.

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
            subgraph, stats = sample(
                self._store,
                seed_type=getattr(self._task, role),
                visible_splits=self._visible_splits,
                fanouts=self._sampling.of(role),
                budget=budget,
                key=key,
                replace=self._sampling.replace,
                use_time=True,
                **self._seeds(role, pairs)._asdict(),
            )
            subgraphs.append(subgraph)
            num_cut += stats.num_dropped
        size = len(pairs.group)
        batch = PairBatch(
            sender=subgraphs[0],
            receiver=subgraphs[1],
            sender_row=_padded(pairs.group, num_pairs),
            receiver_row=_padded(np.arange(size, dtype=np.int32), num_pairs),
            label=_padded(pairs.label, num_pairs),
            mask=np.arange(num_pairs) < size,
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
                    replace=self._sampling.replace,
                    num_batches=num_batches,
                )
                for role, num_seeds in zip(ROLES, (num_groups, num_pairs), strict=True)
            )
        )

    def _seeds(self, role: str, pairs: Pairs) -> SeedBatch:
        """A group has one sender, and a seed of its own for every receiver."""
        exclude = Exclusion(pairs.group, pairs.sender, pairs.receiver, self._hides)
        if role == "receiver":
            return SeedBatch(pairs.receiver, pairs.group, pairs.time, exclude, pairs.receiver_text)
        first = np.searchsorted(pairs.group, np.arange(len(pairs.time)))
        groups = np.arange(len(first), dtype=np.int32)
        return SeedBatch(pairs.sender[first], groups, pairs.time, exclude, pairs.sender_text[first])


class TaskStream:
    """The training groups of one task: which of them, and their pairs, for every batch."""

    def __init__(
        self,
        groups: Groups,
        sampler: PairSampler,
        negatives: Callable[[Pairs, int], Pairs] | None,
        *,
        num_groups: int,
        num_pairs: int,
        seed: int,
        links: KnownLinks | None = None,
    ) -> None:
        """Shuffles the groups anew in every epoch.

        Args:
          groups: Of the training split.
          sampler: Makes batches of pairs.
          negatives: Draws fresh ones; None: those of the tables.
          num_groups: Of one batch.
          num_pairs: Rows of one batch.
          seed: Of the order and of the draws.
          links: Given, batches say which of their senders and receivers are linked.
        """
        self._groups, self._sampler, self._negatives = groups, sampler, negatives
        self._links = links
        self._seed, self.num_groups, self.num_pairs = seed, num_groups, num_pairs
        self.order = (
            grain.MapDataset.range(len(groups))
            .shuffle(seed=seed % (1 << 31))
            .repeat()
            .batch(num_groups, batch_fn=np.array)
        )

    @property
    def steps_per_epoch(self) -> float:
        """Batches that hold every group once."""
        return len(self._groups) / self.num_groups

    def pairs(self, step: int, shard: int = 0, num_shards: int = 1) -> tuple[Pairs, int]:
        """The pairs of one shard of a step, and the key of its draws.

        All shards of a step have one key: what is drawn for a node and a group does not depend
        on how many devices share the step.
        """
        key = sampling_key(self._seed, step)
        fresh = self._negatives is not None
        chosen = np.asarray(self.order[step * num_shards + shard])
        pairs = self._groups.take(chosen, positives_only=fresh)
        return (self._negatives(pairs, key) if self._negatives else pairs), key

    def budgets(self) -> RoleBudgets:
        """Sizes that batches of the stream need."""
        return self._sampler.budgets(
            lambda number: self.pairs(number)[0],
            num_groups=self.num_groups,
            num_pairs=self.num_pairs,
            num_batches=_CALIBRATED_BATCHES,
        )

    def batch(
        self, step: int, budgets: RoleBudgets, shard: int = 0, num_shards: int = 1
    ) -> tuple[PairBatch, int]:
        """The padded batch of one shard, and how much did not fit into it."""
        pairs, key = self.pairs(step, shard, num_shards)
        batch, num_cut = self._sampler(pairs, budgets, self.num_pairs, key)
        if self._links is not None:
            linked = self._links(pairs.sender[:, None], pairs.receiver[None, :])
            rest = self.num_pairs - len(pairs.label)
            batch = batch._replace(linked=np.pad(linked, ((0, rest), (0, rest))))
        return batch, num_cut


class BatchMaker:
    """Makes step i of all tasks and devices; a pure function of i, safe in many threads."""

    def __init__(
        self,
        streams: Mapping[str, TaskStream],
        budgets: Mapping[str, RoleBudgets],
        shards: int,
    ) -> None:
        """Joins the tasks.

        Args:
          streams: By task.
          budgets: By task.
          shards: Devices; each has samples of its own, so that no index crosses devices.
        """
        self._streams, self._budgets, self._shards = streams, budgets, shards
        self._warned = False

    def __call__(self, step: int) -> GraphBatch:
        """Logs once if budgets cut something off."""
        tasks, num_cut = {}, 0
        for name, stream in self._streams.items():
            made = [
                stream.batch(int(step), self._budgets[name], shard, self._shards)
                for shard in range(self._shards)
            ]
            num_cut += sum(cut for _, cut in made)
            tasks[name] = jax.tree.map(lambda *parts: np.stack(parts), *(b for b, _ in made))
        if num_cut and not self._warned:
            self._warned = True
            _log.warning(
                "step %d: %d sampled edges or texts did not fit the calibrated sizes and were "
                "left out; this is said once",
                *(step, num_cut),
            )
        return GraphBatch(tasks, np.concatenate([b.mask for b in tasks.values()], axis=1))


def make_batches(maker: BatchMaker) -> Any:
    """Endless batches made by threads.

    Returns:
      A Grain iterator; `get_state` and `set_state` are its position, threads do not change it.
    """
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BUFFERED_BATCHES)
    dataset = grain.MapDataset.range(1 << 31).map(maker)
    return iter(dataset.to_iter_dataset(options))


def count_pairs(batch: GraphBatch) -> Counts:
    """Real and padded pairs of a host batch."""
    return Counts(int(np.sum(batch.mask)), int(np.size(batch.mask)))


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([array, np.zeros(size - len(array), array.dtype)])


def _ranges(sizes: Int[np.ndarray, " G"]) -> Int[np.ndarray, " B"]:
    """0 .. size - 1 for every size, one after the other."""
    starts = np.cumsum(sizes) - sizes
    return np.arange(int(sizes.sum())) - np.repeat(starts, sizes)
