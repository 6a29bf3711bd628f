"""Scores of frozen consumers on the old version, on the new one, and on what is served of it."""

import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from star_jax.evaluation.auc import roc_auc
from star_jax.evaluation.cohorts import too_small
from star_jax.evaluation.significance import auc_difference
from star_jax.pipeline.consumers.fits import DOT, Fit, Score, checked_scores
from star_jax.pipeline.consumers.questions import Examples, Question
from star_jax.pipeline.consumers.versions import Ends, Version

_BLOCK_ROWS = 8192

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How consumers are trained and scored.

    Attributes:
      fit_rows: Examples that a consumer is trained on at most, drawn by the seed.
      level: Coverage of the intervals.
      min_cohort_members: Slices of fewer members are not shown.
    """

    fit_rows: int = 20_000
    level: float = 0.95
    min_cohort_members: int = 20

    def __post_init__(self) -> None:
        if self.fit_rows < 1:
            raise ValueError(f"fit_rows {self.fit_rows} must be >= 1")
        if not 0 < self.level < 1:
            raise ValueError(f"level {self.level} must be a share between 0 and 1 such as 0.95")
        if self.min_cohort_members < 2:
            raise ValueError(f"min_cohort_members {self.min_cohort_members} must be >= 2")


class Pair(NamedTuple):
    """The two versions of a contract.

    Attributes:
      old: What consumers were trained on.
      new: As it is.
      served: What consumers would get: the new version through its transform, if it has one.
      mapped: Whether it has one.
    """

    old: Version
    new: Version
    served: Version
    mapped: bool

    def fits_unmapped(self, tables: Sequence[str]) -> bool:
        """Whether vectors of the new version, as they are, go into an old consumer."""
        return all(self.new.sizes[name] == self.old.sizes[name] for name in tables)


class _Scores(NamedTuple):
    """Of the test examples; None where the widths do not allow it."""

    old: Float[np.ndarray, " B"]
    new: Float[np.ndarray, " B"] | None  # By the frozen consumer, unmapped.
    served: Float[np.ndarray, " B"]
    retrained: Float[np.ndarray, " B"]  # By a consumer trained on the new version.


class Answers(NamedTuple):
    """What consumers did: rows of two tables."""

    metrics: list[dict[str, Any]]
    slices: list[dict[str, Any]]
    num_suppressed: dict[str, int]  # Slices too small to be shown, by question.


def answers(
    questions: Iterable[Question], pair: Pair, fits: dict[str, Fit], config: ScoreConfig, seed: int
) -> Answers:
    """Trains every consumer on the old version for every question, freezes it and scores it.

    Args:
      questions: What they answer.
      pair: The versions.
      fits: The consumers, by name.
      config: Rows and intervals.
      seed: Of the rows and of the consumers.
    """
    found = Answers([], [], {})
    for question in questions:
        fit = _drawn(question.fit, config.fit_rows, seed)
        for name, train in fits.items():
            if name == DOT and len(fit.ends.tables) == 1:
                continue  # A node's vector is multiplied by none.
            _log.info("%s: %s, of %d examples", question.name, name, len(fit.label))
            scores = _scores(name, train, fit, question.test.ends, pair, seed)
            row = {"question": question.name, "consumer": name}
            found.metrics.extend(row | each for each in _metrics(question, scores, config.level))
            shown, num_small = _slices(question, scores, config)
            found.slices.extend(row | each for each in shown)
            found.num_suppressed[question.name] = num_small
    return found


def _drawn(examples: Examples, num_rows: int, seed: int) -> Examples:
    if len(examples.label) <= num_rows:
        return examples
    rows = np.random.default_rng(seed).permutation(len(examples.label))[:num_rows]
    return examples.take(np.sort(rows))


def _scores(name: str, train: Fit, fit: Examples, test: Ends, pair: Pair, seed: int) -> _Scores:
    frozen = train(pair.old.features(fit.ends), fit.label, seed)
    retrained = train(pair.new.features(fit.ends), fit.label, seed)

    def of(consumer: Score, version: Version) -> Float[np.ndarray, " B"]:
        num_rows = len(test.keys[0])
        blocks = [slice(i, i + _BLOCK_ROWS) for i in range(0, num_rows, _BLOCK_ROWS)]
        features = (version.features(test.take(block)) for block in blocks)
        return np.concatenate([checked_scores(name, consumer, each) for each in features])

    served = of(frozen, pair.served)
    if not pair.mapped:
        new = served
    else:
        new = of(frozen, pair.new) if pair.fits_unmapped(test.tables) else None
    return _Scores(of(frozen, pair.old), new, served, retrained=of(retrained, pair.new))


def _metrics(question: Question, scores: _Scores, level: float) -> Iterator[dict[str, Any]]:
    """A row per metric: AUC of each version, and what is lost."""
    for metric, rows in question.metrics.items():
        if not 0 < question.test.label[rows].sum() < rows.sum():
            continue
        yield {
            "metric": metric,
            "num_examples": int(rows.sum()),
            "old": _auc(question, scores.old, rows),
            "new": None if scores.new is None else _auc(question, scores.new, rows),
            "served": _auc(question, scores.served, rows),
            "retrained": _auc(question, scores.retrained, rows),
            **_lost(question, scores, rows, level),
        }


def _slices(
    question: Question, scores: _Scores, config: ScoreConfig
) -> tuple[list[dict[str, Any]], int]:
    """A row per slice of the first metric, and how many slices are too small for one."""
    shown, num_small = [], 0
    metric, all_rows = next(iter(question.metrics.items()))
    for each in question.slices:
        rows = each.rows & all_rows
        if too_small(question.test.label, question.test.unit, rows, config.min_cohort_members):
            num_small += 1
            continue
        shown.append(
            {
                "metric": metric,
                "group": each.group,
                "slice": each.name,
                "num_examples": int(rows.sum()),
                "num_members": len(np.unique(question.test.unit[rows])),
                "old": _auc(question, scores.old, rows),
                "served": _auc(question, scores.served, rows),
                **_lost(question, scores, rows, config.level),
            }
        )
    return shown, num_small


def _auc(
    question: Question, scores: Float[np.ndarray, " B"], rows: Bool[np.ndarray, " B"]
) -> float:
    return round(roc_auc(question.test.label[rows], scores[rows]), 4)


def _lost(
    question: Question, scores: _Scores, rows: Bool[np.ndarray, " B"], level: float
) -> dict[str, Any]:
    """By how much the served version is below the old one, paired; None: too few units to tell."""
    label, unit = question.test.label[rows], question.test.unit[rows]
    found = auc_difference(label, scores.old[rows], scores.served[rows], unit, level)
    known = math.isfinite(found.error)
    return {
        "drop": round(found.difference, 4),
        "interval": [round(found.low, 4), round(found.high, 4)] if known else None,
        "standard_error": round(found.error, 6) if known else None,
    }
