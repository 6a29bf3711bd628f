"""What members, jobs, projects, positions and companies are like: functions of their numbers.

The distributions are those of `star_jax.pipeline.market.world`, and the truth is the same. Other
than there, all consent, every fourth member moves, and two positions may be the same title at the
same company.
"""

import functools
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int
from scipy.special import ndtri

from star_jax.pipeline.market.fields import FIELDS
from star_jax.pipeline.market.places import SENIORITY
from star_jax.pipeline.market.scale.calendar import JobCalendar
from star_jax.pipeline.market.scale.draws import Draws, below, choose
from star_jax.pipeline.market.size import MarketConfig
from star_jax.pipeline.market.world import (
    CITY_SHARES,
    DAY_S,
    END,
    FIELD_SHARES,
    NEVER,
    NUM_CULTURES,
    NUM_DAYS,
    PLAIN,
    RELATED,
    SECOND_IS_RELATED,
    SENIORITY_SHARES,
    START,
    STRUCTURE,
    TEXT,
    TITLES_PER_FIELD,
    VISIT_DAYS,
    Members,
    Offer,
    Positions,
)

MOVES_EVERY = 4
"""Of so many members the first one moves, which changes city and text, perhaps the level."""
_MEMBER_SLOTS, _OFFER_SLOTS = 21, 9
OfferKind = Literal["job", "hire_project"]


