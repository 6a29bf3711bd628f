"""Attribute edges: who has which titles, skills, positions and companies, and since when."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from star_jax.pipeline.market.fields import FIELDS, GENERAL_SKILLS
from star_jax.pipeline.market.size import NUM_SKILLS, NUM_TITLES, MarketConfig, counts
from star_jax.pipeline.market.world import (
    NEVER,
    TEXT,
    World,
    positions_by_field,
    same_area,
    stream,
)

_SKILLS_PER_FIELD = len(FIELDS[0].skills)
_NUM_FIELD_SKILLS = _SKILLS_PER_FIELD * len(FIELDS)
_FIELD_OF_SKILL = np.arange(_NUM_FIELD_SKILLS) // _SKILLS_PER_FIELD
_TITLES_PER_FIELD = NUM_TITLES // len(FIELDS)
_CHUNK = 1 << 14
_TRIES = 12


class AttributeEdges(NamedTuple):
    """Edges of one type, sorted by sender; `removed` is NEVER where the edge still holds."""

    sender: Int[np.ndarray, " M"]
    receiver: Int[np.ndarray, " M"]
    time: Int[np.ndarray, " M"]
    removed: Int[np.ndarray, " M"]
    weight: Float[np.ndarray, " M"]


def attribute_edges(config: MarketConfig, world: World) -> dict[str, AttributeEdges]:
    """All attribute edges by name, as many as the paper's table 11 has."""
    edges = counts(config).edges
    members, jobs = world.members, world.jobs
    edge_bearing = np.flatnonzero(members.speaks != TEXT)
    all_jobs = np.arange(len(jobs.posted))
    ends = {
        "member": (edge_bearing, members.field, members.second_field, members.joined),
        "job": (all_jobs, jobs.offer.field, jobs.offer.second_field, jobs.posted),
    }
    found: dict[str, AttributeEdges] = {}
    for kind, (rows, field, second, time) in ends.items():
        home = (members.position if kind == "member" else jobs.position)[rows]
        culture = members.culture if kind == "member" else jobs.offer.culture
        draw = _Draw(config, world, kind, rows, field[rows], second[rows], time[rows])
        verb = "current" if kind == "member" else "has"
        position = draw.positions(edges[f"{kind}__{verb}__position"], home)
        found[f"{kind}__{verb}__position"] = position
        found[f"{kind}__at__company"] = draw.companies(
            edges[f"{kind}__at__company"], home, culture[rows]
        )
        found[f"{kind}__has__title"] = draw.titles(edges[f"{kind}__has__title"], home)
        name = "member__has__skill" if kind == "member" else "job__needs__skill"
        found[name] = draw.skills(edges[name], hub_share=0.6 if kind == "member" else 2.5)
    past, current = _careers(
        config, world, found["member__current__position"], edges["member__past__position"]
    )
    return found | {"member__past__position": past, "member__current__position": current}


