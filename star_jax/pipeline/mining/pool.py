"""Which receivers may be a negative of which training positive, and with which text.

The rules are those of the negatives that `star import` draws (`tables/negatives.py`): receivers of
the training positives that existed by then, never a known positive of the sender. Nothing of a
later split is read.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from star_jax.pipeline.tables.read import PairTable, Texts, read_nodes
from star_jax.pipeline.tables.sources import RESUME
from star_jax.shapes import NO_TIME

_NEVER = int(np.iinfo(np.int64).max)


class Pool(NamedTuple):
    """Text versions of the receivers, by receiver and time.

    One holds at the times t with `after` < t <= `until`; where t is unknown, the `first` does.
    """

    receiver: Int32[np.ndarray, " C"]
    text: Int32[np.ndarray, " C"]
    created: Int64[np.ndarray, " C"]
    after: Int64[np.ndarray, " C"]
    until: Int64[np.ndarray, " C"]
    first: Bool[np.ndarray, " C"]


class Barred(NamedTuple):
    """What may be no negative: per positive a segment of `receiver`."""

    start: Int64[np.ndarray, " P"]
    size: Int64[np.ndarray, " P"]
    receiver: Int64[np.ndarray, " A"]


def training_pool(
    texts: Texts, created: Int64[np.ndarray, " N"], receivers: Int[np.ndarray, " R"]
) -> Pool:
    """The versions of some receivers.

    Args:
      texts: Of the receivers' node type.
      created: When each of its nodes came to be; NO_TIME where unknown.
      receivers: Those that may be negatives.
    """
    rows = np.flatnonzero(
        np.isin(texts.entity, receivers) & np.array([kind != RESUME for kind in texts.kind], bool)
    )
    rows = rows[np.lexsort((texts.text_id[rows], texts.t[rows], texts.entity[rows]))]
    entity, after = texts.entity[rows], texts.t[rows]
    first = np.diff(entity, prepend=-1) != 0
    last = np.append(first[1:], True)[: len(first)]
    until = np.where(last, _NEVER, np.append(after[1:], _NEVER)[: len(after)])
    return Pool(entity, texts.text_id[rows], created[entity], after, until, first)


def creation_times(tables: Path, node_type: str) -> Int64[np.ndarray, " N"]:
    """Per node index; NO_TIME where unknown."""
    t = read_nodes(tables, node_type)["t"].fill_null(NO_TIME)
    return t.combine_chunks().to_numpy(zero_copy_only=False).astype(np.int64)


def barred(
    known: Int64[np.ndarray, "A 2"], pairs: PairTable, positives: Int[np.ndarray, " P"]
) -> Barred:
    """Known positives of each positive's sender, and what its group holds already.

    Args:
      known: As `known_positives` of `pipeline/known_pairs.py` returns them.
      pairs: Of the train split.
      positives: Rows of them.
    """
    order = np.argsort(pairs.group, kind="stable")
    group = pairs.group[order]
    spans = [
        _span(known[:, 0], pairs.sender[positives]),
        _span(group, pairs.group[positives]),
    ]
    owners, places = zip(*(expand(*span) for span in spans), strict=True)
    owner = np.concatenate(owners)
    receiver = np.concatenate([known[places[0], 1], pairs.receiver[order][places[1]]])
    by_owner = np.lexsort((receiver, owner))
    start, size = _span(owner[by_owner], np.arange(len(positives)))
    return Barred(start, size, receiver[by_owner])


def columns_of(
    closed: Barred, rows: Int[np.ndarray, " Q"], pool: Pool
) -> tuple[Int64[np.ndarray, " A"], Int64[np.ndarray, " A"]]:
    """(place in `rows`, column of the pool) of everything that some positives may not have."""
    owner, place = expand(closed.start[rows], closed.size[rows])
    version, column = expand(*_span(pool.receiver, closed.receiver[place]))
    return owner[version], column


def expand(
    start: Int64[np.ndarray, " P"], count: Int64[np.ndarray, " P"]
) -> tuple[Int64[np.ndarray, " A"], Int64[np.ndarray, " A"]]:
    """(owner, place) of every place of every owner's segment."""
    owner = np.repeat(np.arange(len(start)), count)
    before = np.cumsum(count) - count
    return owner, np.arange(len(owner)) + (start - before)[owner]


def _span(
    keys: Int[np.ndarray, " A"], asked: Int[np.ndarray, " P"]
) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
    """(start, count) of each asked key among sorted ones."""
    start = np.searchsorted(keys, asked, side="left")
    return start, np.searchsorted(keys, asked, side="right") - start
