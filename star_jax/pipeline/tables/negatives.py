"""Negatives drawn from the pool of a positive's own split.

Every draw is a hash of (seed, split, kind, sender, receiver, time, slot, attempt): no draw depends
on how many came before it, and nothing after a split moves a byte of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from star_jax.graph.samplers.draws import GOLDEN, mix_all
from star_jax.pipeline.tables.pairs import Outcomes
from star_jax.shapes import NO_TIME

NO_RECEIVER = -1
_ATTEMPTS = 64  # Then the few positives left get a draw from the list of what is allowed.


class Attributes(NamedTuple):
    """What makes receivers look alike: sorted (receiver, value) rows and the same turned round."""

    receiver: Int64[np.ndarray, " A"]
    value: Int64[np.ndarray, " A"]


class Rules(NamedTuple):
    """What a negative of one split may not be.

    `known` are sorted keys (sender * num_receivers + receiver) of all positives up to the end of
    the split, `created` the creation time of every receiver.
    """

    known: Int64[np.ndarray, " M"]
    created: Int64[np.ndarray, " N"]

    def forbid(
        self, sender: np.ndarray, receiver: np.ndarray, t: np.ndarray
    ) -> Bool[np.ndarray, " S"]:
        """Pairs that are positives, or whose receiver did not exist yet."""
        keys = sender * len(self.created) + receiver
        place = np.minimum(np.searchsorted(self.known, keys), len(self.known) - 1)
        early = (t != NO_TIME) & (self.created[receiver] > t)
        return (self.known[place] == keys) | early


Propose = Callable[[np.ndarray, UInt64[np.ndarray, " S"]], Int64[np.ndarray, " S"]]
"""(rows of positives, random words) -> a receiver each, or NO_RECEIVER."""


def known_keys(positives: Outcomes, code: int, num_receivers: int) -> Int64[np.ndarray, " M"]:
    """See `Rules.known`."""
    upto = positives.code <= code
    return np.unique(positives.sender[upto] * num_receivers + positives.receiver[upto])


def slots(num_positives: int, ratio: float) -> Int64[np.ndarray, " S"]:
    """The positive that each negative belongs to: `ratio` each, exact over any number of them."""
    ends = np.floor(np.arange(num_positives + 1) * ratio + 1e-9).astype(np.int64)
    return np.repeat(np.arange(num_positives), np.diff(ends))


def draw(
    positives: Outcomes, slot: np.ndarray, propose: Propose, rules: Rules, word: int
) -> Int64[np.ndarray, " S"]:
    """One receiver per slot, distinct among the slots of a positive.

    Args:
      positives: Of one split.
      slot: Row of the positive per slot, ascending.
      propose: Where receivers come from.
      rules: What they may not be.
      word: Seed of this split and kind.

    Returns:
      NO_RECEIVER where nothing allowed is left.
    """
    chosen = np.full(len(slot), NO_RECEIVER, np.int64)
    key = row_words(positives, word)[slot]
    first = np.searchsorted(slot, slot, side="left")
    key = mix(key ^ (np.arange(len(slot)) - first).astype(np.uint64))
    pending = np.arange(len(slot))
    for attempt in range(_ATTEMPTS):
        if not len(pending):
            break
        rows = slot[pending]
        found = propose(rows, mix(key[pending] + np.uint64(attempt)))
        fine = found != NO_RECEIVER
        fine &= ~rules.forbid(positives.sender[rows], np.maximum(found, 0), positives.t[rows])
        fine &= ~_taken(slot, chosen, pending, found, len(rules.created))
        chosen[pending[fine]] = found[fine]
        pending = pending[~fine]
    return chosen


def draw_rest(
    positives: Outcomes,
    slot: np.ndarray,
    chosen: Int64[np.ndarray, " S"],
    options: Callable[[int], np.ndarray],
    rules: Rules,
    word: int,
) -> Int64[np.ndarray, " S"]:
    """Fills the slots that chance left empty from all that is allowed, if there is anything."""
    chosen = chosen.copy()
    words = row_words(positives, word)
    for place in np.flatnonzero(chosen == NO_RECEIVER):
        row = int(slot[place])
        left = np.setdiff1d(options(row), chosen[slot == row])
        same = np.full(len(left), row)
        left = left[~rules.forbid(positives.sender[same], left, positives.t[same])]
        if len(left):
            chosen[place] = left[int(words[row] % np.uint64(len(left)))]
    return chosen


def _taken(
    slot: np.ndarray, chosen: np.ndarray, pending: np.ndarray, found: np.ndarray, width: int
) -> Bool[np.ndarray, " P"]:
    """Whether a positive has this receiver already, from before or from a lower slot."""
    done = chosen != NO_RECEIVER
    before = slot[done] * width + chosen[done]
    keys = slot[pending] * width + found
    again = np.ones(len(keys), bool)
    again[np.unique(keys, return_index=True)[1]] = False
    return again | np.isin(keys, before)


def from_list(receivers: Int64[np.ndarray, " N"]) -> Propose:
    """Proposes any entry of a list; repeated entries are likelier."""

    def propose(rows: np.ndarray, words: UInt64[np.ndarray, " S"]) -> Int64[np.ndarray, " S"]:
        return receivers[(words % np.uint64(len(receivers))).astype(np.int64)]

    return propose


def from_segments(
    start: Int64[np.ndarray, " M"], size: Int64[np.ndarray, " M"], values: np.ndarray
) -> Propose:
    """Proposes an entry of each positive's own segment of `values`."""

    def propose(rows: np.ndarray, words: UInt64[np.ndarray, " S"]) -> Int64[np.ndarray, " S"]:
        place = start[rows] + (words % np.maximum(size[rows], 1).astype(np.uint64)).astype(np.int64)
        return np.where(size[rows] > 0, _at(values, place), NO_RECEIVER)

    return propose


