"""Scores pairs and rankings with the trained scorer over vectors that are already there."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int, Int32

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.table import read_table
from star_jax.losses.contrastive import Component
from star_jax.parallel import processes
from star_jax.pipeline.progress import Work
from star_jax.pipeline.tables.read import PairTable, Ranking, TaskMeta, read_meta
from star_jax.pipeline.text_model import open_scorer
from star_jax.shapes import PyTree
from star_jax.text.bi_encoder import BiEncoder, score, score_grid
from star_jax.text.objective import Vectors

_BLOCK_PAIRS = 1 << 14
_GRID_DOCUMENTS = 1 << 11  # Of a block of a grid.


class PairRows(NamedTuple):
    """Where the texts of pairs stand in the vector tables; -1: missing."""

    document: Int32[np.ndarray, " B"]
    profile: Int32[np.ndarray, " B"]
    resume: Int32[np.ndarray, " B"]


class PairLogits:
    """The scorer, compiled once for blocks of pairs and once for blocks of grids."""

    def __init__(self, model: BiEncoder) -> None:
        """Compiles nothing yet."""
        self._logits = jax.jit(functools.partial(score, model))
        self._grid_logits = jax.jit(functools.partial(score_grid, model))

    def __call__(
        self,
        variables: PyTree,
        documents: Float32[np.ndarray, "N E"],
        requests: Float32[np.ndarray, "M E"],
        rows: PairRows,
    ) -> Float32[np.ndarray, " B"]:
        """Logit of every pair.

        Args:
          variables: With "scorer".
          documents: Vectors that `rows.document` points into.
          requests: Vectors that `rows.profile` and `rows.resume` point into.
          rows: Of the pairs.
        """
        num_pairs = len(rows.document)
        found = np.empty(num_pairs, np.float32)
        work = Work("scoring by text", num_pairs, "pairs")
        most = min(_BLOCK_PAIRS, 1 << max(num_pairs - 1, 0).bit_length())  # Few shapes compile.
        for start in range(0, num_pairs, most):
            block = [row[start : start + most] for row in rows]
            size = len(block[0])
            tables = (documents, requests, requests)
            parts = [component(table, row, most) for table, row in zip(tables, block, strict=True)]
            result = self._logits(variables, Vectors(*parts))
            found[start : start + size] = processes.fetched(result)[:size]
            work.advance(size)
        return found

    def grid(
        self,
        variables: PyTree,
        documents: Float32[np.ndarray, "N E"],
        requests: Float32[np.ndarray, "M E"],
        rows: PairRows,
    ) -> Float32[np.ndarray, "Q C"]:
        """Logit of every request with every document, arguments as of a call.

        `rows` holds those of the C documents, and those of the Q requests.
        """
        num_documents, num_requests = len(rows.document), len(rows.profile)
        width = max(1, min(num_documents, _GRID_DOCUMENTS))
        height = max(1, min(_BLOCK_PAIRS // width, num_requests))
        found = np.empty((num_requests, num_documents), np.float32)
        work = Work("ranking by text", num_requests, "queries")
        for first in range(0, num_requests, height):
            asked = slice(first, min(first + height, num_requests))
            parts = [component(requests, row[asked], height) for row in rows[1:]]
            for start in range(0, num_documents, width):
                shown = slice(start, min(start + width, num_documents))
                document = component(documents, rows.document[shown], width).vector
                block = self._grid_logits(variables, *parts, document)
                block = processes.fetched(block)[: asked.stop - first, : shown.stop - start]
                found[asked, shown] = block
            work.advance(asked.stop - first)
        return found


class TextPairScorer:
    """The text half alone, as `evaluate` asks it; of several processes each scores a share."""

    def __init__(
        self,
        model: BiEncoder,
        variables: PyTree,
        tasks: Mapping[str, TaskMeta],
        vectors_of: Callable[[str], Float32[np.ndarray, "N E"]],
    ) -> None:
        """Reads the vectors of a side when it first meets it.

        Args:
          model: Scores.
          variables: With "scorer".
          tasks: Of the tables; the model was trained on the first one.
          vectors_of: Node type -> vectors of its texts; none for a type without texts.
        """
        self._variables, self._tasks = variables, tasks
        self._logits = PairLogits(model)
        self._table = functools.cache(vectors_of)

    @classmethod
    def open(cls, workdir: Path) -> "TextPairScorer":
        """The scorer of `W/text` over the vectors of `W/text_embeddings`.

        Raises:
          InputError: A stage is missing, or the vectors were made by another model.
        """
        meta = read_meta(workdir / "tables")
        check_made_by(workdir)
        model, variables = open_scorer(workdir / "text")

        def vectors_of(node_type: str) -> Float32[np.ndarray, "N E"]:
            if not meta.node_types[node_type].has_texts:
                return np.zeros((0, model.tower.embedding_size), np.float32)
            return np.asarray(read_table(workdir / "text_embeddings", node_type).vectors)

        return cls(model, variables, meta.tasks, vectors_of)

    def score(self, pairs: PairTable) -> Float32[np.ndarray, " B"]:
        """Logit of every pair of the first task; without texts, what the scorer says of nothing."""
        rows = PairRows(pairs.receiver_text, pairs.sender_text, pairs.sender_resume)
        documents, requests = self._sides(next(iter(self._tasks)))

        def of_part(part: slice) -> Float32[np.ndarray, " b"]:
            own = PairRows(*(row[part] for row in rows))
            return self._logits(self._variables, documents, requests, own)

        return processes.in_shares(len(rows.document), of_part)

    def score_grid(self, task: str, ranking: Ranking) -> Float32[np.ndarray, "Q C"]:
        """Logit of every candidate for every query."""
        return processes.in_shares(
            len(ranking.sender), functools.partial(self._grid, task, ranking)
        )

    def _grid(self, task: str, ranking: Ranking, part: slice) -> Float32[np.ndarray, "q C"]:
        """The logits of some queries."""
        sides = self._sides(task)
        rows = PairRows(
            ranking.candidate_text, ranking.sender_text[part], ranking.sender_resume[part]
        )
        return self._logits.grid(self._variables, *sides, rows)

    def _sides(self, task: str) -> tuple[Float32[np.ndarray, "N E"], Float32[np.ndarray, "M E"]]:
        return self._table(self._tasks[task].receiver), self._table(self._tasks[task].sender)


def check_made_by(workdir: Path) -> None:
    """Refuses text vectors of another model than the one in `W/text`.

    Raises:
      InputError: Naming both.
    """
    made_by = artefacts.read_manifest(workdir / "text_embeddings", "text_embeddings").meta["model"]
    model = artefacts.digest(workdir / "text")
    if made_by != model:
        raise InputError(
            f"{workdir / 'text_embeddings'} was made by text model {made_by[:12]}, "
            f"{workdir / 'text'} holds {model[:12]}; run `star export-text` again"
        )


def component(
    table: Float32[np.ndarray, "N E"], rows: Int[np.ndarray, " _"], size: int
) -> Component:
    """Vectors of rows, zeros for -1 and for padding up to a size."""
    present = np.pad(rows >= 0, (0, size - len(rows)))
    vector = np.zeros((size, table.shape[1]), np.float32)
    vector[present] = table[rows[rows >= 0]]
    return Component(jnp.asarray(vector), jnp.asarray(present))
