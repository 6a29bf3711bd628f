"""Attribute edges of a block of members or jobs: titles, skills, positions and companies."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from star_jax.pipeline.market.fields import FIELDS
from star_jax.pipeline.market.scale.draws import Draws, below, choose
from star_jax.pipeline.market.scale.latents import Latents
from star_jax.pipeline.market.size import EDGE_MILLIONS, NODE_MILLIONS, MarketConfig
from star_jax.pipeline.market.world import (
    NEVER,
    NUM_CULTURES,
    TEXT,
    TITLES_PER_FIELD,
    Members,
    Offer,
)

_MOST_SKILLS = 64
_SKILL_TRIES = 96  # Some are drawn twice.
_MOST_FEW = 4  # Titles, positions or companies of one entity.
_FEW_TRIES = 5
_ALIKE_TRIES = 3  # Positions of which one at a company of the own culture is looked for.
_GENERAL_SHARE = 0.15  # Of all skills, those of no field.
_CLOSENESS = (3.0, 0.7, 0.38)  # Of a skill of the main field, of the second one, of any.
_COULD_MOVE = 0.132  # Members with attributes who move and have two positions, a little less.
_HUBS = {"member": 0.6, "job": 2.5}  # Of general skills; their frequencies fall as 1 / rank.


class EdgeRows(NamedTuple):
    """Edges of one type; `removed` is NEVER where the edge still holds."""

    sender: Int[np.ndarray, " M"]
    receiver: Int[np.ndarray, " M"]
    time: Int[np.ndarray, " M"]
    removed: Int[np.ndarray, " M"]
    weight: Float32[np.ndarray, " M"]

    @classmethod
    def lasting(cls, sender: np.ndarray, receiver: np.ndarray, time: np.ndarray) -> "EdgeRows":
        """Edges of weight 1 that are never removed."""
        never, ones = np.full(len(sender), NEVER), np.ones(len(sender), np.float32)
        return cls(sender, receiver, time, never, ones)


class Bearers(NamedTuple):
    """Entities that have attributes."""

    kind: str
    number: Int[np.ndarray, " N"]
    field: Int[np.ndarray, " N"]
    second_field: Int[np.ndarray, " N"]
    culture: Int[np.ndarray, " N"]
    position: Int[np.ndarray, " N"]
    time: Int[np.ndarray, " N"]  # From which the edges hold.
    moved: Int[np.ndarray, " N"]


def member_links(
    seed: int, latents: Latents, index: Int[np.ndarray, " N"], members: Members
) -> dict[str, EdgeRows]:
    """Attribute edges of members by name; those of whom texts say most have none."""
    rows = np.flatnonzero(members.speaks != TEXT)
    bearers = Bearers(
        kind="member",
        number=index[rows],
        field=members.field[rows],
        second_field=members.second_field[rows],
        culture=members.culture[rows],
        position=members.position[rows],
        time=members.joined[rows],
        moved=members.moved[rows],
    )
    links = _links(seed, latents, bearers, "current", "member__has__skill")
    current = links["member__current__position"]
    past, links["member__current__position"] = _careers(seed, bearers, current)
    return links | {"member__past__position": past}


def job_links(
    seed: int,
    latents: Latents,
    index: Int[np.ndarray, " N"],
    offer: Offer,
    position: Int[np.ndarray, " N"],
    posted: Int[np.ndarray, " N"],
) -> dict[str, EdgeRows]:
    """Attribute edges of jobs by name."""
    bearers = Bearers(
        kind="job",
        number=index,
        field=offer.field,
        second_field=offer.second_field,
        culture=offer.culture,
        position=position,
        time=posted,
        moved=np.full(len(index), NEVER),
    )
    return _links(seed, latents, bearers, "has", "job__needs__skill")


def per_sender(name: str) -> float:
    """Edges of a type by the number of its senders, or of members who receive them."""
    sender, _, receiver = name.split("__")
    end = sender if sender in ("member", "job") else receiver
    share = 1.0
    if end == "member":  # The others have neither attributes nor messages.
        share -= MarketConfig().text_share
    return EDGE_MILLIONS[name] / NODE_MILLIONS[end] / share


def _links(
    seed: int, latents: Latents, bearers: Bearers, verb: str, skill: str
) -> dict[str, EdgeRows]:
    kind, home = bearers.kind, latents.positions(bearers.position)
    found = {}
    for relation in (f"{verb}__position", "at__company", "has__title"):
        name = f"{kind}__{relation}"
        u = Draws(seed, name).uniform(bearers.number, _MOST_FEW - 1 + _FEW_TRIES * _ALIKE_TRIES)
        chance = (per_sender(name) - 1) / (_MOST_FEW - 1)
        degree = 1 + (u[: _MOST_FEW - 1] < chance).sum(axis=0)
        which = u[_MOST_FEW - 1 :].T.reshape(len(degree), _FEW_TRIES, _ALIKE_TRIES)
        if relation == "at__company":
            picked = latents.companies(which[:, :, 0])
            alike = picked - picked % NUM_CULTURES + bearers.culture[:, None]
            first, others = home.company, np.minimum(alike, latents.nodes["company"] - 1)
        elif relation == "has__title":
            is_main = which[:, :, 0] < 0.75
            field = np.where(is_main, bearers.field[:, None], bearers.second_field[:, None])
            first = home.title
            others = field * TITLES_PER_FIELD + below(which[:, :, 1], TITLES_PER_FIELD)
        else:
            first, others = bearers.position, _positions(latents, bearers, which)
        table = np.hstack([first[:, None], others])
        row, column = np.nonzero(_first_distinct(table, degree))
        receiver = table[row, column]
        found[name] = EdgeRows.lasting(bearers.number[row], receiver, bearers.time[row])
    return found | {skill: _skills(seed, latents, bearers, skill)}


def _positions(
    latents: Latents, bearers: Bearers, uniform: Float64[np.ndarray, "N tries alike"]
) -> Int[np.ndarray, "N tries"]:
    """Others of the same field, of like culture where one of three is."""
    tried = latents.positions_of_field(uniform, bearers.field[:, None, None])
    alike = latents.positions(tried).company % NUM_CULTURES == bearers.culture[:, None, None]
    best = np.argmax(alike, axis=2)
    return np.take_along_axis(tried, best[:, :, None], 2)[:, :, 0]


def _skills(seed: int, latents: Latents, bearers: Bearers, name: str) -> EdgeRows:
    """Skills of the two fields and, with the frequencies of a power law, of everyone."""
    num_fields, num_skills = len(FIELDS), latents.nodes["skill"]
    per_field = int((1 - _GENERAL_SHARE) * num_skills) // num_fields
    num_general = num_skills - per_field * num_fields
    u = Draws(seed, name).uniform(bearers.number, 3 + 3 * _SKILL_TRIES)
    spread = -(per_sender(name) - 1) / 2 * np.log((1 - u[0]) * (1 - u[1]))
    degree = np.minimum(1 + np.floor(spread + u[2]), _MOST_SKILLS).astype(np.int64)
    which, place, other = (part.T for part in np.split(u[3:], 3))
    in_field = np.sum((1.0 + np.arange(per_field)) ** -0.5)
    hubs = _HUBS[bearers.kind] * np.sum(1 / (1.0 + np.arange(num_general)))
    source = choose(which, np.array([*(c * in_field for c in _CLOSENESS), hubs]))
    anything = below(other, num_fields)
    mains = (bearers.field[:, None], bearers.second_field[:, None], anything)
    field = np.select([source == i for i in range(3)], mains, -1)
    special = field * per_field + below(place**2, per_field)
    general = per_field * num_fields + np.floor((num_general + 1.0) ** place - 1.0).astype(np.int64)
    skill = np.where(field >= 0, special, np.minimum(general, num_skills - 1))
    row, column = np.nonzero(_first_distinct(skill, degree))
    weight = np.where(field[row, column] == bearers.field[row], 1.0, 0.5).astype(np.float32)
    rows = EdgeRows.lasting(bearers.number[row], skill[row, column], bearers.time[row])
    return rows._replace(weight=weight)


def _careers(seed: int, bearers: Bearers, current: EdgeRows) -> tuple[EdgeRows, EdgeRows]:
    """Some members who moved left a position: it ends as current and begins as past."""
    sender = current.sender
    is_last = np.append(sender[1:] != sender[:-1], True)
    follows = np.append(False, sender[1:] == sender[:-1])
    moved = bearers.moved[np.searchsorted(bearers.number, sender)]
    could = is_last & follows & (moved != NEVER)
    rate = per_sender("member__past__position") / _COULD_MOVE
    left = np.flatnonzero(could & (Draws(seed, "careers").uniform(sender, 1)[0] < rate))
    removed, time = current.removed.copy(), current.time.copy()
    removed[left] = moved[left]
    time[left - 1] = moved[left]  # The edge before: the position that they moved to.
    past = EdgeRows.lasting(sender[left], current.receiver[left], moved[left])
    return past, current._replace(removed=removed, time=time)


def _first_distinct(
    table: Int[np.ndarray, "N tries"], degree: Int[np.ndarray, " N"]
) -> Bool[np.ndarray, "N tries"]:
    """Of every row the first so many different numbers."""
    tries = table.shape[1]
    keys = np.sort(table * tries + np.arange(tries), axis=1)
    value, place = keys // tries, keys % tries
    is_first = np.ones(table.shape, bool)
    is_first[:, 1:] = value[:, 1:] != value[:, :-1]
    new = np.empty_like(is_first)
    np.put_along_axis(new, place, is_first, 1)
    return new & (np.cumsum(new, axis=1) <= degree[:, None])
