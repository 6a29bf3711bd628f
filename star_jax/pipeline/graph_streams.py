"""The training batches of all tasks: which groups, how many, and their neighbourhoods."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Float32

from star_jax.graph.batches import PairBatch, Subgraph, padded
from star_jax.graph.engines.protocol import GraphEngine
from star_jax.graph.model import GraphBatch
from star_jax.graph.samplers.memory import POOL
from star_jax.graph.samplers.sample import sampling_key
from star_jax.graph.store import GraphStore
from star_jax.pipeline.graph_compatible import OldVersion
from star_jax.pipeline.graph_links import KnownLinks
from star_jax.pipeline.graph_loader import (
    TRAIN_SPLITS,
    Groups,
    Pairs,
    PairSampler,
    RoleBudgets,
)
from star_jax.pipeline.graph_model import GraphModelFile
from star_jax.pipeline.graph_negatives import UniformNegatives
from star_jax.train.loop import Counts

_log = logging.getLogger(__name__)

_THREADS = 2
_BUFFERED_BATCHES = 4
_CALIBRATED_BATCHES = 16


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
        log_q: Float32[np.ndarray, " N"] | None = None,
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
          log_q: Per receiver; given, batches have it of theirs.
        """
        self._groups, self._sampler, self._negatives = groups, sampler, negatives
        self._links, self._log_q = links, log_q
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
        pairs = self._groups.take(chosen, drawn=not fresh)
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
        if self._log_q is not None:
            batch = batch._replace(log_q=padded(self._log_q[pairs.receiver], self.num_pairs))
        return batch, num_cut


class BatchMaker:
    """Makes step i of all tasks and devices; a pure function of i, safe in many threads."""

    def __init__(
        self,
        streams: Mapping[str, TaskStream],
        budgets: Mapping[str, RoleBudgets],
        shards: int,
        own: Sequence[int] | None = None,
    ) -> None:
        """Joins the tasks.

        Args:
          streams: By task.
          budgets: By task.
          shards: Devices; each has samples of its own, so that no index crosses devices.
          own: Of them, those whose samples are made; None: all.
        """
        self._streams, self._budgets, self._shards = streams, budgets, shards
        self._own = range(shards) if own is None else own
        self._warned = False

    def __call__(self, step: int) -> GraphBatch:
        """Logs once if budgets cut something off."""
        tasks, num_cut = {}, 0
        for name, stream in self._streams.items():
            made = [
                stream.batch(int(step), self._budgets[name], shard, self._shards)
                for shard in self._own
            ]
            num_cut += sum(cut for _, cut in made)
            tasks[name] = jax.tree.map(POOL.stack, *(b for b, _ in made))
        if num_cut and not self._warned:
            self._warned = True
            _log.warning(
                "step %d: %d sampled edges or texts did not fit the calibrated sizes and were "
                "left out; this is said once",
                *(step, num_cut),
            )
        return GraphBatch(tasks, np.concatenate([b.mask for b in tasks.values()], axis=1))


