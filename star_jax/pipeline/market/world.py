"""The latent state of the market: what members, jobs and companies are like, unseen by models.

Three hidden company cultures are never put in words: only who works where gives them away.
"""

import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from star_jax.pipeline.market.fields import FIELDS
from star_jax.pipeline.market.places import CITIES, SENIORITY
from star_jax.pipeline.market.size import NUM_TITLES, MarketConfig, counts

DAY_S = 86_400
START = 1_736_121_600  # 2025-01-06, a Monday, 00:00 UTC.
NUM_DAYS = 240
END = START + NUM_DAYS * DAY_S
VAL_FROM = START + 190 * DAY_S
TEST_FROM = START + 214 * DAY_S
NEVER = np.iinfo(np.int64).max
NUM_CULTURES = 3
PLAIN, STRUCTURE, TEXT = 0, 1, 2  # What says most about a member.
VISIT_DAYS = 14  # Those of whom texts say most come once, for so long.

TITLES_PER_FIELD = NUM_TITLES // len(FIELDS)
SENIORITY_SHARES = (0.15, 0.28, 0.30, 0.17, 0.10)
SECOND_IS_RELATED = 0.7
_AREAS = np.unique([field.area for field in FIELDS], return_inverse=True)[1]
RELATED = np.stack([np.flatnonzero(area == _AREAS) for area in _AREAS])
"""Fields of the area of each field, itself among them."""
_SHUFFLED = np.random.default_rng(0).permutation(len(FIELDS))  # Big fields in every area.
FIELD_SHARES = (1.0 + np.arange(len(FIELDS))[_SHUFFLED]) ** -0.4
CITY_SHARES = (1.0 + np.arange(len(CITIES))[::-1]) ** -0.3
"""Up to a factor, like the shares of fields."""


class Offer(NamedTuple):
    """What a job or a hire project asks for."""

    field: Int[np.ndarray, " N"]
    second_field: Int[np.ndarray, " N"]
    culture: Int[np.ndarray, " N"]
    city: Int[np.ndarray, " N"]
    seniority: Int[np.ndarray, " N"]
    remote: Bool[np.ndarray, " N"]


class Companies(NamedTuple):
    """One row per company."""

    culture: Int[np.ndarray, " N"]
    city: Int[np.ndarray, " N"]
    share: Float[np.ndarray, " N"]  # Of all positions held; a power law.


class Positions(NamedTuple):
    """A position is a title at a company."""

    company: Int[np.ndarray, " N"]
    title: Int[np.ndarray, " N"]


class Members(NamedTuple):
    """One row per member; two columns are the state before and after the move."""

    field: Int[np.ndarray, " N"]
    second_field: Int[np.ndarray, " N"]
    culture: Int[np.ndarray, " N"]
    city: Int[np.ndarray, "N 2"]
    seniority: Int[np.ndarray, "N 2"]
    moved: Int[np.ndarray, " N"]  # When; NEVER for most.
    joined: Int[np.ndarray, " N"]
    first_day: Int[np.ndarray, " N"]  # Looks at jobs from this day on,
    last_day: Int[np.ndarray, " N"]  # and before this one.
    position: Int[np.ndarray, " N"]
    activity: Float[np.ndarray, " N"]  # Sessions, up to a factor.
    gender: Int[np.ndarray, " N"]
    urgency: Int[np.ndarray, " N"]
    speaks: Int[np.ndarray, " N"]  # PLAIN, STRUCTURE or TEXT.
    consent: Bool[np.ndarray, " N"]
    has_resume: Bool[np.ndarray, " N"]


class Jobs(NamedTuple):
    """One row per job, open from the morning of a day to the evening of another."""

    offer: Offer
    position: Int[np.ndarray, " N"]
    recruiter: Int[np.ndarray, " N"]
    posted: Int[np.ndarray, " N"]
    first_day: Int[np.ndarray, " N"]
    last_day: Int[np.ndarray, " N"]


