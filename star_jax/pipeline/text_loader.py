"""Batches of text pairs: Grain shuffles groups, a batch encodes every different text once."""

import logging
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jaxtyping import Int, Int32

from star_jax.config import InputError
from star_jax.pipeline.known_pairs import KnownPairs
from star_jax.pipeline.layouts import (
    Layout,
    choose_layouts,
    choose_packing,
    cut,
    place,
)
from star_jax.pipeline.text_arrays import put_texts
from star_jax.pipeline.text_pairs import PairRecords
from star_jax.pipeline.text_records import Records
from star_jax.text.bi_encoder import TextBatch
from star_jax.train.loop import Counts

_THREADS = 2
_BUFFERED_BATCHES = 4
_SAMPLED_PAIRS = 1 << 14  # To see how long the texts of a batch are,
_FEWEST_SAMPLES = 16  # in so many batches at least.
_ROW_MULTIPLE = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """Static sizes of a batch.

    Attributes:
      num_groups: Positives of a microbatch, each with its negatives.
      num_negatives: Per positive; groups with more give a random choice of them.
      num_hard_negatives: Per positive, likewise of the mined ones.
      num_microbatches: Of one batch; a microbatch has its own loss.
      num_chunks: Of the texts of a microbatch, which are encoded one after the other.
      num_tables: Tables of texts, each with its own padded length.
      pack_length: Length of rows that hold several texts, instead of tables; None packs nothing.
      num_pools: Parts of a microbatch that find their negatives in themselves.
      num_shards: Parts that the mesh splits a batch into: rows are a multiple of it.
    """

    num_groups: int
    num_negatives: int
    num_hard_negatives: int
    num_microbatches: int
    num_chunks: int
    num_tables: int
    pack_length: int | None
    num_pools: int
    num_shards: int

    @property
    def group_size(self) -> int:
        """Pairs of a positive with all its negatives."""
        return 1 + self.num_negatives + self.num_hard_negatives

    @property
    def num_rows(self) -> int:
        """Pairs of a microbatch, padding included."""
        rows = self.num_groups * self.group_size
        return -(-rows // self.num_shards) * self.num_shards


class _Part(NamedTuple):
    """What a microbatch is made of."""

    rows: Int[np.ndarray, " B"]
    """Pairs; -1 is padding."""
    texts: Int[np.ndarray, " U"]
    """The different texts that they point to."""
    slots: Int[np.ndarray, " U"]
    """Where each text goes in the layout."""


class BatchBuilder:
    """Makes batch number i from the groups that Grain chose for it; a pure function of both."""

    def __init__(
        self,
        pairs: PairRecords,
        records: Records,
        shape: BatchShape,
        *,
        known: KnownPairs,
        seed: int,
    ) -> None:
        """Prepares the groups.

        Args:
          pairs: At least one; their order does not matter.
          records: What the pairs point at.
          shape: Of every batch.
          known: Pairs that must never serve as negatives.
          seed: Of the choice among a group's negatives.
        """
        order = np.lexsort((-pairs.label.astype(np.int64), pairs.group))  # Positives first.
        self._pairs = PairRecords(*(column[order] for column in pairs))
        starts = np.flatnonzero(np.diff(self._pairs.group, prepend=self._pairs.group[0] - 1))
        self._bounds = np.append(starts, len(order))
        self._records, self._shape, self._seed = records, shape, seed
        self._known = known
        self._taught = not np.isnan(pairs.teacher).all()
        self._layouts = self._choose_layouts()

    @property
    def num_groups(self) -> int:
        """Groups of one epoch."""
        return len(self._bounds) - 1

    def __call__(self, index: int, groups: Int[np.ndarray, " G"]) -> TextBatch:
        """Builds a batch; with several microbatches every array has them as leading axis.

        Args:
          index: Number of the batch since the start of training.
          groups: Of the whole batch, in order.
        """
        rng = np.random.default_rng((self._seed, index))
        rows = [self._rows(part, rng) for part in np.split(groups, self._shape.num_microbatches)]
        layout, parts = self._fit(index, rows)
        micro = [self._microbatch(part, layout) for part in parts]
        if len(micro) == 1:
            return micro[0]
        return jax.tree.map(lambda *arrays: np.stack(arrays), *micro)

    def _fit(self, index: int, rows: list[Int[np.ndarray, " B"]]) -> tuple[Layout, list[_Part]]:
        """The cheapest layout for all microbatches; groups that none has room for go, aloud."""
        for layout in self._layouts:
            parts = [self._place(part, layout) for part in rows]
            fitting = [part for part in parts if part is not None]
            if len(fitting) == len(rows):
                return layout, fitting
        layout = self._layouts[-1]
        return layout, [self._place_most(index, part, layout) for part in rows]

    def _place(self, rows: Int[np.ndarray, " B"], layout: Layout) -> _Part | None:
        """None when the texts of the rows do not all fit."""
        texts = self._texts(rows)
        slots = place(self._records.lengths[texts], layout, self._shape.num_chunks)
        return None if slots is None else _Part(rows, texts, slots)

    def _place_most(self, index: int, rows: Int[np.ndarray, " B"], layout: Layout) -> _Part:
        """The first groups, as many as fit."""
        num_groups = kept = self._shape.num_groups
        while (part := self._place(rows, layout)) is None:
            kept -= 1
            rows = np.where(np.arange(len(rows)) < kept * self._shape.group_size, rows, -1)
        if kept < num_groups:
            _log.warning(
                "batch %d: %d of %d groups found no room for their texts and are left out",
                *(index, num_groups - kept, num_groups),
            )
        return part

    def _rows(
        self, groups: Int[np.ndarray, " G"], rng: np.random.Generator
    ) -> Int[np.ndarray, " B"]:
        """Rows of the pairs of some groups; -1 where a group has too few negatives."""
        shape = self._shape
        rows = np.full((len(groups), shape.group_size), -1, np.int64)
        for i, group in enumerate(groups):
            first, end = int(self._bounds[group]), int(self._bounds[group + 1])
            negatives = np.arange(first + 1, end)
            hard = self._pairs.hard[first + 1 : end]
            members = np.concatenate(
                [
                    [first],
                    _some(negatives[~hard], shape.num_negatives, rng),
                    _some(negatives[hard], shape.num_hard_negatives, rng),
                ]
            )
            rows[i, : len(members)] = members
        padding = self._shape.num_rows - rows.size
        return np.pad(rows.reshape(-1), (0, padding), constant_values=-1)

    def _texts(self, rows: Int[np.ndarray, " B"]) -> Int[np.ndarray, " U"]:
        """The different texts of a microbatch."""
        pairs, real = self._pairs, rows[rows >= 0]
        used = np.concatenate([pairs.document[real], pairs.profile[real], pairs.resume[real]])
        return np.unique(used[used >= 0])

    def _microbatch(self, part: _Part, layout: Layout) -> TextBatch:
        rows, texts, slots = part
        pairs, mask, shape = self._pairs, rows >= 0, self._shape

        def rows_of(column: Int32[np.ndarray, " N"]) -> Int32[np.ndarray, " B"]:
            used = np.where(mask, column[rows], -1)
            found = slots[np.searchsorted(texts, np.maximum(used, texts[0]))] if len(texts) else -1
            return np.where(used >= 0, found, -1).astype(np.int32)

        sender = np.where(mask, pairs.sender[rows], -1).astype(np.int32)
        receiver = np.where(mask, pairs.receiver[rows], -1).astype(np.int32)
        columns: dict[str, Any] = {  # Host arrays; `Step.place` makes device arrays of them.
            "texts": put_texts(self._records, texts, slots, layout, shape.num_chunks),
            "document": rows_of(pairs.document),
            "profile": rows_of(pairs.profile),
            "resume": rows_of(pairs.resume),
            "label": np.where(mask, pairs.label[rows], 0).astype(np.float32),
            "mask": mask,
            "sender": sender,
            "receiver": receiver,
            "known_positive": self._known.between(sender, receiver),
        }
        if self._taught:
            columns["teacher"] = np.where(mask, pairs.teacher[rows], np.float32(np.nan))
        if shape.num_pools > 1:
            columns["pool"] = np.arange(shape.num_rows, dtype=np.int32) // (
                shape.num_rows // shape.num_pools
            )
        return TextBatch(**columns)

    def _texts_of_groups(self, column: Int32[np.ndarray, " N"]) -> int:
        """Most texts of a side of its senders that a microbatch has: mostly one per group."""
        one_each = np.array_equal(
            column, np.repeat(column[self._bounds[:-1]], np.diff(self._bounds))
        )
        return self._shape.num_groups if one_each else self._shape.num_rows

    def _choose_layouts(self) -> tuple[Layout, ...]:
        """Shapes of a chunk that hold the texts of typical microbatches; without packing, any."""
        shape, rng = self._shape, np.random.default_rng(0)
        num_samples = max(_FEWEST_SAMPLES, _SAMPLED_PAIRS // shape.num_rows)
        # As batches are: a group returns when all others were drawn.
        needed = num_samples * shape.num_groups
        epochs = [rng.permutation(self.num_groups) for _ in range(-(-needed // self.num_groups))]
        samples = [
            self._records.lengths[self._texts(self._rows(groups, rng))]
            for groups in np.concatenate(epochs)[:needed].reshape(num_samples, -1)
        ]
        pairs = self._pairs
        kinds = [
            (pairs.document, shape.num_rows),
            (pairs.profile, self._texts_of_groups(pairs.profile)),
            (pairs.resume, self._texts_of_groups(pairs.resume)),
        ]
        longest = max(int(self._records.lengths[c[c >= 0]].max(initial=1)) for c, _ in kinds)
        if shape.pack_length is not None:
            if longest > shape.pack_length:
                raise InputError(
                    f"pack_length {shape.pack_length} is below the longest text, {longest} tokens; "
                    "raise it, or lower tower.limits"
                )
            return (
                choose_packing(
                    samples,
                    shape.pack_length,
                    num_chunks=shape.num_chunks,
                    row_multiple=shape.num_shards,
                ),
            )
        layouts = choose_layouts(
            samples,
            shape.num_tables,
            max_texts=max(1, sum(most for column, most in kinds if (column >= 0).any())),
            max_length=longest,
            row_multiple=math.lcm(_ROW_MULTIPLE, shape.num_shards) * shape.num_chunks,
        )
        return tuple(cut(layout, shape.num_chunks) for layout in layouts)


def _some(
    rows: Int[np.ndarray, " M"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, " _"]:
    """All rows, or a random choice where there are more than `count`."""
    return rows if len(rows) <= count else rng.choice(rows, count, replace=False)


def make_batches(builder: BatchBuilder, shape: BatchShape, *, seed: int) -> Any:
    """Endless batches: every epoch visits all groups once, in another order.

    Returns:
      A Grain iterator; `get_state` and `set_state` are its position, threads do not change it.
    """
    size = shape.num_groups * shape.num_microbatches
    dataset = (
        grain.MapDataset.range(builder.num_groups)
        .shuffle(seed=seed)
        .repeat()
        .batch(size, batch_fn=np.array)
        .map_with_index(builder)
    )
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BUFFERED_BATCHES)
    return iter(dataset.to_iter_dataset(options))


def count_tokens(batch: TextBatch) -> Counts:
    """Real and padded tokens of a host batch."""
    real = sum(int(table.lengths.sum()) for table in batch.texts)
    return Counts(real, sum(table.tokens.size for table in batch.texts))
