"""Writes profiles, resumes and job texts; each version is drawn on its own, so none shifts others.

The texts name field, skills, level and place in one of several wordings, and never a company.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from star_jax.pipeline.market import places, sentences
from star_jax.pipeline.market.fields import FIELDS, GENERAL_SKILLS
from star_jax.pipeline.market.size import MarketConfig
from star_jax.pipeline.market.world import NEVER, STRUCTURE, World, stream

_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])")
_DRAWS = 64  # Random numbers that a text has for its choices.
_VERSIONS = 2


class Texts(NamedTuple):
    """Versions of the texts of one kind, sorted by entity and time."""

    entity: Int[np.ndarray, " N"]
    time: Int[np.ndarray, " N"]
    text: list[str]


class _Facts(NamedTuple):
    """What one text may say."""

    field: int
    second_field: int
    city: int
    seniority: int
    remote: bool


class _Style(NamedTuple):
    openings: Sequence[str]
    skills: Sequence[str]
    fillers: Sequence[str]
    levels: Sequence[Sequence[str]]


_PROFILE = _Style(
    sentences.MEMBER_OPENINGS,
    sentences.MEMBER_SKILLS,
    sentences.MEMBER_FILLERS,
    places.MEMBER_LEVELS,
)
_RESUME = _Style(
    sentences.RESUME_OPENINGS,
    sentences.RESUME_SKILLS,
    sentences.MEMBER_FILLERS,
    places.RESUME_LEVELS,
)
_JOB = _Style(
    sentences.JOB_OPENINGS, sentences.JOB_SKILLS, sentences.JOB_FILLERS, places.JOB_LEVELS
)


class _Chooser:
    """Turns one row of random numbers into choices, in the order in which they are asked for."""

    def __init__(self, draws: Float[np.ndarray, " D"]) -> None:
        self._draws = draws.tolist()
        self._next = 0

    def uniform(self) -> float:
        value = self._draws[self._next % len(self._draws)]
        # Long texts go round; a new turn must not repeat the last one.
        turn = self._next // len(self._draws)
        self._next += 1
        return (value + 0.618034 * turn) % 1.0

    def one(self, options: Sequence[str]) -> str:
        return options[int(self.uniform() * len(options))]


def member_texts(config: MarketConfig, world: World) -> dict[str, Texts]:
    """Profiles and resumes; the second version of either follows the member's move."""
    members = world.members
    every = np.arange(len(members.field))
    return {
        "profile": _versions(config, world, "profile", _PROFILE, every),
        "resume": _versions(config, world, "resume", _RESUME, every[members.has_resume]),
    }


def job_texts(config: MarketConfig, world: World) -> Texts:
    """Job texts; some are worded anew while the job is open."""
    rng = stream(config, "job texts")
    num = len(world.jobs.posted)
    draws = rng.random((num, _VERSIONS, _DRAWS))
    edited = rng.random(num) < config.edit_share / 3
    edited_at = world.jobs.posted + rng.integers(86_400, 20 * 86_400, num)
    offer = world.jobs.offer
    entity, time, text = [], [], []
    for job in range(num):
        facts = _Facts(
            int(offer.field[job]),
            int(offer.second_field[job]),
            int(offer.city[job]),
            int(offer.seniority[job]),
            bool(offer.remote[job]),
        )
        for version in range(1 + int(edited[job])):
            entity.append(job)
            time.append(edited_at[job] if version else world.jobs.posted[job])
            choose = _Chooser(draws[job, version])
            text.append(_write(choose, _JOB, facts, config.text_words))
    return Texts(np.array(entity), np.array(time), text)


def _versions(
    config: MarketConfig, world: World, kind: str, style: _Style, rows: np.ndarray
) -> Texts:
    members = world.members
    draws = stream(config, kind).random((len(members.field), _VERSIONS, _DRAWS))
    entity, time, text = [], [], []
    for member in rows.tolist():
        moved = int(members.moved[member])
        for version in range(2 if moved != NEVER else 1):
            facts = _Facts(
                int(members.field[member]),
                int(members.second_field[member]),
                int(members.city[member, version]),
                int(members.seniority[member, version]),
                False,
            )
            choose = _Chooser(draws[member, version])
            silent = members.speaks[member] == STRUCTURE
            entity.append(member)
            time.append(moved if version else int(members.joined[member]))
            text.append(
                _filler(choose, style, [], config.text_words)
                if silent
                else _write(choose, style, facts, config.text_words)
            )
    return Texts(np.array(entity, np.int64), np.array(time, np.int64), text)


def _write(choose: _Chooser, style: _Style, facts: _Facts, max_words: int) -> str:
    """Decisive facts first, for texts are cut off at their end."""
    _, wordings = places.CITIES[facts.city]
    said = [
        choose.one(style.openings).format(
            level=choose.one(style.levels[facts.seniority]),
            title=choose.one(_any(choose, FIELDS[facts.field].titles)),
            place=choose.one((wordings[0], *wordings)),  # The plain name comes half of the time.
        )
    ]
    if facts.remote:
        said.append(choose.one(sentences.JOB_REMOTE))
    mine = list(FIELDS[facts.field].skills)
    others = list(FIELDS[facts.second_field].skills)
    for turn in range(2 + (max_words - 20) // 40):
        if turn and turn % 2 == 0:  # A long text begins anew with all skills.
            mine = list(FIELDS[facts.field].skills)
            others = list(FIELDS[facts.second_field].skills)
        skills = [
            _take(choose, mine),
            _take(choose, mine if choose.uniform() < 0.6 else others),
            _any(choose, GENERAL_SKILLS) if choose.uniform() < 0.3 else _take(choose, mine),
        ]
        a, b, c = (choose.one(skill) for skill in skills)
        said.append(choose.one(style.skills).format(a=a, b=b, c=c))
    return _filler(choose, style, said, max_words)


def _filler(choose: _Chooser, style: _Style, said: list[str], max_words: int) -> str:
    """Adds sentences without news while they fit, then drops what is too long."""
    words = " ".join(said).split()
    start = int(choose.uniform() * len(style.fillers))
    step = 1 + 2 * int(choose.uniform() * (len(style.fillers) // 2))  # Odd: visits all of 16.
    for turn in range(max_words):
        more = style.fillers[(start + step * turn) % len(style.fillers)].split()
        if len(words) + len(more) > max_words:
            break
        words += more
    text = _ARTICLE.sub(r"\1n ", " ".join(words[:max_words]))
    return text[0].upper() + text[1:]


def _any(choose: _Chooser, options: Sequence[Sequence[str]]) -> Sequence[str]:
    return options[int(choose.uniform() * len(options))]


def _take(choose: _Chooser, options: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Removes one of the options, so that a text does not say it twice."""
    return options.pop(int(choose.uniform() * len(options)))