def make_streams(
    file: GraphModelFile,
    groups: Mapping[str, Groups],
    store: GraphStore,
    *,
    hides: Mapping[str, tuple[str, ...]],
    num_negatives: int | None,
    know_links: bool,
    correct: bool,
    batch_size: float,
    size_power: float,
    seed: int,
    engine: GraphEngine,
    old: OldVersion | None = None,
) -> dict[str, TaskStream]:
    """Every task's part of the batch, of a static shape.

    Args:
      file: Names the tasks and how neighbours are drawn.
      groups: Task -> its training groups.
      store: The graph.
      hides: Task -> edge keys that hold the supervised link.
      num_negatives: Fresh ones per positive; None: those of the tables.
      know_links: Batches say which of their senders and receivers are linked.
      correct: Batches say how often their receivers are met.
      batch_size: Pairs of all tasks on one device.
      size_power: A task's share of them is its number of groups to this power.
      seed: Of the order and of the draws.
      engine: Draws the neighbourhoods.
      old: As in `PairSampler`.
    """
    total = sum(len(groups[task.name]) ** size_power for task in file.tasks)
    streams = {}
    for number, task in enumerate(file.tasks):
        mine, negatives = groups[task.name], None
        group_size = int(mine.sizes.max())
        if num_negatives is not None:
            negatives = UniformNegatives(mine, store, task, num_negatives)
            group_size = int((mine.num_positives * (1 + num_negatives) + mine.num_mined).max())
        num_pairs = max(group_size, round(len(mine) ** size_power / total * batch_size))
        streams[task.name] = TaskStream(
            mine,
            PairSampler(
                store,
                task,
                hides[task.name],
                file.sampling,
                visible_splits=TRAIN_SPLITS,
                engine=engine,
                group_size=group_size,
                old=old,
            ),
            negatives,
            num_groups=num_pairs // group_size,
            num_pairs=num_pairs,
            seed=seed + number,
            links=KnownLinks(mine.positives()) if know_links else None,
            log_q=_log_q(mine, store.num_nodes[task.receiver], num_negatives) if correct else None,
        )
    return streams


def _log_q(groups: Groups, num_nodes: int, num_negatives: int | None) -> Float32[np.ndarray, " N"]:
    """Log of each receiver's share of the rows of all batches; of one row where it has none."""
    if num_negatives is None:
        rows = groups.take(np.arange(len(groups))).receiver
        counts = np.bincount(rows, minlength=num_nodes).astype(np.float64)
    else:  # Fresh ones are drawn evenly from the receivers of positives.
        counts = np.bincount(groups.positives().receiver, minlength=num_nodes).astype(np.float64)
        pool, num_drawn = counts > 0, num_negatives * counts.sum()
        rows = groups.take(np.arange(len(groups)), drawn=False).receiver
        counts = np.bincount(rows, minlength=num_nodes).astype(np.float64)  # With the mined ones.
        counts[pool] += num_drawn / pool.sum()
    return np.log(np.maximum(counts, 1.0) / counts.sum()).astype(np.float32)


def make_batches(maker: Callable[[int], GraphBatch]) -> Any:
    """Endless batches made by threads.

    Returns:
      A Grain iterator; `get_state` and `set_state` are its position, threads do not change it.
    """
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BUFFERED_BATCHES)
    dataset = grain.MapDataset.range(1 << 31).map(maker)
    return iter(dataset.to_iter_dataset(options))


def stacked(
    make: Callable[[Sequence[int]], list[GraphBatch]], every: int
) -> Callable[[int], GraphBatch]:
    """So many batches as one, whose arrays have them as leading axis.

    Args:
      make: Numbers of batches -> these, of one shape.
      every: How many.
    """

    def maker(step: int) -> GraphBatch:
        first = int(step) * every
        return jax.tree.map(POOL.stack, *make(range(first, first + every)))

    return maker


def count_pairs(batch: GraphBatch, share: float = 1.0) -> Counts:
    """Real and padded pairs of a host batch.

    Its figures, where it was sampled on the host: `neighbours`, and their share of the slots,
    `neighbour_fill`.

    Args:
      batch: Of this process.
      share: Of the rows of all processes; the others are taken to be like these.
    """
    drawn = [
        subgraph
        for task in batch.tasks.values()
        for subgraph in (task.sender, task.receiver)
        if isinstance(subgraph, Subgraph)
    ]
    masks = [table.mask for subgraph in drawn for hop in subgraph.hops for table in hop.values()]
    figures = {}
    if masks:
        neighbours, slots = sum(int(np.sum(m)) for m in masks), sum(np.size(m) for m in masks)
        figures = {
            "neighbours": neighbours / share,
            "neighbour_fill": neighbours / max(slots, 1),
        }
    real, rows = int(np.sum(batch.mask)), int(np.size(batch.mask))
    return Counts(round(real / share), round(rows / share), figures=figures)