class _Draw(NamedTuple):
    """Draws the attributes of all members, or of all jobs; `rows` are those that have any."""

    config: MarketConfig
    world: World
    kind: str
    rows: np.ndarray
    field: np.ndarray
    second: np.ndarray
    time: np.ndarray

    def positions(self, total: int, home: np.ndarray) -> AttributeEdges:
        """The home position and others of the same field, of like culture where there are any."""
        rng = stream(self.config, f"{self.kind} positions")
        known, positions = positions_by_field(self.world.positions), self.world.positions
        culture = self.world.companies.culture[positions.company]
        pick = np.zeros((len(self.rows), _TRIES), np.int64)
        for f, candidates in enumerate(known):
            mine = np.flatnonzero(self.field == f)
            pick[mine] = candidates[rng.integers(len(candidates), size=(len(mine), _TRIES))]
        alike = culture[pick] == culture[home][:, None]
        order = np.argsort(~alike, axis=1, kind="stable")
        return self._edges(rng, total, home, np.take_along_axis(pick, order, 1))

    def companies(self, total: int, home: np.ndarray, culture: np.ndarray) -> AttributeEdges:
        """The company of the home position and others of the own culture."""
        rng = stream(self.config, f"{self.kind} companies")
        companies = self.world.companies
        share = companies.share / companies.share.sum()
        pick = rng.choice(len(share), size=(len(self.rows), _TRIES), p=share)
        alike = companies.culture[pick] == culture[:, None]
        order = np.argsort(~alike, axis=1, kind="stable")
        first = self.world.positions.company[home]
        return self._edges(rng, total, first, np.take_along_axis(pick, order, 1))

    def titles(self, total: int, home: np.ndarray) -> AttributeEdges:
        """The title of the home position and others of the two fields."""
        rng = stream(self.config, f"{self.kind} titles")
        shape = (len(self.rows), _TRIES)
        field = np.where(rng.random(shape) < 0.75, self.field[:, None], self.second[:, None])
        pick = field * _TITLES_PER_FIELD + rng.integers(_TITLES_PER_FIELD, size=shape)
        return self._edges(rng, total, self.world.positions.title[home], pick)

    def skills(self, total: int, hub_share: float) -> AttributeEdges:
        """Skills of the two fields and, with the frequencies of a power law, of everyone."""
        rng = stream(self.config, f"{self.kind} skills")
        degree = _spread(rng, total, len(self.rows), low=1, high=NUM_SKILLS // 4)
        rank = np.arange(_SKILLS_PER_FIELD)
        in_field = np.tile((1.0 + rank) ** -0.5, len(FIELDS))
        hubs = hub_share * (1.0 + np.arange(len(GENERAL_SKILLS))) ** -1.0
        senders, receivers, weights = [], [], []
        for i in range(0, len(self.rows), _CHUNK):
            part = slice(i, i + _CHUNK)
            mine, second = self.field[part, None], self.second[part, None]
            skill_field = np.broadcast_to(_FIELD_OF_SKILL, (len(mine), _NUM_FIELD_SKILLS))
            related = same_area(skill_field, np.broadcast_to(mine, skill_field.shape))
            closeness = np.where(related, 0.1, 0.004)
            closeness = np.where(skill_field == second, 0.7, closeness)
            closeness = np.where(skill_field == mine, 3.0, closeness)
            share = np.hstack([closeness * in_field, np.broadcast_to(hubs, (len(mine), len(hubs)))])
            key = -(np.log(share) + rng.gumbel(size=share.shape))
            order = np.argsort(key, axis=1)
            chosen = np.arange(NUM_SKILLS) < degree[part, None]
            skill = np.sort(np.where(chosen, order, NUM_SKILLS), axis=1)[:, : degree.max()]
            row, column = np.nonzero(skill < NUM_SKILLS)
            senders.append(i + row)
            receivers.append(skill[row, column])
            core = np.hstack([skill_field == mine, np.zeros((len(mine), len(hubs)), bool)])
            weights.append(np.where(core[row, skill[row, column]], 1.0, 0.5))
        sender = np.concatenate(senders)
        never = np.full(len(sender), NEVER)
        return AttributeEdges(
            self.rows[sender],
            np.concatenate(receivers),
            self.time[sender],
            never,
            np.concatenate(weights),
        )

    def _edges(
        self, rng: np.random.Generator, total: int, first: np.ndarray, others: np.ndarray
    ) -> AttributeEdges:
        """Everyone's first and, for some, more of the others, without repeats."""
        degree = _spread(rng, total, len(first), low=1, high=4)
        table = np.hstack([first[:, None], others])
        repeats = np.zeros(table.shape, bool)
        for column in range(1, table.shape[1]):
            repeats[:, column] = (table[:, :column] == table[:, column, None]).any(1)
        kept = ~repeats & (np.cumsum(~repeats, axis=1) <= degree[:, None])
        row, column = np.nonzero(kept)
        num = len(row)
        return AttributeEdges(
            self.rows[row],
            table[row, column],
            self.time[row],
            np.full(num, NEVER),
            np.ones(num),
        )


def _spread(
    rng: np.random.Generator, total: int, num: int, *, low: int, high: int
) -> Int[np.ndarray, " N"]:
    """Uneven whole numbers between `low` and `high` whose sum is `total`."""
    degree = np.full(num, low)
    appetite = rng.gamma(2.0, size=num)
    missing = max(total - degree.sum(), 0)
    while missing > 0 and (degree < high).any():
        free = np.flatnonzero(degree < high)
        share = appetite[free] / appetite[free].sum()
        more = np.bincount(rng.choice(len(free), size=missing, p=share), minlength=len(free))
        degree[free] = np.minimum(degree[free] + more, high)
        missing = total - degree.sum()
    return degree


def _careers(
    config: MarketConfig, world: World, current: AttributeEdges, num_past: int
) -> tuple[AttributeEdges, AttributeEdges]:
    """Some members who moved left a position: it ends as current and begins as past."""
    rng = stream(config, "careers")
    moved = world.members.moved[current.sender]
    extra = np.flatnonzero((moved != NEVER) & _is_last_of_many(current.sender))
    left = np.sort(rng.permutation(extra)[:num_past])
    removed = current.removed.copy()
    removed[left] = moved[left]
    time = current.time.copy()
    started = left - 1  # The edge before: the position that they moved to.
    time[started] = moved[left]
    past = AttributeEdges(
        current.sender[left],
        current.receiver[left],
        moved[left],
        np.full(len(left), NEVER),
        np.ones(len(left)),
    )
    return past, current._replace(removed=removed, time=time)


def _is_last_of_many(sender: np.ndarray) -> np.ndarray:
    last = np.append(sender[1:] != sender[:-1], True)
    follows = np.append(False, sender[1:] == sender[:-1])
    return last & follows
