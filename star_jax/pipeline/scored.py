"""Scores of every method on one task and split, on disk and in memory."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from star_jax.evaluation.metrics import LabelledPairs
from star_jax.evaluation.ranking import QueryMetrics, query_metrics
from star_jax.pipeline.progress import Work
from star_jax.pipeline.reference_methods import Method
from star_jax.pipeline.sender_ranking import SenderRanking, SenderWeights
from star_jax.pipeline.tables.read import PairTable, Ranking, TaskMeta

_log = logging.getLogger(__name__)

_PAIR_COLUMNS = ("sender", "receiver", "group", "label", "negative")


class Scored(NamedTuple):
    """What was measured on the pairs and queries of one split."""

    pairs: LabelledPairs
    scores: dict[str, Float[np.ndarray, " B"]]  # Per method.
    queries: dict[str, QueryMetrics]  # Per method that can order candidates.
    senders: dict[str, dict[str, float]]  # Per such method, metrics of the other direction.

    def joined(self, other: "Scored") -> "Scored":
        """With what other methods say of the same pairs behind it."""
        return self._replace(
            scores=self.scores | other.scores,
            queries=self.queries | other.queries,
            senders=self.senders | other.senders,
        )


class Questions(NamedTuple):
    """What methods are asked about one task and split."""

    pairs: PairTable
    ranking: Ranking | None
    of_senders: SenderRanking | None = None


class Answer(NamedTuple):
    """What a method says; None for what was not asked, or what it cannot say."""

    pairs: Float[np.ndarray, " B"]
    grid: Float[np.ndarray, "Q C"] | None = None  # Of the ranking.
    turned: Float[np.ndarray, "S R"] | None = None  # Of the ranking of senders.


def ask(methods: Mapping[str, Method], questions: Questions) -> Iterator[tuple[str, Answer]]:
    """Runs one method after the other, and names it with its answer."""
    pairs, ranking, of_senders = questions
    work = Work("scoring", len(methods), "methods")
    for name, method in methods.items():
        _log.info("scoring %d pairs: %s", len(pairs.sender), name)
        yield (
            name,
            Answer(
                method.score(pairs).astype(np.float64),
                None if ranking is None else method.score_grid(ranking),
                None if of_senders is None else method.score_grid(of_senders.asked),
            ),
        )
        work.advance(1)


def scored(
    questions: Questions,
    answers: Iterable[tuple[str, Answer]],
    task: TaskMeta,
    of_senders: Mapping[str, SenderWeights] | None = None,
) -> Scored:
    """Measures answers, and keeps of each what it says of the pairs alone.

    Args:
      questions: That were asked.
      answers: By method.
      task: Of the questions.
      of_senders: By method, weights of the other direction that another split taught.
    """
    pairs, ranking, turned = questions
    weights = of_senders or {}
    found = Scored(labelled(pairs, task), {}, {}, {})
    for name, answer in answers:
        found.scores[name] = answer.pairs
        if ranking is not None and answer.grid is not None:
            grid = answer.grid.astype(np.float64)
            found.queries[name] = query_metrics(
                grid, ranking.candidates, ranking.relevant, ranking.excluded
            )
        if turned is not None and answer.turned is not None:
            found.senders[name] = turned.metrics(answer.turned, weights.get(name))
    return found


def labelled(pairs: PairTable, task: TaskMeta) -> LabelledPairs:
    """The pairs with the marks that metrics are also reported for."""
    receiver = task.receiver if task.receiver != task.sender else f"receiver_{task.receiver}"
    marks = {
        f"warm_{task.sender}": pairs.warm_sender,
        f"cold_{task.sender}": ~pairs.warm_sender,
        f"warm_{receiver}": pairs.warm_receiver,
        f"cold_{receiver}": ~pairs.warm_receiver,
    }
    positive = pairs.label == 1
    for name in np.unique(pairs.slice[pairs.slice != ""]):  # A positive takes its negatives along.
        groups = pairs.group[positive & (pairs.slice == name)]
        marks[f"slice_{name}"] = np.isin(pairs.group, groups)
    return LabelledPairs(positive, pairs.negative, pairs.sender, marks)


def write_scored(folder: Path, name: str, pairs: PairTable, scored: Scored) -> None:
    """Writes one row per pair and one per query, with a column per method."""
    columns = {column: getattr(pairs, column) for column in _PAIR_COLUMNS} | scored.scores
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    if scored.queries:
        metrics = {
            f"{method} {metric}": values
            for method, found in scored.queries.items()
            for metric, values in found.columns().items()
        }
        pq.write_table(pa.table(metrics), folder / f"{name}_queries.parquet")


def read_scores(
    folder: Path, name: str
) -> tuple[LabelledPairs, dict[str, Float[np.ndarray, " B"]]]:
    """Reads back the pairs, without their marks, and the scores of each method."""
    table = pq.read_table(folder / f"{name}.parquet")
    scores = {
        column: table[column].to_numpy()
        for column in table.column_names
        if column not in _PAIR_COLUMNS
    }
    pairs = LabelledPairs(
        label=table["label"].to_numpy() == 1,
        negative=np.asarray(table["negative"].to_pylist(), dtype=np.str_),
        sender=table["sender"].to_numpy(),
        marks={},
    )
    return pairs, scores
