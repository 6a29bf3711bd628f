"""Vectors of many texts: sorted by length, batches of about equal numbers of tokens.

Reading and padding run in a thread ahead of the device, across the borders of the parts that the
vectors are asked for in.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from star_jax.parallel import processes
from star_jax.parallel.mesh import num_row_shards
from star_jax.parallel.rules import batch_shardings, put
from star_jax.pipeline.ahead import ahead
from star_jax.pipeline.lengths import choose_lengths, padded_length
from star_jax.pipeline.text_arrays import pad_tokens
from star_jax.pipeline.text_records import TextRecords
from star_jax.shapes import PyTree
from star_jax.text.bi_encoder import BiEncoder, encode
from star_jax.text.packing import Tokens

OnBatch = Callable[[int, int], None]
"""Called after each batch with its numbers of texts and of real tokens."""

ACCELERATOR_TOKENS = 16_384  # Of a batch, on one device.
_AHEAD_BATCHES = 4


@dataclass
class EncodingCounts:
    """What encoding has cost so far."""

    num_texts: int = 0
    num_tokens: int = 0
    num_slots: int = 0  # Tokens, padding included.
    data_wait_s: float = 0.0  # For batches; the device may have worked meanwhile.


class _Batch(NamedTuple):
    part_size: int  # Texts of its part.
    ends_part: bool
    chosen: Int[np.ndarray, " _"]  # Rows of the part's vectors.
    num_tokens: int
    texts: Tokens  # On the device.


def make_encode(model: BiEncoder) -> jax.stages.Wrapped:
    """(variables, texts) -> their vectors, compiled once per shape."""
    return jax.jit(lambda variables, texts: encode(model, variables, texts, None))


class BulkEncoder:
    """Encodes records with a few compiled shapes, each of about `batch_tokens` tokens.

    Attributes:
      embedding_size: Width of the vectors.
      counts: Of all calls; slots are counted when they are made.
    """

    def __init__(
        self,
        model: BiEncoder,
        records: TextRecords,
        mesh: Mesh,
        *,
        lengths: tuple[int, ...],
        batch_tokens: int | None,
    ) -> None:
        """Prepares the shapes.

        Args:
          model: Encodes.
          records: All texts.
          mesh: Rows of a batch are split over its devices, but for `tensor`.
          lengths: Padded lengths, rising.
          batch_tokens: Tokens of a batch, padding included, on one device. None: 1024 on a CPU,
            whose caches hold so many, 16384 on an accelerator.
        """
        self._records, self._mesh, self._lengths = records, mesh, lengths
        by_default = 1024 if mesh.devices.flat[0].platform == "cpu" else ACCELERATOR_TOKENS
        self._batch_tokens = batch_tokens or by_default
        self._encode = make_encode(model)
        self.embedding_size = model.tower.embedding_size
        self.counts = EncodingCounts()

    def __call__(
        self, variables: PyTree, records: Int[np.ndarray, " N"], on_batch: OnBatch
    ) -> Float32[np.ndarray, "N E"]:
        """Vectors of some records, in the order given.

        Args:
          variables: Of the model, on the mesh.
          records: Which texts; the order of their computation is by length.
          on_batch: For progress.
        """
        if not len(records):
            return self._empty(0)
        (vectors,) = self.parts(variables, [records], on_batch)
        return vectors

    def parts(
        self, variables: PyTree, parts: Iterable[Int[np.ndarray, " _"]], on_batch: OnBatch
    ) -> Iterator[Float32[np.ndarray, "_ E"]]:
        """Vectors of the records of each part, one part after the other.

        The device works on a batch while the vectors of the one before are taken from it, and
        while later batches, those of the next part too, are read and padded in a thread.

        Args:
          variables: Of the model, on the mesh.
          parts: Records of each, at least one.
          on_batch: For progress.
        """
        waited_before = self.counts.data_wait_s
        vectors, waiting = self._empty(0), None
        with ahead(self._batches(parts), _AHEAD_BATCHES) as batches:
            for batch in batches:
                with jax.set_mesh(self._mesh):  # Kernels that XLA cannot split follow it.
                    running = (batch, self._encode(variables, batch.texts))
                self.counts.data_wait_s = waited_before + batches.waited_s
                if waiting is not None:
                    vectors = self._take(vectors, *waiting, on_batch)
                    if waiting[0].ends_part:
                        yield vectors
                        vectors = self._empty(0)
                waiting = running
            if waiting is not None:
                yield self._take(vectors, *waiting, on_batch)

    def _batches(self, parts: Iterable[Int[np.ndarray, " _"]]) -> Iterator[_Batch]:
        for records in parts:
            lengths = self._records.lengths[records]
            plan = list(self._plan(lengths))
            for number, (chosen, length) in enumerate(plan):
                rows, num_rows = np.arange(len(chosen)), self._rows(length)
                texts = pad_tokens(self._records, records[chosen], rows, num_rows, length, 1)
                placed = put(texts, batch_shardings(texts, self._mesh))
                num_tokens = int(lengths[chosen].sum())
                self.counts.num_slots += num_rows * length
                yield _Batch(len(records), number == len(plan) - 1, chosen, num_tokens, placed)

    def _plan(self, lengths: Int[np.ndarray, " N"]) -> Iterator[tuple[Int[np.ndarray, " _"], int]]:
        """(Rows of the part, padded length) of every batch, shortest first."""
        order = np.argsort(lengths, kind="stable")
        start = 0
        for length in self._lengths:
            end = int(np.searchsorted(lengths[order], length, side="right"))
            step = self._rows(length)
            for first in range(start, end, step):
                yield order[first : min(first + step, end)], length
            start = max(start, end)
        if start < len(order):
            padded_length(int(lengths.max()), self._lengths)  # Raises: no length holds it.

    def _rows(self, length: int) -> int:
        return num_row_shards(self._mesh) * max(1, self._batch_tokens // length)

    def _empty(self, num_texts: int) -> Float32[np.ndarray, "N E"]:
        return np.empty((num_texts, self.embedding_size), np.float32)

    def _take(
        self,
        vectors: Float32[np.ndarray, "N E"],
        batch: _Batch,
        result: jax.Array,
        on_batch: OnBatch,
    ) -> Float32[np.ndarray, "M E"]:
        """The vectors of a part with those of one more batch."""
        vectors = vectors if len(vectors) else self._empty(batch.part_size)
        vectors[batch.chosen] = processes.fetched(result)[: len(batch.chosen)]
        self.counts.num_texts += len(batch.chosen)
        self.counts.num_tokens += batch.num_tokens
        on_batch(len(batch.chosen), batch.num_tokens)
        return vectors


def bulk_lengths(lengths: Int[np.ndarray, " N"], count: int) -> tuple[int, ...]:
    """Padded lengths for all texts; one when there is no text."""
    return choose_lengths(lengths, count) if len(lengths) else (1,)
