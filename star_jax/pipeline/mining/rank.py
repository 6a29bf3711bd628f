"""The best of a pool for every training positive: brute force over blocks of static shape."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Int64

from star_jax.losses.contrastive import combine
from star_jax.pipeline.mining.pool import Barred, Pool, columns_of
from star_jax.pipeline.tables.read import PairTable
from star_jax.pipeline.text_scoring import component
from star_jax.shapes import NO_TIME, PyTree, check_int32
from star_jax.text.bi_encoder import BiEncoder, score, score_grid
from star_jax.text.objective import Vectors

By = Literal["cosine", "scorer"]
_FEWEST_BARRED = 256
_ROW_MULTIPLE = 8


class Candidates(NamedTuple):
    """Of some positives, best first; equal scores by node."""

    rows: Int64[np.ndarray, " P"]  # Which positives.
    positive: Float32[np.ndarray, " P"]  # Score of each positive itself.
    score: Float32[np.ndarray, "P K"]  # -inf where nothing is left.
    column: Int32[np.ndarray, "P K"]  # Of the pool.


class _Documents(NamedTuple):
    """A block of the pool; times are ranks, 0 is unknown."""

    vector: Float[Array, "C E"]
    created: Int[Array, " C"]
    after: Int[Array, " C"]
    until: Int[Array, " C"]
    first: Bool[Array, " C"]
    start: Int[Array, ""]


class _Best(NamedTuple):
    score: Float[Array, "Q K"]
    column: Int[Array, "Q K"]


Compare = Callable[[PyTree, Vectors, Float[Array, "C E"]], Float[Array, "Q C"]]


class Ranker:
    """Scores blocks of positives against blocks of the pool; one compilation for all of them."""

    def __init__(
        self,
        pool: Pool,
        documents: Float32[np.ndarray, "N E"],
        requests: Float32[np.ndarray, "M E"],
        *,
        by: By,
        scorer: tuple[BiEncoder, PyTree],
        top: int,
        block_requests: int,
        block_documents: int,
    ) -> None:
        """Prepares it.

        Args:
          pool: Where negatives come from.
          documents: Vector of every text of the receivers' node type.
          requests: Vector of every text of the senders' node type.
          by: The cosine of the document with the unit mean of the request's texts, or the logit
            of the scorer.
          scorer: The model, and its variables with "scorer".
          top: How many candidates of each positive.
          block_requests: Positives scored at a time,
          block_documents: against so many versions.
        """
        model, self._variables = scorer
        self._pool, self._documents, self._requests = pool, documents, requests
        self._top, self._block_requests = top, block_requests
        self._block = min(block_documents, _round_up(len(pool.receiver), _ROW_MULTIPLE))
        compare = _cosines if by == "cosine" else partial(_logits, model)
        own = _own_cosine if by == "cosine" else partial(score, model)
        self._rank = jax.jit(partial(_rank_block, compare), donate_argnames="best")
        self._own = jax.jit(own)

    def __call__(
        self, pairs: PairTable, positives: Int[np.ndarray, " P"], closed: Barred
    ) -> Iterator[Candidates]:
        """The candidates of all positives, block after block.

        Args:
          pairs: Of the train split.
          positives: Rows of them with a vector on both sides.
          closed: What each of the positives may not have.
        """
        pool = self._pool
        bounds = (pool.created, pool.after, pool.until)
        times = np.unique(np.concatenate([[NO_TIME], pairs.t[positives], *bounds]))
        ranks = [check_int32("time rank", np.searchsorted(times, column)) for column in bounds]
        t = np.searchsorted(times, pairs.t[positives]).astype(np.int32)
        size = min(self._block_requests, _round_up(len(positives), _ROW_MULTIPLE))
        for start in range(0, len(positives), size):
            rows = np.arange(start, min(start + size, len(positives)))
            vectors = self._vectors(pairs, positives[rows], size)
            own = np.asarray(self._own(self._variables, vectors))[: len(rows)]
            taken = columns_of(closed, rows, pool)
            times_of_block = jnp.asarray(_padded(t[rows], size, 0))
            best = _Best(
                jnp.full((size, self._top), -jnp.inf),
                jnp.full((size, self._top), -1, jnp.int32),
            )
            for first in range(0, len(pool.receiver), self._block):
                block = self._documents_from(first, ranks)
                gone = _within(taken, first, self._block, size)
                best = self._rank(self._variables, best, vectors, times_of_block, block, gone)
            found = [np.asarray(array)[: len(rows)] for array in best]
            yield Candidates(rows, own, *found)

    def _vectors(self, pairs: PairTable, rows: Int[np.ndarray, " Q"], size: int) -> Vectors:
        return Vectors(
            component(self._documents, pairs.receiver_text[rows], size),
            component(self._requests, pairs.sender_text[rows], size),
            component(self._requests, pairs.sender_resume[rows], size),
        )

    def _documents_from(self, start: int, ranks: list[Int32[np.ndarray, " C"]]) -> _Documents:
        part, size = slice(start, start + self._block), self._block
        vector = component(self._documents, self._pool.text[part], size).vector
        created, after, until = (jnp.asarray(_padded(rank[part], size, 0)) for rank in ranks)
        first = jnp.asarray(_padded(self._pool.first[part], size, False))
        # Padding holds at no time: nothing is after rank 0 and until rank 0, nothing is first.
        return _Documents(vector, created, after, until, first, jnp.int32(start))


def _rank_block(
    compare: Compare,
    variables: PyTree,
    best: _Best,
    requests: Vectors,
    t: Int[Array, " Q"],
    documents: _Documents,
    gone: Int[Array, "A 2"],
) -> _Best:
    """The best of those so far and of a block."""
    at, unknown = t[:, None], (t == 0)[:, None]
    existed = documents.created[None, :] <= at
    held = (documents.after[None, :] < at) & (at <= documents.until[None, :])
    valid = jnp.where(unknown, documents.first[None, :], existed & held)
    valid = valid.at[gone[:, 0], gone[:, 1]].set(False, mode="drop")
    scores = jnp.where(valid, compare(variables, requests, documents.vector), -jnp.inf)
    columns = documents.start + jnp.arange(scores.shape[1], dtype=jnp.int32)
    joined = jnp.concatenate([best.column, jnp.broadcast_to(columns, scores.shape)], axis=1)
    # Of equal scores top_k takes the first: earlier columns, hence earlier nodes.
    scores, place = jax.lax.top_k(
        jnp.concatenate([best.score, scores], axis=1), best.score.shape[1]
    )
    return _Best(scores, jnp.take_along_axis(joined, place, axis=1))


def _cosines(
    variables: PyTree, requests: Vectors, documents: Float[Array, "C E"]
) -> Float[Array, "Q C"]:
    del variables
    (request,) = combine((requests.profile, requests.resume), "mean")
    return jnp.matmul(request.vector, documents.astype(jnp.float32).T, precision="highest")


def _own_cosine(variables: PyTree, requests: Vectors) -> Float[Array, " Q"]:
    del variables
    (request,) = combine((requests.profile, requests.resume), "mean")
    return jnp.sum(request.vector * requests.document.vector.astype(jnp.float32), axis=1)


def _logits(
    model: BiEncoder, variables: PyTree, requests: Vectors, documents: Float[Array, "C E"]
) -> Float[Array, "Q C"]:
    return score_grid(model, variables, requests.profile, requests.resume, documents)


def _within(
    taken: tuple[Int64[np.ndarray, " A"], Int64[np.ndarray, " A"]], start: int, size: int, rows: int
) -> Array:
    """The barred places of a block, padded by places outside of it to a power of two."""
    inside = (taken[1] >= start) & (taken[1] < start + size)
    places = np.stack([taken[0][inside], taken[1][inside] - start], axis=1)
    count = max(_FEWEST_BARRED, 1 << max(len(places) - 1, 0).bit_length())
    padded = np.full((count, 2), rows, np.int64)
    padded[: len(places)] = places
    return jnp.asarray(check_int32("barred place", padded))


def _padded(column: np.ndarray, size: int, value: int | bool) -> np.ndarray:
    return np.pad(column, (0, size - len(column)), constant_values=value)


def _round_up(count: int, multiple: int) -> int:
    return -(-max(count, 1) // multiple) * multiple
