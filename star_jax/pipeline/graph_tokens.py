"""Batches of the graph with the tokens of their texts: every different text once per device."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from star_jax.graph.batches import NodeTable
from star_jax.graph.model import ROLES, GraphBatch
from star_jax.graph.samplers.memory import POOL
from star_jax.pipeline.graph_text import BatchTexts, is_numbered
from star_jax.pipeline.lengths import choose_lengths, padded_length
from star_jax.pipeline.text_arrays import pad_tokens
from star_jax.pipeline.text_records import TextRecords
from star_jax.text.packing import Tokens

_CALIBRATED_BATCHES = 8
_HEADROOM = 1.1
_MULTIPLE = 8

MakeBatch = Callable[[int], GraphBatch]
"""Step -> its batch, on the host."""


class TextSizes(NamedTuple):
    """Static sizes of a batch's texts.

    Attributes:
      rows: Of one device: room for what batches need, then for all that their tables can name.
      lengths: Padded ones.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]


class TokenBatches:
    """Puts tokens beside the numbers of texts; a pure function of the step, as what it wraps."""

    def __init__(
        self,
        make: MakeBatch,
        records: TextRecords,
        *,
        num_lengths: int,
        trained: int | None,
        seed: int,
    ) -> None:
        """Looks at a few batches to see how many texts they have, and how long.

        Args:
          make: Batches whose node tables hold numbers in the place of text vectors.
          records: The texts.
          num_lengths: Padded lengths.
          trained: Texts of a batch that the gradient flows through, of all devices, each of which
            has an equal share, rounded up; None: all.
          seed: Of the choice among them.
        """
        self._make, self._records, self._seed = make, records, seed
        self._trained = trained
        self.sizes = self._calibrated(num_lengths)

    def __call__(self, step: int) -> GraphBatch:
        """The batch of a step."""
        return self.alike([step])[0]

    def alike(self, steps: Sequence[int]) -> list[GraphBatch]:
        """The batches of several steps, of one shape."""
        made = [self._make(step) for step in steps]
        shards = range(made[0].mask.shape[0])
        different = [[self._different(batch, shard) for shard in shards] for batch in made]
        all_parts = [each for of_batch in different for each in of_batch]
        num_rows = padded_length(max(map(len, all_parts)), self.sizes.rows)
        longest = max(int(self._records.lengths[each].max(initial=1)) for each in all_parts)
        length = padded_length(longest, self.sizes.lengths)
        return [
            self._finished(step, batch, parts, num_rows, length)
            for step, batch, parts in zip(steps, made, different, strict=True)
        ]

    def _finished(
        self,
        step: int,
        batch: GraphBatch,
        different: list[Int[np.ndarray, " _"]],
        num_rows: int,
        length: int,
    ) -> GraphBatch:
        order = [
            each[np.random.default_rng((self._seed, int(step), shard)).permutation(len(each))]
            for shard, each in enumerate(different)
        ]
        texts = [self._tokens(each, num_rows, length, len(order)) for each in order]
        return _numbered(
            batch._replace(texts=jax.tree.map(POOL.stack, *texts)),
            lambda name, numbers, shard: _places(order[shard], self._records.of(name, numbers)),
        )

    def _different(self, batch: GraphBatch, shard: int) -> Int[np.ndarray, " U"]:
        """Records of one device's part, each once."""
        found = [self._records.of(name, _numbers(table, shard)) for name, table in _tables(batch)]
        return np.unique(np.concatenate([np.zeros(0, np.int32), *found]))

    def _tokens(
        self, chosen: Int[np.ndarray, " U"], num_rows: int, length: int, shards: int
    ) -> BatchTexts:
        trained = num_rows
        if self._trained is not None:
            trained = min(-(-self._trained // shards), num_rows)

        def table(first: int, end: int) -> Tokens | None:
            if end == first:
                return None
            part = chosen[first:end]
            return pad_tokens(self._records, part, np.arange(len(part)), end - first, length, 1)

        return BatchTexts(table(0, trained), table(trained, num_rows))

    def _calibrated(self, num_lengths: int) -> TextSizes:
        needed, longest, bound = 1, [], 0
        names: set[str] = set()
        for step in range(_CALIBRATED_BATCHES):
            batch = self._make(step)
            names |= {name for name, _ in _tables(batch)}
            bound = sum(table.texts.shape[1] for _, table in _tables(batch))
            for shard in range(batch.mask.shape[0]):
                different = self._different(batch, shard)
                needed = max(needed, len(different))
                longest.append(int(self._records.lengths[different].max(initial=1)))
        of_types = [self._records.lengths[np.unique(self._records.records[n])] for n in names]
        longest.append(max((int(lengths.max(initial=1)) for lengths in of_types), default=1))
        bound = _padded(max(bound, 1))
        rows = sorted({min(_padded(int(needed * _HEADROOM)), bound), bound})
        return TextSizes(tuple(rows), choose_lengths(np.asarray(longest), num_lengths))


def count_texts(batch: GraphBatch) -> dict[str, float]:
    """Real `text_tokens` of a host batch, and their share of all, `text_fill`."""
    tables = [table for table in batch.texts if table is not None]
    real = sum(int(np.sum(table.lengths)) for table in tables)
    slots = sum(np.size(table.tokens) for table in tables)
    return {"text_tokens": float(real), "text_fill": real / max(slots, 1)}


def _tables(batch: GraphBatch) -> Iterator[tuple[str, NodeTable]]:
    """Every table with numbers of texts, and its node type."""
    for pairs in batch.tasks.values():
        for role in ROLES:
            for name, table in getattr(pairs, role).nodes.items():
                if is_numbered(table):
                    yield name, table


def _numbers(table: NodeTable, shard: int) -> Int[np.ndarray, " U"]:
    """Numbers of one device's texts; those behind them are padding."""
    real = int(np.max(table.text_row[shard], initial=-1)) + 1
    return np.asarray(table.texts[shard, :real, 0])


def _numbered(
    batch: GraphBatch, rows_of: Callable[[str, np.ndarray, int], np.ndarray]
) -> GraphBatch:
    """Rows of the batch's texts in the place of their numbers, -1 where there is no text."""

    def of_table(name: str, table: NodeTable) -> NodeTable:
        if not is_numbered(table):
            return table
        texts = np.full(table.texts.shape, -1, np.int32)
        for shard in range(len(texts)):
            numbers = _numbers(table, shard)
            texts[shard, : len(numbers), 0] = rows_of(name, numbers, shard)
        return table._replace(texts=texts)

    return batch.with_tables(of_table)


def _places(order: Int[np.ndarray, " U"], records: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Where each record stands in an order of all of them."""
    sorted_ = np.argsort(order)
    return sorted_[np.searchsorted(order, records, sorter=sorted_)].astype(np.int32)


def _padded(count: int) -> int:
    return -(-count // _MULTIPLE) * _MULTIPLE
