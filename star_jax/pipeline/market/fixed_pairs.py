"""The fixed pairs and ranking queries, each pair with its true logit.

A negative could have been shown in place of its positive: open that day, never shown to the member
before, never applied to by them, and applied to by someone in the same split.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from star_jax.pipeline.market.behaviour import CONTACTED, InMails, JobEvents, Shown
from star_jax.pipeline.market.fields import FIELDS
from star_jax.pipeline.market.size import MarketConfig
from star_jax.pipeline.market.truth import Weights, true_logit
from star_jax.pipeline.market.world import (
    DAY_S,
    NEVER,
    START,
    STRUCTURE,
    TEST_FROM,
    TEXT,
    VAL_FROM,
    World,
    stream,
)

SPLITS = ("train", "val", "test")
POSITIVE, UNIFORM, POPULAR, NEAR, IMPRESSED = range(5)
NEGATIVE_NAMES = ("", "uniform", "popular", "near", "impressed")
SLICE_NAMES = {STRUCTURE: "structure", TEXT: "text"}
_ROUNDS = 400  # Attempts at a negative; a positive without one has no look-alike.


class Pairs(NamedTuple):
    """Positives, each followed by its negatives. Opted-out members have none."""

    sender: Int[np.ndarray, " B"]
    receiver: Int[np.ndarray, " B"]
    time: Int[np.ndarray, " B"]
    kind: Int[np.ndarray, " B"]  # Indexes `NEGATIVE_NAMES`; POSITIVE is the label 1.
    logit: Float[np.ndarray, " B"]
    speaks: Int[np.ndarray, " B"]  # Of the member: PLAIN, STRUCTURE or TEXT.


class Queries(NamedTuple):
    """Members who applied before and the jobs of the split that they should find."""

    member: Int[np.ndarray, " Q"]
    job: Int[np.ndarray, " Q"]
    time: Int[np.ndarray, " Q"]  # Of the member's first application in the split.
    candidates: Int[np.ndarray, " C"]


def split_of(time: Int[np.ndarray, " M"]) -> Int[np.ndarray, " M"]:
    """Index into `SPLITS`."""
    return (time >= VAL_FROM).astype(np.int64) + (time >= TEST_FROM)


def apply_pairs(
    config: MarketConfig,
    world: World,
    shown: Shown,
    events: JobEvents,
    weights: Weights,
    split: str,
) -> Pairs:
    """Applications of a split, each with a uniform negative; in val and test also the others."""
    rng = stream(config, f"apply pairs {split}")
    rows = _applications(world, events)
    rows = rows[split_of(events.time[rows]) == SPLITS.index(split)]
    member, job, time = events.member[rows], events.job[rows], events.time[rows]
    eligible = _Eligible(world, shown, member, time)
    pool, count = np.unique(job, return_counts=True)
    field = world.jobs.offer.field
    alike = _ByField(pool, field[pool])

    def uniform(asked: np.ndarray) -> np.ndarray:
        return pool[rng.integers(len(pool), size=len(asked))]

    def popular(asked: np.ndarray) -> np.ndarray:
        return rng.choice(pool, size=len(asked), p=count / count.sum())

    def near(asked: np.ndarray) -> np.ndarray:
        return alike.draw(rng, field[job[asked]])

    table = [job, eligible.fill(uniform)]
    kinds = [POSITIVE, UNIFORM]
    if split != "train":
        table += [eligible.fill(popular), eligible.fill(near)]
        kinds += [POPULAR, NEAR]
    receivers = np.stack(table, 1)
    row, column = np.nonzero(receivers >= 0)
    sender, receiver, when = member[row], receivers[row, column], time[row]
    logit = true_logit(weights, world.members, sender, when, world.jobs.offer, receiver)
    speaks = world.members.speaks[sender]
    return Pairs(sender, receiver, when, np.array(kinds)[column], logit, speaks)


def contact_pairs(world: World, events: JobEvents, weights: Weights, split: str) -> Pairs:
    """The applications of a split: contacted ones against the others."""
    rows = _applications(world, events)
    rows = rows[split_of(events.time[rows]) == SPLITS.index(split)]
    member, job, time = events.member[rows], events.job[rows], events.time[rows]
    logit = true_logit(weights, world.members, member, time, world.jobs.offer, job)
    kind = np.where(events.action[rows] == CONTACTED, POSITIVE, IMPRESSED)
    return Pairs(member, job, time, kind, logit, world.members.speaks[member])


def reply_pairs(world: World, sent: InMails, weights: Weights, split: str) -> Pairs:
    """The InMails of a split: replied ones against the others; the hire project is the sender."""
    in_split = split_of(sent.time) == SPLITS.index(split)
    rows = np.flatnonzero(world.members.consent[sent.member] & in_split)
    project, member, time = sent.project[rows], sent.member[rows], sent.time[rows]
    offer = world.hire_projects.offer
    logit = true_logit(weights, world.members, member, time, offer, project)
    kind = np.where(sent.replied[rows], POSITIVE, IMPRESSED)
    return Pairs(project, member, time, kind, logit, world.members.speaks[member])


def ranking(world: World, events: JobEvents, split: str) -> Queries:
    """Queries of the warm members of a split, over all jobs applied to in it."""
    rows = _applications(world, events)
    rows = rows[split_of(events.time[rows]) == SPLITS.index(split)]
    candidates = np.unique(events.job[rows])
    rows = rows[np.isin(events.member[rows], warm_members(world, events, split))]
    rows = rows[np.lexsort((events.time[rows], events.member[rows]))]
    first = np.full(len(world.members.field), NEVER)
    np.minimum.at(first, events.member[rows], events.time[rows])
    member = events.member[rows]
    return Queries(member, events.job[rows], first[member], candidates)


def warm_members(world: World, events: JobEvents, split: str) -> Int[np.ndarray, " N"]:
    """Members who applied in an earlier split (for train: in train itself)."""
    rows = _applications(world, events)
    earlier = split_of(events.time[rows]) < max(SPLITS.index(split), 1)
    return np.unique(events.member[rows][earlier])


def _applications(world: World, events: JobEvents) -> Int[np.ndarray, " M"]:
    """Rows of the applications of consenting members, in time order."""
    return np.flatnonzero((events.action <= CONTACTED) & world.members.consent[events.member])


class _Eligible:
    """Draws one receiver for each positive among those that could have been shown instead."""

    def __init__(self, world: World, shown: Shown, member: np.ndarray, time: np.ndarray) -> None:
        self._jobs = world.jobs
        self._member, self._time = member, time
        self._day = (time - START) // DAY_S
        key = self._key(shown.member, shown.job)
        order = np.argsort(key)
        self._shown_key, self._shown_time = key[order], shown.time[order]
        self._applied = shown.applied[order]

    def fill(self, propose: Callable[[np.ndarray], np.ndarray]) -> Int[np.ndarray, " B"]:
        """A receiver per positive, -1 where none was found.

        Args:
          propose: Rows of positives -> one proposal for each, -1 for none.
        """
        found = np.full(len(self._member), -1)
        open_rows = np.arange(len(found))
        for _ in range(_ROUNDS):
            if not len(open_rows):
                break
            job = propose(open_rows)
            fits = self._fits(open_rows, job)
            found[open_rows[fits]] = job[fits]
            open_rows = open_rows[~fits]
        return found

    def _fits(self, rows: np.ndarray, job: np.ndarray) -> np.ndarray:
        day = self._day[rows]
        is_open = (self._jobs.first_day[job] <= day) & (day <= self._jobs.last_day[job])
        key = self._key(self._member[rows], job)
        at = np.minimum(np.searchsorted(self._shown_key, key), len(self._shown_key) - 1)
        known = self._shown_key[at] == key
        before = known & (self._applied[at] | (self._shown_time[at] <= self._time[rows]))
        return (job >= 0) & is_open & ~before

    def _key(self, member: np.ndarray, job: np.ndarray) -> np.ndarray:
        return member * len(self._jobs.posted) + job


class _ByField:
    """Draws from the part of a pool that has a given field of work."""

    def __init__(self, pool: np.ndarray, field: np.ndarray) -> None:
        order = np.argsort(field, kind="stable")
        self._pool = pool[order]
        size = np.bincount(field, minlength=len(FIELDS))
        self._start, self._size = np.cumsum(size) - size, size

    def draw(self, rng: np.random.Generator, field: np.ndarray) -> np.ndarray:
        """One of the pool per asked field, -1 where there is none."""
        size = self._size[field]
        at = self._start[field] + np.floor(rng.random(len(field)) * size).astype(np.int64)
        return np.where(size > 0, self._pool[np.minimum(at, len(self._pool) - 1)], -1)
