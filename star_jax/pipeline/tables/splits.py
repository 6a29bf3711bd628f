"""Which split an event or an edge belongs to: by windows, cuts or shares of time, or a column."""

import math
from typing import NamedTuple

import numpy as np

from star_jax.pipeline.tables.files import literal
from star_jax.pipeline.tables.findings import Findings
from star_jax.pipeline.tables.read import SPLIT_CODES
from star_jax.pipeline.tables.schema import (
    Schema,
    SplitColumn,
    TimeCuts,
    TimeFractions,
    TimeWindows,
)


class Cuts(NamedTuple):
    """First times of the windows; each ends where the next begins, so that no two overlap.

    None at an end is open. From `graph_from` to `train_from` events only build the graph.
    """

    graph_from: int | None
    train_from: int | None
    val_from: int
    test_from: int
    end: int | None


def find_cuts(schema: Schema, times: np.ndarray, findings: Findings) -> Cuts | None:
    """The cuts of a split by time; None for a split by column.

    Args:
      schema: Says how to split.
      times: Of all events with a time.
      findings: Gets the cuts as a note.
    """
    split = schema.split
    if isinstance(split, SplitColumn) or not len(times):
        return None
    if isinstance(split, TimeCuts):
        cuts = Cuts(None, None, split.val_from, split.test_from, None)
    elif isinstance(split, TimeFractions):
        ordered = np.sort(times)
        first = [
            int(ordered[min(math.floor(len(ordered) * (1.0 - share) + 1e-9), len(ordered) - 1)])
            for share in (split.val_share + split.test_share, split.test_share)
        ]
        cuts = Cuts(None, None, first[0], first[1], None)
    else:
        cuts = _windows(split, int(times.max()))
    findings.note(
        f"val from {cuts.val_from}, test from {cuts.test_from}"
        + (f", train from {cuts.train_from}" if cuts.train_from is not None else "")
        + (f", graph from {cuts.graph_from}" if cuts.graph_from is not None else "")
        + (f", end {cuts.end}" if cuts.end is not None else "")
    )
    return cuts


def _windows(split: TimeWindows, last: int) -> Cuts:
    end = split.end if split.end is not None else last + 1
    test_from = end - split.test
    val_from = test_from - split.val
    train_from = val_from - split.train
    graph_from = None if split.graph is None else train_from - split.graph
    return Cuts(graph_from, train_from, val_from, test_from, end)


def time_code(cuts: Cuts, t: str) -> str:
    """SQL: the split's code at time `t`; 0 in the graph window, -1 outside, null without time."""
    codes = [f"WHEN {t} IS NULL THEN NULL"]
    if cuts.end is not None:
        codes.append(f"WHEN {t} >= {cuts.end} THEN -1")
    codes.append(f"WHEN {t} >= {cuts.test_from} THEN {SPLIT_CODES['test']}")
    codes.append(f"WHEN {t} >= {cuts.val_from} THEN {SPLIT_CODES['val']}")
    if cuts.train_from is None:
        codes.append(f"ELSE {SPLIT_CODES['train']}")
    else:
        codes.append(f"WHEN {t} >= {cuts.train_from} THEN {SPLIT_CODES['train']}")
        if cuts.graph_from is None:
            codes.append("ELSE 0")
        else:
            codes.append(f"WHEN {t} >= {cuts.graph_from} THEN 0 ELSE -1")
    return f"CASE {' '.join(codes)} END"


def column_code(schema: Schema, column: str) -> str:
    """SQL: the code of a split's name, null if it is none."""
    codes = " ".join(
        f"WHEN {literal(name)} THEN {SPLIT_CODES[split]}"
        for split, name in zip(("train", "val", "test"), schema.split_names, strict=True)
    )
    return f"CASE {column} {codes} END"
