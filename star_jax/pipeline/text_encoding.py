"""Vectors of many texts: sorted by length, batches of about equal numbers of tokens."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from star_jax.parallel.rules import batch_shardings, put
from star_jax.pipeline.lengths import choose_lengths, padded_length
from star_jax.pipeline.text_arrays import pad_tokens
from star_jax.pipeline.text_records import TextRecords
from star_jax.shapes import PyTree
from star_jax.text.bi_encoder import BiEncoder, encode

OnBatch = Callable[[int, int], None]
"""Called after each batch with its numbers of texts and of real tokens."""


class BulkEncoder:
    """Encodes records with a few compiled shapes, each of about `batch_tokens` tokens."""

    def __init__(
        self,
        model: BiEncoder,
        records: TextRecords,
        mesh: Mesh,
        *,
        lengths: tuple[int, ...],
        batch_tokens: int,
    ) -> None:
        """Prepares the shapes.

        Args:
          model: Encodes.
          records: All texts.
          mesh: Rows of a batch are split over its devices.
          lengths: Padded lengths, rising.
          batch_tokens: Tokens of a batch, padding included, on one device.
        """
        self._records, self._mesh, self._lengths = records, mesh, lengths
        self._batch_tokens = batch_tokens
        self._encode = jax.jit(lambda variables, texts: encode(model, variables, texts, None))
        self.embedding_size = model.tower.embedding_size

    def __call__(
        self, variables: PyTree, records: Int[np.ndarray, " N"], on_batch: OnBatch
    ) -> Float32[np.ndarray, "N E"]:
        """Vectors of some records, in the order given.

        Args:
          variables: Of the model, on the mesh.
          records: Which texts; the order of their computation is by length.
          on_batch: For progress.
        """
        vectors = np.empty((len(records), self.embedding_size), np.float32)
        lengths = self._records.lengths[records]
        waiting = None  # The device works on one batch while the host makes the next.
        for chosen, length in self._plan(lengths):
            rows = np.arange(len(chosen))
            texts = pad_tokens(self._records, records[chosen], rows, self._rows(length), length, 1)
            placed = put(texts, batch_shardings(texts, self._mesh))
            with jax.set_mesh(self._mesh):  # Kernels that XLA cannot split follow it.
                result = self._encode(variables, placed)
            if waiting is not None:
                self._take(vectors, lengths, *waiting, on_batch)
            waiting = (chosen, result)
        if waiting is not None:
            self._take(vectors, lengths, *waiting, on_batch)
        return vectors

    def _plan(self, lengths: Int[np.ndarray, " N"]) -> Iterator[tuple[Int[np.ndarray, " _"], int]]:
        """(Rows of the request, padded length) of every batch, shortest first."""
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
        return self._mesh.size * max(1, self._batch_tokens // length)

    @staticmethod
    def _take(
        vectors: Float32[np.ndarray, "N E"],
        lengths: Int[np.ndarray, " N"],
        chosen: Int[np.ndarray, " _"],
        result: jax.Array,
        on_batch: OnBatch,
    ) -> None:
        vectors[chosen] = np.asarray(result)[: len(chosen)]
        on_batch(len(chosen), int(lengths[chosen].sum()))


def bulk_lengths(lengths: Int[np.ndarray, " N"], count: int) -> tuple[int, ...]:
    """Padded lengths for all texts; one when there is no text."""
    return choose_lengths(lengths, count) if len(lengths) else (1,)