class HireProjects(NamedTuple):
    """One row per hire project."""

    offer: Offer
    recruiter: Int[np.ndarray, " N"]


class World(NamedTuple):
    """Everything there is before anyone acts."""

    companies: Companies
    positions: Positions
    members: Members
    jobs: Jobs
    hire_projects: HireProjects


def stream(config: MarketConfig, name: str) -> np.random.Generator:
    """A random stream of its own for every purpose, so that none shifts another."""
    return np.random.default_rng([config.seed, zlib.crc32(name.encode())])


def make_world(config: MarketConfig) -> World:
    """Draws the latent state."""
    nodes = counts(config).nodes
    rng = stream(config, "companies")
    companies = Companies(
        culture=np.arange(nodes["company"]) % NUM_CULTURES,
        city=_cities(rng, nodes["company"]),
        share=(3.0 + np.arange(nodes["company"])) ** -1.0,
    )
    positions = _positions(stream(config, "positions"), nodes["position"], companies)
    members = _members(config, nodes["member"], companies, positions)
    jobs = _jobs(config, nodes["job"], nodes["recruiter"], companies, positions)
    rng = stream(config, "hire projects")
    num_projects = nodes["hire_project"]
    offer, _ = _offers(rng, num_projects, companies, positions)
    recruiter = rng.permutation(np.arange(num_projects) % nodes["recruiter"])
    return World(companies, positions, members, jobs, HireProjects(offer, recruiter))


