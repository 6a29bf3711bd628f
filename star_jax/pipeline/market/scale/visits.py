"""What a block of members does: jobs shown in sessions, applications, saves, messages, contacts.

As in `star_jax.pipeline.market.behaviour`, members are shown open jobs, drawn evenly, and apply
with the probability of the planted logit. What is in proportion to the whole market there is
measured on a sample here, so that no block waits for another: counts are those of the paper's
proportions within some percent.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from star_jax.pipeline.market.behaviour import (
    APPLY_RATE,
    GLANCE_S,
    SESSION_JOBS,
    Contacts,
    InMails,
    first_of_pairs,
    session_weight,
)
from star_jax.pipeline.market.fixed_pairs import split_of
from star_jax.pipeline.market.scale.draws import Draws, below
from star_jax.pipeline.market.scale.latents import Latents
from star_jax.pipeline.market.scale.links import per_sender
from star_jax.pipeline.market.size import EDGE_MILLIONS, NODE_MILLIONS
from star_jax.pipeline.market.truth import (
    APPLY,
    CONTACT,
    REPLY,
    Weights,
    probability,
    true_logit,
    with_mean,
)
from star_jax.pipeline.market.world import DAY_S, END, START, TEXT, Members

_CHUNK_SESSIONS = 1 << 15
_MOST_SESSIONS = 1 << 12  # Of one member.
_SAMPLE = 1 << 13
_MESSAGE_TRIES = 24


class Applications(NamedTuple):
    """Rows in the order of members; `member` is a number, `row` its place in the block."""

    row: Int[np.ndarray, " M"]
    member: Int[np.ndarray, " M"]
    job: Int[np.ndarray, " M"]
    time: Int[np.ndarray, " M"]
    logit: Float[np.ndarray, " M"]


class Saves(NamedTuple):
    """Jobs that members kept in mind."""

    member: Int[np.ndarray, " M"]
    job: Int[np.ndarray, " M"]
    time: Int[np.ndarray, " M"]


class _Shown(NamedTuple):
    row: Int[np.ndarray, " M"]
    job: Int[np.ndarray, " M"]
    time: Int[np.ndarray, " M"]
    apply: Float[np.ndarray, " M"]  # Draws in [0, 1).
    save: Float[np.ndarray, " M"]


class Visits:
    """Behaviour of members, whatever block they are in."""

    applications_per_member = EDGE_MILLIONS["member__apply__job"] / NODE_MILLIONS["member"]

    def __init__(self, seed: int, latents: Latents) -> None:
        """Measures rates on a sample, which depends on the seed and the numbers of nodes alone."""
        self._latents = latents
        self._draws = {name: Draws(seed, name) for name in ("sessions", "messages", "contacts")}
        num = min(_SAMPLE, latents.nodes["member"])
        self._sample = np.arange(num) * (latents.nodes["member"] // num)
        shown = self.applications_per_member / APPLY_RATE
        weight = session_weight(latents.members(self._sample))
        self._sessions_per_weight = shown / SESSION_JOBS / weight.mean()

    @functools.cached_property
    def apply(self) -> Weights:
        """Of the planted logit, with its intercept."""
        members, shown = self._sampled
        return with_mean(APPLY, self._logits(APPLY, members, shown), APPLY_RATE)

    @functools.cached_property
    def _save_factor(self) -> float:
        members, shown = self._sampled
        wanted = APPLY_RATE * EDGE_MILLIONS["member__save__job"]
        wanted /= EDGE_MILLIONS["member__apply__job"]
        return _factor(np.exp(0.5 * self._logits(self.apply, members, shown)), wanted)

    @functools.cached_property
    def _sampled(self) -> tuple[Members, _Shown]:
        """Of one session a member at most, so that the sample is small."""
        members = self._latents.members(self._sample)
        parts = list(self._shown(self._sample, members, most=4))
        return members, _Shown(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def shares_of_splits(self) -> Float[np.ndarray, " 3"]:
        """Of what is shown, by the split that it lies in; about, for it is of a sample."""
        _, shown = self._sampled
        return np.bincount(split_of(shown.time), minlength=3) / len(shown.time)

    def act(self, index: Int[np.ndarray, " N"], members: Members) -> tuple[Applications, Saves]:
        """What members do with the jobs that they are shown; of each pair the first time counts."""
        applied, saved = [], []
        for shown in self._shown(index, members):
            logit = self._logits(self.apply, members, shown)
            applies = np.flatnonzero(shown.apply < probability(logit))
            row = shown.row[applies]
            applied.append(
                (row, index[row], shown.job[applies], shown.time[applies] + 10, logit[applies])
            )
            saves = np.flatnonzero(shown.save < self._save_factor * np.exp(0.5 * logit))
            saved.append((index[shown.row[saves]], shown.job[saves], shown.time[saves] + 20))
        empty = np.zeros(0, np.int64)
        applications = Applications(*_joined(applied, (empty,) * 4 + (np.zeros(0),)))
        first = first_of_pairs(*applications[1:4])
        applications = Applications(*(column[first] for column in applications))
        saves = Saves(*_joined(saved, (empty,) * 3))
        first = first_of_pairs(*saves)
        return applications, Saves(*(column[first] for column in saves))

    def messages(self, index: Int[np.ndarray, " N"], members: Members) -> InMails:
        """InMails of projects that find members who look right; replies follow their logit."""
        sent = self._sent(self._tried(index, members))
        logit = sent.fits + self._reply.intercept - REPLY.intercept
        replied = sent.replies < probability(logit)
        replied_at = sent.time + 1800 + below(sent.later, 3 * DAY_S - 1800)
        return InMails(sent.project, index[sent.row], sent.time, replied, replied_at)

    def contacts(self, applications: Applications, members: Members) -> Contacts:
        """Recruiters who get in touch with applicants."""
        rows, member, job, time, _ = applications
        offers = self._latents.job_offers
        logit = true_logit(self._contact, members, rows, time, offers, job)
        u = self._draws["contacts"].uniform(member * self._latents.nodes["job"] + job, 2)
        met = np.flatnonzero(u[0] < probability(logit))
        recruiter = self._latents.recruiters("job", job[met])
        later = DAY_S // 4 + below(u[1, met], 7 * DAY_S)
        return Contacts(recruiter, member[met], time[met] + later)

    @functools.cached_property
    def _contact(self) -> Weights:
        members, shown = self._sampled
        chance = probability(self._logits(self.apply, members, shown))
        applied = _Shown(*(column[shown.apply < chance] for column in shown))
        logit = self._logits(CONTACT, members, applied)
        rate = EDGE_MILLIONS["recruiter__contact__member"] / EDGE_MILLIONS["member__apply__job"]
        return with_mean(CONTACT, logit, rate)

    @functools.cached_property
    def _message_sample(self) -> "_Tried":
        return self._tried(self._sample, self._latents.members(self._sample))

    @functools.cached_property
    def _message_factor(self) -> float:
        wanted = per_sender("hire_project__inmail__member") / _MESSAGE_TRIES
        return _factor(np.exp(1.2 * self._message_sample.fits), wanted)

    @functools.cached_property
    def _reply(self) -> Weights:
        rate = EDGE_MILLIONS["member__positive__recruiter"]
        rate /= EDGE_MILLIONS["hire_project__inmail__member"]
        return with_mean(REPLY, self._sent(self._message_sample).fits, rate)

    def _sent(self, tried: "_Tried") -> "_Tried":
        sent = tried.sent < self._message_factor * np.exp(1.2 * tried.fits)
        return _Tried(*(column[sent] for column in tried))

    def _tried(self, index: Int[np.ndarray, " N"], members: Members) -> "_Tried":
        """Projects that look at members; at those without attributes none does."""
        rows = np.flatnonzero(members.speaks != TEXT)
        u = self._draws["messages"].uniform(index[rows], 5 * _MESSAGE_TRIES)
        which, when, sent, replies, later = (part.T.ravel() for part in np.split(u, 5))
        row = np.repeat(rows, _MESSAGE_TRIES)
        project = below(which, self._latents.nodes["hire_project"])
        earliest = np.maximum(members.joined[row], START) + DAY_S
        time = earliest + below(when, np.maximum(END - earliest, 1))
        offers = self._latents.offers("hire_project", project)
        fits = true_logit(REPLY, members, row, time, offers, np.arange(len(row)))
        return _Tried(row, project, time, fits, sent, replies, later)

    def _logits(self, weights: Weights, members: Members, shown: _Shown) -> Float[np.ndarray, " M"]:
        offers = self._latents.job_offers
        return true_logit(weights, members, shown.row, shown.time, offers, shown.job)

    def _shown(
        self, index: Int[np.ndarray, " N"], members: Members, most: int = _MOST_SESSIONS
    ) -> Iterator[_Shown]:
        """Jobs shown in some sessions at a time."""
        wanted = self._sessions_per_weight * session_weight(members)
        extra = self._draws["sessions"].uniform(index * _MOST_SESSIONS + _MOST_SESSIONS - 1, 1)[0]
        num = np.minimum(np.floor(wanted + extra).astype(np.int64), most)
        upto = np.cumsum(num)
        for first in range(0, int(upto[-1]) if len(upto) else 0, _CHUNK_SESSIONS):
            session = np.arange(first, min(first + _CHUNK_SESSIONS, int(upto[-1])))
            row = np.searchsorted(upto, session, side="right")
            entity = index[row] * _MOST_SESSIONS + session - (upto[row] - num[row])
            u = self._draws["sessions"].uniform(entity, 2 + 4 * SESSION_JOBS)
            present = members.last_day[row] - members.first_day[row]
            day = members.first_day[row] + below(u[0], present)
            ages, jobs, apply, save = (part.ravel() for part in np.split(u[2:], 4))
            job = self._latents.calendar.open_on(np.tile(day, SESSION_JOBS), ages, jobs)
            begin = START + day * DAY_S + 8 * 3600 + below(u[1], 14 * 3600)
            time = begin[None] + GLANCE_S * np.arange(SESSION_JOBS)[:, None]
            yield _Shown(np.tile(row, SESSION_JOBS), job, time.ravel(), apply, save)


class _Tried(NamedTuple):
    row: Int[np.ndarray, " M"]
    project: Int[np.ndarray, " M"]
    time: Int[np.ndarray, " M"]
    fits: Float[np.ndarray, " M"]
    sent: Float[np.ndarray, " M"]  # Draws in [0, 1).
    replies: Float[np.ndarray, " M"]
    later: Float[np.ndarray, " M"]


def _factor(weight: Float[np.ndarray, " M"], rate: float) -> float:
    """What makes `min(1, factor * weight)` a probability of that mean."""
    low, high = 0.0, 1.0 / weight.min()
    for _ in range(60):
        middle = (low + high) / 2
        below_rate = np.minimum(1.0, middle * weight).mean() < rate
        low, high = (middle, high) if below_rate else (low, middle)
    return (low + high) / 2


def _joined(parts: list[tuple], empty: tuple) -> Iterator[np.ndarray]:
    return (np.concatenate(columns) for columns in zip(empty, *parts, strict=True))
