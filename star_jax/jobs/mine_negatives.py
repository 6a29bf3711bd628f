"""`star mine-negatives`: hard negatives of the training positives, found by the text model.

Reads `W/tables`, `W/text` and `W/text_embeddings`, writes `W/hard_negatives`: pairs in the layout
of the training pairs, label 0 and negative kind "hard", in the groups of the positives they belong
to. `star train-text` takes them with `hard_negatives` above 0: in another folder that holds the
same `tables` and `hard_negatives`, or here once `W/text` has been removed.
"""

import dataclasses
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64

from star_jax import artefacts
from star_jax.config import InputError, to_json
from star_jax.embeddings.table import read_table
from star_jax.pipeline.hard_negatives import FOLDER, HARD, KIND
from star_jax.pipeline.known_pairs import known_positives
from star_jax.pipeline.mining.choose import ChoiceConfig, candidate_words, choose
from star_jax.pipeline.mining.pool import (
    Pool,
    barred,
    creation_times,
    training_pool,
)
from star_jax.pipeline.mining.rank import By, Candidates, Ranker
from star_jax.pipeline.tables.read import PairTable, read_meta, read_pairs, read_texts
from star_jax.pipeline.tables.write import write_pairs
from star_jax.pipeline.text_model import open_scorer
from star_jax.pipeline.text_pairs import has_both_sides
from star_jax.pipeline.text_scoring import check_made_by
from star_jax.train.reporter import Progress

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MineConfig:
    """Hard negatives of the first task's training positives."""

    score: By = "cosine"  # Of the text vectors, or by the trained scorer.
    choice: ChoiceConfig = dataclasses.field(default_factory=ChoiceConfig)
    block_requests: int = 2048  # Positives scored at a time,
    block_documents: int = 8192  # against so many texts: 64 MB of scores. No effect on the result.

    def __post_init__(self) -> None:
        for name in ("block_requests", "block_documents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be >= 1")


def run(config: MineConfig, workdir: Path) -> None:
    """Ranks, filters, writes."""
    tables = workdir / "tables"
    meta = read_meta(tables)
    task_name, task = next(iter(meta.tasks.items()))
    check_made_by(workdir)
    documents, requests = (_vectors(workdir, end) for end in (task.receiver, task.sender))
    pairs = read_pairs(tables, task_name, "train")
    positives = np.flatnonzero(pairs.label == 1)
    both = has_both_sides(pairs.receiver_text, pairs.sender_text, pairs.sender_resume)
    rows = positives[both[positives]]
    if not len(rows):
        raise InputError(
            f"task {task_name}: no training positive of {tables} has texts on both sides, "
            "there is nothing to mine from"
        )
    pool = training_pool(
        read_texts(tables, task.receiver),
        creation_times(tables, task.receiver),
        pairs.receiver[positives],
    )
    closed = barred(known_positives(tables, meta, task, pairs), pairs, rows)
    ranker = Ranker(
        pool,
        documents,
        requests,
        by=config.score,
        scorer=open_scorer(workdir / "text"),
        top=config.choice.skip_top + config.choice.window,
        block_requests=config.block_requests,
        block_documents=config.block_documents,
    )
    mined, counts = [], Counter(dict.fromkeys(("candidates", "short"), 0))
    removed: Counter[str] = Counter()
    progress = Progress("mine-negatives", float(len(rows)), "positives")
    for found in ranker(pairs, rows, closed):
        kept, gone = _choose(config, pairs, rows, pool, found)
        mined.append(_pairs(pairs, rows[found.rows], pool, found, kept))
        removed.update(gone)
        counts["candidates"] += int(np.isfinite(found.score).sum())
        counts["short"] += int((kept.sum(axis=1) < config.choice.num_negatives).sum())
        progress.advance(float(len(found.rows)), float(len(found.rows)))
    table = PairTable(*(np.concatenate(column) for column in zip(*mined, strict=True)))
    with artefacts.writing(workdir / FOLDER, KIND) as partial:
        write_pairs(table, partial / "pairs" / task_name / "train.parquet")
        described = {
            "model": artefacts.digest(workdir / "text"),
            "tables": artefacts.digest(tables),
            "config": json.loads(to_json(config)),
            "task": task_name,
            "num_receivers": len(np.unique(pool.receiver)),
            "num_positives": len(rows),
            "num_without_texts": len(positives) - len(rows),
            "num_candidates": counts["candidates"],
            "removed": dict(removed),
            "num_negatives": len(table.label),
            "num_short": counts["short"],
        }
        artefacts.set_meta(partial, described)
    _report(described)


def _vectors(workdir: Path, node_type: str) -> Float32[np.ndarray, "N E"]:
    """A vector for every text of a node type.

    Raises:
      InputError: There are none, or they are of other texts.
    """
    folder = workdir / "text_embeddings"
    texts = read_texts(workdir / "tables", node_type)
    if not len(texts.text):
        raise InputError(f"{workdir / 'tables'} has no text of a {node_type}, nothing to mine from")
    table = read_table(folder, node_type)
    if not (np.array_equal(table.entity, texts.entity) and np.array_equal(table.t, texts.t)):
        raise InputError(
            f"{folder} holds {len(table.entity)} {node_type} texts that are not the "
            f"{len(texts.text)} of {workdir / 'tables'}; run `star export-text` again"
        )
    return np.asarray(table.vectors, np.float32)


def _choose(
    config: MineConfig,
    pairs: PairTable,
    rows: Int[np.ndarray, " P"],
    pool: Pool,
    found: Candidates,
) -> tuple[Bool[np.ndarray, "Q K"], Counter[str]]:
    own = rows[found.rows]
    receiver = pool.receiver[np.maximum(found.column, 0)]
    words = candidate_words(
        pairs.sender[own], pairs.t[own], pairs.receiver[own], receiver, config.choice.seed
    )
    positive, score = found.positive, found.score
    if config.score == "scorer":  # Part of a logit means nothing where it is negative.
        positive, score = _probability(positive), _probability(score)
    score = np.where(np.isfinite(found.score), score, np.float32(-np.inf))
    return choose(positive, score, words, config.choice)


def _probability(logit: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    return np.exp(-np.logaddexp(np.float32(0), -logit))


def _pairs(
    pairs: PairTable,
    own: Int64[np.ndarray, " Q"],
    pool: Pool,
    found: Candidates,
    kept: Bool[np.ndarray, "Q K"],
) -> PairTable:
    """The kept candidates as pairs, a positive's own one after the other, best first."""
    row, rank = np.nonzero(kept)
    own, column = own[row], found.column[row, rank]
    filled: dict[str, Any] = {
        "receiver": pool.receiver[column],
        "label": np.zeros(len(own), np.int8),
        "negative": np.full(len(own), HARD),
        "receiver_text": pool.text[column],
        "warm_receiver": np.ones(len(own), bool),  # The pool is of training positives.
        "true_logit": np.full(len(own), np.nan, np.float32),
        "slice": np.full(len(own), "", "U1"),
    }
    same = {name: values[own] for name, values in pairs._asdict().items() if name not in filled}
    return PairTable(**same, **filled)


def _report(meta: dict[str, Any]) -> None:
    _log.info(
        "%d positives have %d candidates among %d receivers; removed: %s",
        meta["num_positives"],
        meta["num_candidates"],
        meta["num_receivers"],
        ", ".join(f"{name} {count}" for name, count in meta["removed"].items()),
    )
    _log.info(
        "%d hard negatives; %d positives have fewer than asked for, %d have no texts",
        meta["num_negatives"],
        meta["num_short"],
        meta["num_without_texts"],
    )