def look_alikes(
    positives: Outcomes, pool: np.ndarray, attributes: Attributes
) -> tuple[Propose, Callable[[int], np.ndarray]]:
    """Receivers of the pool that share an attribute value with the positive's receiver."""
    order = np.lexsort((attributes.value, attributes.receiver))
    mine, values = attributes.receiver[order], attributes.value[order]
    start = np.searchsorted(mine, positives.receiver, side="left")
    size = np.searchsorted(mine, positives.receiver, side="right") - start
    inside = np.isin(attributes.receiver, pool)
    by_value = np.lexsort((attributes.receiver[inside], attributes.value[inside]))
    keys = attributes.value[inside][by_value]
    receivers = attributes.receiver[inside][by_value]
    pick = from_segments(start, size, values)

    def propose(rows: np.ndarray, words: UInt64[np.ndarray, " S"]) -> Int64[np.ndarray, " S"]:
        value = pick(rows, words)
        low = np.searchsorted(keys, value, side="left")
        high = np.searchsorted(keys, value, side="right")
        shift = mix(words) % np.maximum(high - low, 1).astype(np.uint64)
        found = _at(receivers, low + shift.astype(np.int64))
        return np.where((size[rows] > 0) & (high > low), found, NO_RECEIVER)

    def options(row: int) -> np.ndarray:
        shared = values[start[row] : start[row] + size[row]]
        return np.unique(receivers[np.isin(keys, shared)])

    return propose, options


def shown_before(
    positives: Outcomes, shown: Outcomes
) -> tuple[Propose, Callable[[int], np.ndarray]]:
    """What the sender was shown up to the positive's time, in its session where it has one."""
    anywhere = np.zeros(len(shown.t), np.int64)
    spans = [
        _until(shown, shown.session, positives, positives.session),
        _until(shown, anywhere, positives, np.zeros(len(positives.t), np.int64)),
    ]
    in_session = positives.session >= 0
    values = np.concatenate([span.values for span in spans])
    start = np.where(in_session, spans[0].start, spans[1].start + len(spans[0].values))
    size = np.where(in_session, spans[0].size, spans[1].size)

    def options(row: int) -> np.ndarray:
        return np.unique(values[start[row] : start[row] + size[row]])

    return from_segments(start, size, values), options


class _Span(NamedTuple):
    start: Int64[np.ndarray, " M"]
    size: Int64[np.ndarray, " M"]
    values: Int64[np.ndarray, " N"]


def _until(shown: Outcomes, shown_part: np.ndarray, asked: Outcomes, part: np.ndarray) -> _Span:
    """Per asked row the receivers shown to the same sender in the same part, up to its time."""
    both = np.stack([np.concatenate([shown.sender, asked.sender]), np.append(shown_part, part)])
    _, ids = np.unique(both, axis=1, return_inverse=True)
    ids = ids.reshape(-1).astype(np.int64)
    times = np.unique(np.append(shown.t, asked.t))
    base = ids * len(times)
    keys = base[: len(shown.t)] + np.searchsorted(times, shown.t)
    order = np.argsort(keys, kind="stable")
    mine = base[len(shown.t) :]
    start = np.searchsorted(keys[order], mine, side="left")
    end = np.searchsorted(keys[order], mine + np.searchsorted(times, asked.t), side="right")
    return _Span(start, end - start, shown.receiver[order])


def mix(words: UInt64[np.ndarray, " S"]) -> UInt64[np.ndarray, " S"]:
    """The next words of splitmix64."""
    return mix_all(words + GOLDEN)


def row_words(positives: Outcomes, word: int) -> UInt64[np.ndarray, " M"]:
    """A random word per positive that depends on nothing but the positive and the seed."""
    words = np.full(len(positives.t), word, np.uint64)
    for column in (positives.sender, positives.receiver, positives.t):
        words = mix(words ^ column.view(np.uint64))
    return words


def _at(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    if not len(values):
        return np.full(len(place), NO_RECEIVER, np.int64)
    return values[np.minimum(place, len(values) - 1)]
