"""What happens: sessions of shown jobs and their outcome, InMails and replies, contacts."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from star_jax.pipeline.market.size import MarketConfig, counts
from star_jax.pipeline.market.truth import (
    APPLY,
    CONTACT,
    REPLY,
    Weights,
    probability,
    true_logit,
    with_mean,
)
from star_jax.pipeline.market.world import (
    DAY_S,
    NUM_DAYS,
    START,
    TEXT,
    Members,
    Offer,
    World,
    stream,
)

SESSION_JOBS = 20  # Shown in one session.
ACTIONS = ("APPLY", "APPLY_CONTACTED", "SAVE", "SKIP", "DISMISS")
APPLIED, CONTACTED = 0, 1
REPLIES = ("INMAIL_SENT", "INMAIL_REPLIED")
_SKIPS_PER_APPLY = 2.0  # Of the many that were shown in vain, so many are logged.
_DISMISSES_PER_APPLY = 0.5
APPLY_RATE = 0.04  # Of the jobs shown, unless the market is too small for it.
_PAIRS_MET = 0.35  # Share of all (member, job) pairs that even a tiny market can show.
_VISIT_ACTIVITY = 2.0  # Who visits once has most of a stay's sessions in that time.
GLANCE_S = 45  # From one shown job to the next.
_CHUNK = 1 << 20


class Shown(NamedTuple):
    """Every job shown to a member, once per pair, in time order."""

    member: Int[np.ndarray, " M"]
    job: Int[np.ndarray, " M"]
    time: Int[np.ndarray, " M"]
    session: Int[np.ndarray, " M"]
    applied: Bool[np.ndarray, " M"]


class JobEvents(NamedTuple):
    """The logged part of what was shown; `action` indexes `ACTIONS`."""

    member: Int[np.ndarray, " M"]
    job: Int[np.ndarray, " M"]
    time: Int[np.ndarray, " M"]
    action: Int[np.ndarray, " M"]
    session: Int[np.ndarray, " M"]


class Contacts(NamedTuple):
    """Recruiters who got in touch after an application."""

    recruiter: Int[np.ndarray, " M"]
    member: Int[np.ndarray, " M"]
    time: Int[np.ndarray, " M"]


class InMails(NamedTuple):
    """Messages of hire projects to members; `replied_at` matters where `replied`."""

    project: Int[np.ndarray, " M"]
    member: Int[np.ndarray, " M"]
    time: Int[np.ndarray, " M"]
    replied: Bool[np.ndarray, " M"]
    replied_at: Int[np.ndarray, " M"]


def show_jobs(config: MarketConfig, world: World) -> tuple[Shown, Weights]:
    """Sessions of uniformly drawn open jobs, as many as give the paper's number of applications.

    A member sees a job at most once, so that no earlier event of a pair tells about a later one.

    Returns:
      What was shown, and the weights of the planted logit with their intercept.
    """
    target = counts(config).edges["member__apply__job"]
    weights = _apply_weights(config, world, target)
    factor = 1.2
    while True:  # A small market runs out of pairs not yet shown, so it takes more sessions.
        rng = stream(config, "sessions")
        rows = _shown_in_sessions(rng, world, round(factor * target / APPLY_RATE / SESSION_JOBS))
        rate = probability(_logits(weights, world, rows.member, rows.time, rows.job))
        if rate.sum() >= target:
            break
        factor *= 1.5
        assert factor < 100, "_PAIRS_MET promises more pairs than there are"
    # Sessions are numbered at random, so cutting them off where the target is met is no choice.
    by_session = np.argsort(rows.session, kind="stable")
    last = np.searchsorted(np.cumsum(rate[by_session]), target)
    kept = rows.session <= rows.session[by_session[last]]
    rows, rate = take(rows, kept), rate[kept]
    return rows._replace(applied=_systematic(rng, rate)), weights


def job_events(
    config: MarketConfig, world: World, shown: Shown, apply: Weights
) -> tuple[JobEvents, Contacts, Weights]:
    """Logs all applications and a part of the rest; some applicants are contacted."""
    rng = stream(config, "actions")
    edges = counts(config).edges
    logit = _logits(apply, world, shown.member, shown.time, shown.job)
    applied = np.flatnonzero(shown.applied)
    target = edges["recruiter__contact__member"]
    contacted, contacts, weights = _contacts(rng, world, take(shown, applied), target)
    saved = _weighted(rng, 0.5 * logit, np.arange(len(logit)), edges["member__save__job"])
    rest = np.setdiff1d(np.flatnonzero(~shown.applied), saved)
    num_dismissed = min(round(_DISMISSES_PER_APPLY * len(applied)), len(rest) // 4)
    dismissed = _weighted(rng, -0.4 * logit, rest, num_dismissed)
    rest = np.setdiff1d(rest, dismissed)
    num_skipped = min(round(_SKIPS_PER_APPLY * len(applied)), len(rest))
    skipped = rng.choice(rest, size=num_skipped, replace=False)
    rows = np.concatenate([applied, saved, skipped, dismissed])
    action = np.concatenate(
        [
            np.where(contacted, CONTACTED, APPLIED),
            np.full(len(saved), 2),
            np.full(len(skipped), 3),
            np.full(len(dismissed), 4),
        ]
    )
    # Who applies and saves the same job saves it afterwards: a bookmark never foretells.
    time = shown.time[rows] + np.where(action <= CONTACTED, 10, 20)
    order = np.lexsort((action, shown.job[rows], shown.member[rows], time))
    rows, action, time = rows[order], action[order], time[order]
    events = JobEvents(shown.member[rows], shown.job[rows], time, action, shown.session[rows])
    return events, contacts, weights


def inmails(config: MarketConfig, world: World) -> tuple[InMails, Weights]:
    """Hire projects write to members who look right; replies follow the planted logit.

    They find members by their attributes, so that those without any get no message.
    """
    rng = stream(config, "inmails")
    edges = counts(config).edges
    members, projects = world.members, world.hire_projects
    num_members, num_projects = len(members.field), len(projects.recruiter)
    target = edges["hire_project__inmail__member"]
    tried = np.unique(rng.integers(num_members * num_projects, size=12 * target))
    tried = tried[members.speaks[tried % num_members] != TEXT]
    project, member = tried // num_members, tried % num_members
    earliest = np.maximum(members.joined[member], START) + DAY_S
    time = earliest + (rng.random(len(tried)) * (START + NUM_DAYS * DAY_S - earliest)).astype(int)
    fits = true_logit(REPLY, members, member, time, projects.offer, project)
    chosen = _weighted(rng, 1.2 * fits, np.arange(len(tried)), target)
    chosen = chosen[np.lexsort((member[chosen], time[chosen]))]
    project, member, time, fits = project[chosen], member[chosen], time[chosen], fits[chosen]
    rate = edges["member__positive__recruiter"] / len(fits)
    weights = with_mean(REPLY, fits, rate)
    replied = _systematic(rng, probability(fits + weights.intercept - REPLY.intercept))
    replied_at = time + rng.integers(1800, 3 * DAY_S, len(time))
    return InMails(project, member, time, replied, replied_at), weights


def session_weight(members: Members) -> Float[np.ndarray, " N"]:
    """Sessions of members, up to a factor."""
    present = np.maximum(members.last_day - members.first_day, 0)
    # Who comes for a short time looks around more than that time would give them.
    weight = members.activity * np.sqrt(present) * (1 + 0.3 * members.urgency)
    return np.where(members.speaks == TEXT, _VISIT_ACTIVITY * weight, weight)


def first_of_pairs(
    member: Int[np.ndarray, " M"], job: Int[np.ndarray, " M"], time: Int[np.ndarray, " M"]
) -> Int[np.ndarray, " first"]:
    """Rows by member and job, the earliest of each pair."""
    order = np.lexsort((time, job, member))
    member, job = member[order], job[order]
    new = np.ones(len(order), bool)
    new[1:] = (member[1:] != member[:-1]) | (job[1:] != job[:-1])
    return order[new]


def take(rows: Shown, index: np.ndarray) -> Shown:
    """Some of the rows."""
    return Shown(*(column[index] for column in rows))


def _contacts(
    rng: np.random.Generator, world: World, applied: Shown, target: int
) -> tuple[np.ndarray, Contacts, Weights]:
    logit = _logits(CONTACT, world, applied.member, applied.time, applied.job)
    weights = with_mean(CONTACT, logit, target / len(logit))
    contacted = _systematic(rng, probability(logit + weights.intercept - CONTACT.intercept))
    rows = np.flatnonzero(contacted)
    time = applied.time[rows] + rng.integers(DAY_S // 4, 7 * DAY_S, len(rows))
    recruiter = world.jobs.recruiter[applied.job[rows]]
    return contacted, Contacts(recruiter, applied.member[rows], time), weights


def _open_by_day(world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Open jobs of all days in one array, and where each day's begin and how many they are."""
    first = np.maximum(world.jobs.first_day, 0)
    last = np.minimum(world.jobs.last_day, NUM_DAYS - 1)
    length = last - first + 1
    job = np.repeat(np.arange(len(first)), length)
    offset = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    day = np.repeat(first, length) + offset
    size = np.bincount(day, minlength=NUM_DAYS)
    return job[np.argsort(day, kind="stable")], np.cumsum(size) - size, size