def same_area(a: Int[np.ndarray, "..."], b: Int[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
    """Whether two fields of work are related."""
    return _AREAS[a] == _AREAS[b]


def positions_by_field(positions: Positions) -> list[np.ndarray]:
    """The positions of each field."""
    field = positions.title // TITLES_PER_FIELD
    return [np.flatnonzero(field == f) for f in range(len(FIELDS))]


def _positions(rng: np.random.Generator, num: int, companies: Companies) -> Positions:
    """Distinct (company, title) pairs that cover all fields evenly; big companies have more."""
    order = np.arange(num)
    field, rank = order % len(FIELDS), order // len(FIELDS)
    title = field * TITLES_PER_FIELD + rank % TITLES_PER_FIELD
    company = np.zeros(num, np.int64)
    for t in np.unique(title):
        rows = np.flatnonzero(title == t)
        key = np.log(companies.share) + rng.gumbel(size=len(companies.share))
        company[rows] = np.resize(np.argsort(-key), len(rows))
    return Positions(company, title)


def _members(config: MarketConfig, num: int, companies: Companies, positions: Positions) -> Members:
    rng = stream(config, "members")
    field, second = _fields(rng, num)
    position = _position_of(rng, field, companies, positions)
    company = positions.company[position]
    own_culture = rng.integers(NUM_CULTURES, size=num)
    home = np.where(rng.random(num) < 0.5, companies.city[company], _cities(rng, num))
    away = np.where(rng.random(num) < 0.7, _cities(rng, num), home)
    seniority = rng.choice(len(SENIORITY), size=num, p=SENIORITY_SHARES)
    promoted = np.minimum(seniority + (rng.random(num) < 0.7), len(SENIORITY) - 1)
    is_new = rng.random(num) < 0.4
    day = np.where(is_new, np.floor(rng.random(num) ** 0.6 * NUM_DAYS), -rng.integers(1, 1000, num))
    joined = START + day.astype(np.int64) * DAY_S + rng.integers(2, 7 * 3600, num)
    move_day = np.floor(rng.uniform(0, NUM_DAYS, num)).astype(np.int64)
    moved = START + move_day * DAY_S + rng.integers(7200, 6 * 3600, num)
    moves = (rng.random(num) < config.edit_share) & (moved > joined + DAY_S)
    speaks = np.zeros(num, np.int64)
    order = rng.permutation(num)
    num_structure = round(num * config.structure_share)
    num_text = round(num * config.text_share)
    speaks[order[:num_structure]] = STRUCTURE
    speaks[order[num_structure : num_structure + num_text]] = TEXT
    first_day, last_day = _stays(config, joined, speaks)
    return Members(
        field=field,
        second_field=second,
        culture=np.where(rng.random(num) < 0.97, companies.culture[company], own_culture),
        city=np.stack([home, away], 1),
        seniority=np.stack([seniority, promoted], 1),
        moved=np.where(moves, moved, NEVER),
        joined=joined,
        first_day=first_day,
        last_day=last_day,
        position=position,
        activity=rng.lognormal(0.0, 0.8, num),
        gender=rng.integers(2, size=num),
        urgency=rng.choice(3, size=num, p=(0.5, 0.35, 0.15)),
        speaks=speaks,
        consent=rng.permutation(num) >= round(num * config.opt_out_share),
        has_resume=rng.random(num) < config.resume_share,
    )


def _stays(
    config: MarketConfig, joined: np.ndarray, speaks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whole days after joining; all of them, or one visit at some time."""
    first = np.maximum((joined - START) // DAY_S + 1, 0)
    wait = stream(config, "visits").random(len(joined)) * np.maximum(
        NUM_DAYS - VISIT_DAYS - first, 0
    )
    visit = first + np.floor(wait).astype(np.int64)
    visits = speaks == TEXT
    last = np.minimum(np.where(visits, visit + VISIT_DAYS, NUM_DAYS), NUM_DAYS)
    return np.where(visits, visit, first), last


def _jobs(
    config: MarketConfig, num: int, num_recruiters: int, companies: Companies, positions: Positions
) -> Jobs:
    rng = stream(config, "jobs")
    offer, position = _offers(rng, num, companies, positions)
    # Open for 40 days on average, some for very long: that alone makes degrees uneven.
    length = np.ceil(rng.lognormal(np.log(30), 0.7, num)).astype(np.int64)
    first_day = np.sort(rng.integers(-30, NUM_DAYS - 1, num))
    last_day = np.maximum(first_day + length, 0)
    posted = START + first_day * DAY_S + rng.integers(3600, 7 * 3600, num)
    recruiter = rng.integers(num_recruiters, size=num)
    return Jobs(offer, position, recruiter, posted, first_day, last_day)


def _offers(
    rng: np.random.Generator, num: int, companies: Companies, positions: Positions
) -> tuple[Offer, np.ndarray]:
    field, second = _fields(rng, num)
    position = _position_of(rng, field, companies, positions)
    company = positions.company[position]
    offer = Offer(
        field=field,
        second_field=second,
        culture=companies.culture[company],
        city=np.where(rng.random(num) < 0.6, companies.city[company], _cities(rng, num)),
        seniority=rng.choice(len(SENIORITY), size=num, p=SENIORITY_SHARES),
        remote=rng.random(num) < 0.15,
    )
    return offer, position


def _fields(rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Main and second field of work; the second is mostly a related one."""
    field = rng.choice(len(FIELDS), size=num, p=FIELD_SHARES / FIELD_SHARES.sum())
    near = RELATED[field, rng.integers(RELATED.shape[1], size=num)]
    anything = rng.random(num) >= SECOND_IS_RELATED
    return field, np.where(anything, rng.integers(len(FIELDS), size=num), near)


def _position_of(
    rng: np.random.Generator,
    field: Int[np.ndarray, " N"],
    companies: Companies,
    positions: Positions,
) -> np.ndarray:
    chosen = np.zeros(len(field), np.int64)
    for f, known in enumerate(positions_by_field(positions)):
        rows = np.flatnonzero(field == f)
        share = companies.share[positions.company[known]]
        chosen[rows] = rng.choice(known, size=len(rows), p=share / share.sum())
    return chosen


def _cities(rng: np.random.Generator, num: int) -> np.ndarray:
    return rng.choice(len(CITIES), size=num, p=CITY_SHARES / CITY_SHARES.sum())