class Latents:
    """Gives rows of any entities; holds none."""

    def __init__(self, seed: int, nodes: Mapping[str, int]) -> None:
        self.nodes = dict(nodes)
        self._member, self._company = Draws(seed, "member"), Draws(seed, "company")
        self._position = Draws(seed, "position")
        self._offer = {kind: Draws(seed, kind) for kind in ("job", "hire_project")}
        self._recruiter = Draws(seed, "recruiter of hire_project"), Draws(seed, "recruiter of job")
        self.calendar = JobCalendar(nodes["job"])

    def members(self, index: Int[np.ndarray, " N"]) -> Members:
        """Members by number: row i is member `index[i]`."""
        u = self._member.uniform(index, _MEMBER_SLOTS)
        options = MarketConfig()
        field, second = _fields(u[0], u[1], u[2])
        position = self.positions_of_field(u[3], field)
        company = self.positions(position).company
        own = below(u[4], NUM_CULTURES)
        culture = np.where(u[5] < 0.97, company % NUM_CULTURES, own)
        home = np.where(u[6] < 0.5, self.company_city(company), choose(u[7], CITY_SHARES))
        away = np.where(u[8] < 0.7, choose(u[9], CITY_SHARES), home)
        seniority = choose(u[10], np.array(SENIORITY_SHARES))
        promoted = np.minimum(seniority + (u[11] < 0.7), len(SENIORITY) - 1)
        joined = _joined(u[12], u[13], u[20])
        earliest = np.maximum(joined, START) + DAY_S
        moved = earliest + below(u[14], np.maximum(END - earliest, DAY_S))
        speaks = np.full(len(index), PLAIN)
        speaks[u[15] < options.structure_share + options.text_share] = TEXT
        speaks[u[15] < options.structure_share] = STRUCTURE
        first_day, last_day = _stays(joined, speaks, u[16])
        return Members(
            field=field,
            second_field=second,
            culture=culture,
            city=np.stack([home, away], 1),
            seniority=np.stack([seniority, promoted], 1),
            moved=np.where(index % MOVES_EVERY == 0, moved, NEVER),
            joined=joined,
            first_day=first_day,
            last_day=last_day,
            position=position,
            activity=np.exp(0.8 * _normal(u[17])),
            gender=below(u[18], 2),
            urgency=choose(u[19], np.array((0.5, 0.35, 0.15))),
            speaks=speaks,
            consent=np.ones(len(index), bool),
            has_resume=np.zeros(len(index), bool),
        )

    def offers(self, kind: OfferKind, index: Int[np.ndarray, " N"]) -> Offer:
        """What jobs or hire projects ask for, by number."""
        u = self._offer[kind].uniform(index, _OFFER_SLOTS)
        field, second = _fields(u[0], u[1], u[2])
        company = self.positions(self.positions_of_field(u[3], field)).company
        city = np.where(u[4] < 0.6, self.company_city(company), choose(u[5], CITY_SHARES))
        seniority = choose(u[6], np.array(SENIORITY_SHARES))
        return Offer(field, second, company % NUM_CULTURES, city, seniority, u[7] < 0.15)

    @functools.cached_property
    def job_offers(self) -> Offer:
        """Of all jobs, six bytes each."""
        num, step = self.nodes["job"], 1 << 16
        columns = [np.empty(num, np.bool_ if n == "remote" else np.int8) for n in Offer._fields]
        for first in range(0, num, step):
            part = self.offers("job", np.arange(first, min(first + step, num)))
            for column, found in zip(columns, part, strict=True):
                column[first : first + step] = found
        return Offer(*columns)

    def posts(
        self, index: Int[np.ndarray, " N"]
    ) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
        """The positions that jobs offer, and when they were posted."""
        u = self._offer["job"].uniform(index, _OFFER_SLOTS)
        position = self.positions_of_field(u[3], _fields(u[0], u[1], u[2])[0])
        first_day, _ = self.calendar.days(index)
        return position, START + first_day * DAY_S + 3600 + below(u[8], 6 * 3600)

    def positions(self, position: Int[np.ndarray, "*N"]) -> Positions:
        """Titles and companies of positions; big companies have more of them."""
        field, rank = position % len(FIELDS), position // len(FIELDS)
        title = field * TITLES_PER_FIELD + rank % TITLES_PER_FIELD
        u = self._position.uniform(position.ravel(), 1)[0].reshape(position.shape)
        return Positions(self.companies(u), title)

    def companies(self, uniform: Float64[np.ndarray, "*N"]) -> Int[np.ndarray, "*N"]:
        """Companies by their shares, which fall as 1 / (3 + number)."""
        num = self.nodes["company"]
        found = np.floor(3.0 * ((num + 3.0) / 3.0) ** uniform - 3.0).astype(np.int64)
        return np.clip(found, 0, num - 1)

    def company_city(self, company: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
        """Where companies are."""
        return choose(self._company.uniform(company, 1)[0], CITY_SHARES)

    def recruiters(self, kind: OfferKind, index: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
        """Who recruits for jobs or hire projects."""
        return below(self._recruiter[kind == "job"].uniform(index, 1)[0], self.nodes["recruiter"])

    def positions_of_field(
        self, uniform: Float64[np.ndarray, "*N"], field: Int[np.ndarray, "*_"]
    ) -> Int[np.ndarray, "*N"]:
        """Positions drawn evenly from those of a field: of companies by their shares."""
        size = (self.nodes["position"] - field + len(FIELDS) - 1) // len(FIELDS)
        return field + len(FIELDS) * below(uniform, size)


def _fields(
    main: np.ndarray, is_related: np.ndarray, second: np.ndarray
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Main and second field of work; the second is mostly a related one."""
    field = choose(main, FIELD_SHARES)
    near = RELATED[field, below(second, RELATED.shape[1])]
    return field, np.where(is_related < SECOND_IS_RELATED, near, below(second, len(FIELDS)))


def _joined(
    which: Float64[np.ndarray, " N"],
    when: Float64[np.ndarray, " N"],
    second: Float64[np.ndarray, " N"],
) -> Int[np.ndarray, " N"]:
    """Two fifths in the window, ever more of them, the others in the thousand days before."""
    day = np.where(which < 0.4, np.floor(when**0.6 * NUM_DAYS), -1.0 - np.floor(when * 999))
    return START + day.astype(np.int64) * DAY_S + 2 + below(second, 7 * 3600 - 2)


def _stays(
    joined: Int[np.ndarray, " N"], speaks: Int[np.ndarray, " N"], wait: Float64[np.ndarray, " N"]
) -> tuple[np.ndarray, np.ndarray]:
    """Whole days after joining; all of them, or one visit at some time."""
    first = np.maximum((joined - START) // DAY_S + 1, 0)
    visit = first + below(wait, np.maximum(NUM_DAYS - VISIT_DAYS - first, 0))
    visits = speaks == TEXT
    last = np.minimum(np.where(visits, visit + VISIT_DAYS, NUM_DAYS), NUM_DAYS)
    return np.where(visits, visit, first), last


def _normal(uniform: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    return ndtri(uniform + 2.0**-54)