def _apply_weights(config: MarketConfig, world: World, target: int) -> Weights:
    """The apply weights with the intercept that gives the wanted share of applications."""
    num = 50_000
    rng = stream(config, "intercept")
    open_jobs, start, size = _open_by_day(world)
    member, day = _sessions(rng, world, num)
    job = open_jobs[start[day] + np.floor(rng.random(num) * size[day]).astype(np.int64)]
    logit = _logits(APPLY, world, member, START + day * DAY_S + DAY_S // 2, job)
    num_pairs = len(world.members.field) * len(world.jobs.posted)
    rate = max(APPLY_RATE, target / (_PAIRS_MET * num_pairs))
    return with_mean(APPLY, logit, rate)


def _shown_in_sessions(rng: np.random.Generator, world: World, num: int) -> Shown:
    open_jobs, start, size = _open_by_day(world)
    member, day = _sessions(rng, world, num)
    slot = rng.random((num, SESSION_JOBS))
    job = open_jobs[start[day][:, None] + np.floor(slot * size[day][:, None]).astype(np.int64)]
    begin = START + day * DAY_S + rng.integers(8 * 3600, 22 * 3600, num)
    time = begin[:, None] + GLANCE_S * np.arange(SESSION_JOBS)
    session = np.repeat(np.arange(num), SESSION_JOBS)
    no_outcome = np.zeros(job.size, bool)
    rows = Shown(np.repeat(member, SESSION_JOBS), job.ravel(), time.ravel(), session, no_outcome)
    kept = first_of_pairs(rows.member, rows.job, rows.time)
    return take(rows, kept[np.lexsort((rows.session[kept], rows.time[kept]))])


def _sessions(rng: np.random.Generator, world: World, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Member and day of each session."""
    members = world.members
    present = np.maximum(members.last_day - members.first_day, 0)
    weight = session_weight(members)
    member = rng.choice(len(weight), size=num, p=weight / weight.sum())
    day = members.first_day[member] + np.floor(rng.random(num) * present[member]).astype(np.int64)
    return member, day


def _logits(
    weights: Weights, world: World, member: np.ndarray, time: np.ndarray, job: np.ndarray
) -> np.ndarray:
    offer: Offer = world.jobs.offer
    parts = [
        true_logit(weights, world.members, member[i:j], time[i:j], offer, job[i:j])
        for i, j in ((i, i + _CHUNK) for i in range(0, len(member), _CHUNK))
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _systematic(rng: np.random.Generator, rate: Float[np.ndarray, " M"]) -> np.ndarray:
    """Draws each row with exactly its probability; as many as their sum, give or take 1."""
    order = rng.permutation(len(rate))
    reached = np.floor(np.cumsum(rate[order]) + rng.random())
    drawn = np.zeros(len(rate), bool)
    drawn[order] = np.diff(reached, prepend=0.0) > 0
    return drawn


def _weighted(
    rng: np.random.Generator, log_weight: np.ndarray, rows: np.ndarray, num: int
) -> np.ndarray:
    """Draws `num` of the rows without replacement, likelier where the weight is larger."""
    key = log_weight[rows] + rng.gumbel(size=len(rows))
    num = min(num, len(rows))
    return np.sort(rows[np.argpartition(-key, num - 1)[:num]]) if num else rows[:0]
