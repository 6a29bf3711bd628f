"""What a new version may lose before it breaks the contract with the consumers of the old one."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import stats

from star_jax.evaluation.significance import holm
from star_jax.pipeline.consumers.check import Answers
from star_jax.pipeline.consumers.spaces import OVERLAP

_RECALL = "recall@10"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Each is broken by what is measured on the test examples; None: no limit.

    A drop breaks its limit where it is beyond it with confidence `level`, one-sided by the paired
    standard error, with p-values adjusted (Holm) for all drops of its kind together: what a small
    set cannot tell from chance breaks nothing.

    Attributes:
      auc_drop: AUC that any frozen consumer may lose on what is served of the new version.
      cohort_drop: The same within any cohort.
      cold_drop: The same among cold members, and among cold jobs.
      recall_drop: Recall@10 that an index of dot products may lose when queries, candidates or
        both are of the new version.
      alignment_error: Relative alignment error of any table (`star_jax.evaluation.alignment`):
        0 is equal, 1 is no closer than the mean vector.
      neighbour_overlap: Least share of the 10 nearest neighbours that stay, in any table.
      missing_rows: Share of the old version's rows, in any table, that the new one may lack.
    """

    auc_drop: float | None = 0.02
    cohort_drop: float | None = 0.05
    cold_drop: float | None = 0.05
    recall_drop: float | None = 0.05
    alignment_error: float | None = 0.8
    neighbour_overlap: float | None = 0.2
    missing_rows: float | None = 0.05

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not value >= 0:
                raise ValueError(f"{field.name} {value} must be >= 0, or None for no limit")
        if self.neighbour_overlap is not None and self.neighbour_overlap > 1:
            raise ValueError(f"neighbour_overlap {self.neighbour_overlap} must be a share <= 1")

    def of_group(self, group: str) -> float | None:
        """The limit of a group of slices."""
        return {"cohort": self.cohort_drop, "cold": self.cold_drop}.get(group)


def add_p_values(answers: Answers, limits: Limits) -> None:
    """Sets `p_value` of every metric and slice: that its loss is within the limit.

    None where there is no limit, or too few members for a standard error.
    """
    _add_p_values(answers.metrics, limits.auc_drop)
    for group in {row["group"] for row in answers.slices}:
        rows = [row for row in answers.slices if row["group"] == group]
        _add_p_values(rows, limits.of_group(group))


def _add_p_values(rows: list[dict[str, Any]], limit: float | None) -> None:
    for row in rows:
        row["p_value"] = None
    told = [row for row in rows if row["standard_error"] is not None]
    if limit is None or not told:
        return
    found = [_within(row["drop"] - limit, row["standard_error"]) for row in told]
    for row, p_value in zip(told, holm(np.asarray(found, np.float64)).tolist(), strict=True):
        row["p_value"] = float(f"{p_value:.3g}")


def breaks(
    answers: Answers,
    spaces: list[dict[str, Any]],
    indexes: list[dict[str, Any]],
    limits: Limits,
    level: float,
) -> list[str]:
    """A line per limit that is broken and where: the limit, its value, and what was measured."""
    return [
        *_of_metrics(answers, limits, level),
        *_of_slices(answers, limits, level),
        *_of_indexes(indexes, limits),
        *_of_spaces(spaces, limits),
    ]


def _of_metrics(answers: Answers, limits: Limits, level: float) -> Iterator[str]:
    for row in answers.metrics:
        if _broken(row, level):
            yield (
                f"auc_drop {limits.auc_drop}: {_consumer(row)} loses {_loss(row)} "
                f"(p {row['p_value']:.2g})"
            )


def _of_slices(answers: Answers, limits: Limits, level: float) -> Iterator[str]:
    for row in answers.slices:
        if _broken(row, level):
            yield (
                f"{row['group']}_drop {limits.of_group(row['group'])}: {_consumer(row)} loses "
                f"{_loss(row)} on {row['slice']} (p {row['p_value']:.2g})"
            )


def _broken(row: dict[str, Any], level: float) -> bool:
    return row["p_value"] is not None and row["p_value"] < 1 - level


def _of_indexes(indexes: list[dict[str, Any]], limits: Limits) -> Iterator[str]:
    before = {row["question"]: row for row in indexes if _mixture(row) == ("old", "old")}
    for row in indexes:
        was, now = before[row["question"]][_RECALL], row[_RECALL]
        drop = round(was - now, 4)
        if (
            limits.recall_drop is None
            or "served" not in _mixture(row)
            or drop <= limits.recall_drop
        ):
            continue
        yield (
            f"recall_drop {limits.recall_drop}: {row['question']} with queries {row['queries']}, "
            f"candidates {row['candidates']} loses {drop} of {_RECALL} ({was} -> {now})"
        )


def _of_spaces(spaces: list[dict[str, Any]], limits: Limits) -> Iterator[str]:
    for row in spaces:
        lacking, most = row["missing_rows"], limits.missing_rows
        if most is not None and lacking > most:
            yield f"missing_rows {most}: table {row['table']} lacks {lacking} of its rows"
        error, most = row["relative_alignment_error"], limits.alignment_error
        if most is not None and error is not None and error > most:
            yield f"alignment_error {most}: table {row['table']} has {error}"
        overlap, least = row[f"{OVERLAP}_served"], limits.neighbour_overlap
        if least is not None and overlap is not None and overlap < least:
            yield f"neighbour_overlap {least}: table {row['table']} has {overlap}"


def _within(beyond: float, error: float) -> float:
    if error == 0:
        return 0.0 if beyond > 0 else 1.0
    return float(stats.norm.sf(beyond / error))


def _mixture(row: dict[str, Any]) -> tuple[str, str]:
    return row["queries"], row["candidates"]


def _consumer(row: dict[str, Any]) -> str:
    return f"{row['consumer']} of {row['question']}"


def _loss(row: dict[str, Any]) -> str:
    return f"{row['drop']} of {row['metric']} ({row['old']} -> {row['served']})"
