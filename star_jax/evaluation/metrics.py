"""The metrics of a report, under the names that reference numbers have."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from star_jax.evaluation.auc import AucInterval, auc_interval, roc_auc


class LabelledPairs(NamedTuple):
    """Evaluation pairs: positives, and negatives of several kinds."""

    label: Bool[np.ndarray, " B"]
    negative: Shaped[np.ndarray, " B"]  # Kind of the negative, "" for positives.
    sender: Shaped[np.ndarray, " B"]
    marks: dict[str, Bool[np.ndarray, " B"]]  # "warm_member": the rows it holds for.


def kinds(pairs: LabelledPairs) -> list[str]:
    """Kinds of negatives: uniform ones first, the others in the order of their appearance."""
    negative = pairs.negative[~pairs.label]
    names, first = np.unique(negative, return_index=True)
    ordered = [str(names[i]) for i in np.argsort(first)]
    return sorted(ordered, key=lambda kind: kind != "uniform")


def rows_of(pairs: LabelledPairs, kind: str) -> Bool[np.ndarray, " B"]:
    """All positives and the negatives of one kind."""
    return pairs.label | (pairs.negative == kind)


def pair_metrics(pairs: LabelledPairs, scores: Float[np.ndarray, " B"]) -> dict[str, float]:
    """AUC per kind of negative, over all rows and over the rows of every mark.

    A mark whose rows lack positives or negatives has no AUC, hence no entry.
    """
    return {
        name: roc_auc(pairs.label[rows], scores[rows]) for name, rows in _selections(pairs).items()
    }


def pair_intervals(
    pairs: LabelledPairs, scores: Float[np.ndarray, " B"], level: float
) -> dict[str, AucInterval]:
    """As `pair_metrics`, with intervals that treat the pairs of a sender as one cluster."""
    return {
        name: auc_interval(pairs.label[rows], scores[rows], pairs.sender[rows], level)
        for name, rows in _selections(pairs).items()
    }


def rounded(metrics: Mapping[str, float], digits: int = 4) -> dict[str, float]:
    """The digits that reference numbers have."""
    return {name: round(value, digits) for name, value in metrics.items()}


def _selections(pairs: LabelledPairs) -> dict[str, Bool[np.ndarray, " B"]]:
    found: dict[str, Bool[np.ndarray, " B"]] = {}
    for kind in kinds(pairs):
        rows = rows_of(pairs, kind)
        marked = {f"auc_{kind}": rows} | {
            f"auc_{kind}_{mark}": rows & where for mark, where in pairs.marks.items()
        }
        for name, chosen in marked.items():
            if 0 < pairs.label[chosen].sum() < chosen.sum():
                found[name] = chosen
    return found
