"""Hop after hop around seeds, all relations of a hop in one routine: `samplers/sample.expand`.

A request is (node, group, relation). It travels to the shard that holds the node's edges, where its
neighbours are picked, and comes back with them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from star_jax.graph.batches import HostOrDevice, Neighbours, width_class
from star_jax.graph.engines.mesh import picks
from star_jax.graph.engines.mesh.exchange import ask
from star_jax.graph.engines.mesh.numbering import Named, number
from star_jax.graph.engines.mesh.topology import NO_TIME32, Edges, Places
from star_jax.graph.engines.mesh.visibility import Row, Rule, Viewers, time_bounds, visible
from star_jax.graph.engines.mesh.weighted import weighted
from star_jax.graph.engines.mesh.words import Word, stream
from star_jax.graph.samplers.layout import Layout, Table
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.schema import GraphSchema, parse_key
from star_jax.graph.store import TIMED_BIT, relation_salt

_MOST_PADDING = 1 << 20  # Slots.


class SeedRows(NamedTuple):
    """The seeds of one device."""

    node: Int32[HostOrDevice, " S"]
    group: Int32[HostOrDevice, " S"]
    real: Bool[HostOrDevice, " S"]
    shared: Bool[HostOrDevice, " S"]  # Also found when met as a neighbour; see `known_texts`.


@dataclasses.dataclass(frozen=True)
class Walk:
    """What is static about the neighbourhoods of one kind of seeds.

    Attributes:
      layout: Of the budget.
      places: Of the graph.
      schema: Of the graph.
      seed_type: Of the seeds.
      rule: What examples may see.
      sampler: How neighbours are chosen.
      hidden: Edge key -> how supervised pairs hide its edges, as in `Relations.hidden`.
      slack: As in `ask`.
    """

    layout: Layout
    places: Places
    schema: GraphSchema
    seed_type: str
    rule: Rule
    sampler: SamplerConfig
    hidden: Mapping[str, int]
    slack: float


class Expanded(NamedTuple):
    """A sample before its features."""

    nodes: dict[str, Named]
    hops: tuple[dict[str, Neighbours], ...]
    num_dropped: Int32[Array, ""]  # Edges cut for want of a row, and requests for want of room.


class _Found(NamedTuple):
    """Neighbours of requests."""

    node: Int32[Array, "Q K"]
    weight: Float32[Array, "Q K"]
    age: Float32[Array, "Q K"]
    real: Bool[Array, "Q K"]


class _Question(NamedTuple):
    node: Int32[Array, " Q"]
    group: Int32[Array, " Q"]
    relation: Int32[Array, " Q"]
    fanout: Int32[Array, " Q"]


def expand(
    walk: Walk, edges: Edges, viewers: Viewers, key: UInt32[Array, " 2"], seeds: SeedRows
) -> Expanded:
    """Rows for the seeds, then hop by hop for their neighbours.

    Args:
      walk: What is static.
      edges: This device's shard.
      viewers: The groups of all devices.
      key: Upper and lower half of the step's key.
      seeds: At most as many as the budget has rows for.
    """
    layout = walk.layout
    sizes = layout.sizes.sum(axis=1).tolist()
    nodes = {name: _no_rows(size) for name, size in zip(layout.types, sizes, strict=True)}
    node, group, real, is_shared = map(jnp.asarray, seeds)
    nodes[walk.seed_type] = _with(nodes[walk.seed_type], 0, Named(node, group, real))
    findable = dict(nodes)
    shared = Named(node, group, real & is_shared)
    findable[walk.seed_type] = _with(nodes[walk.seed_type], 0, shared)
    hops, num_dropped = [], jnp.int32(0)
    for hop, tables in enumerate(layout.hops):
        found, refused = _neighbours(walk, edges, viewers, key, nodes, hop)
        num_dropped += refused
        groups = _groups_of(layout, nodes, hop)
        met = {name: _met(layout, tables, found, name, groups) for name in layout.types}
        met = {name: each for name, each in met.items() if each is not None}
        blocks = {n: layout.block(layout.types.index(n), hop + 1) for n in met}
        rows: dict[str, Array] = {}
        numbered = number(findable, {n: each.nodes for n, each in met.items()}, blocks)
        for name, each in numbered.items():
            first = blocks[name][0]
            nodes[name] = _with(nodes[name], first, each.added)
            findable[name] = _with(findable[name], first, each.added)
            rows |= _split(each.row, met[name].shapes)
            num_dropped += jnp.sum(met[name].nodes.real & (each.row < 0))
        hops.append({t.key: _table(found[t.key], rows[t.key]) for t in tables})
    return Expanded(nodes, tuple(hops), num_dropped)


def _neighbours(
    walk: Walk,
    edges: Edges,
    viewers: Viewers,
    key: UInt32[Array, " 2"],
    nodes: Mapping[str, Named],
    hop: int,
) -> tuple[dict[str, _Found], Int32[Array, ""]]:
    """Picks into all tables of a hop; tables of about equal width are asked for together."""
    layout, found, refused = walk.layout, {}, jnp.int32(0)
    relations = _Relations.of(walk)
    num_shards = walk.places.num_shards
    for tables in asked_together(layout.hops[hop]):
        most = max(table.width for table in tables)
        asked = [_question(layout, nodes, hop, relations, table) for table in tables]
        question, real = jax.tree.map(lambda *parts: jnp.concatenate(parts), *asked)

        def answer(question: _Question, most: int = most) -> _Found:
            return _pick(walk, relations, edges, viewers, key, question, most)

        got, too_many = ask(
            answer,
            jnp.where(real, question.node % num_shards, num_shards),
            question,
            places=walk.places,
            slack=walk.slack,
        )
        refused += too_many
        start = 0
        for table in tables:
            part = slice(start, start + table.num_rows)
            found[table.key] = _Found(*(values[part, : table.width] for values in got))
            start += table.num_rows
    return found, refused


def asked_together(tables: Sequence[Table]) -> list[list[Table]]:
    """Tables of about equal width, the widest first; but never with much padding in all.

    Each more is one more routine to compile, and some more waits of a GPU for its host.
    """
    found: list[list[Table]] = []
    padding = 0
    for table in sorted(tables, key=lambda table: -table.width):
        widest = found[-1][0].width if found else table.width
        padding += (widest - table.width) * table.num_rows
        if not found or width_class(widest) != width_class(table.width) or padding > _MOST_PADDING:
            found.append([])
            padding = 0
        found[-1].append(table)
    return found


def _pick(
    walk: Walk,
    relations: "_Relations",
    edges: Edges,
    viewers: Viewers,
    key: UInt32[Array, " 2"],
    question: _Question,
    most: int,
) -> _Found:
    """Answers requests about nodes of this shard."""
    of = question.relation
    local = question.node // walk.places.num_shards
    bound = relations.start[of] + local * relations.stride[of]
    row = Row(
        begin=edges.bounds[bound],
        end=edges.bounds[bound + 1],
        node=question.node,
        group=question.group,
        hidden=relations.hidden[of],
    )
    first = row.begin
    row = time_bounds(edges, viewers, walk.rule, row, relations.dated[of], walk.places.longest)
    salt = Word(relations.salt_high[of], relations.salt_low[of])
    start = stream(Word(*key), salt, question.node)
    draw = picks.Draw(row.begin, row.end, question.fanout, start)

    def seen(position: Int32[Array, "Q W"]) -> Bool[Array, "Q W"]:
        return visible(edges, viewers, walk.rule, row, position)

    if walk.sampler.kind == "last_n":
        picked = picks.last_n(draw, seen, most)
    elif walk.sampler.kind == "top_k":
        picked = picks.top_k(draw, seen, jnp.asarray(edges.weight), most)
    elif walk.sampler.kind == "weighted" and walk.places.weighted:
        picked = _weighted(walk, edges, draw, seen, first, relations.weighted[of], most)
    else:
        picked = picks.uniform(draw, seen, most, replace=walk.sampler.replace)
    real = jnp.arange(most)[None] < picked.found[:, None]
    position = jnp.where(real, picked.position, 0)
    return _Found(
        node=edges.sender[position],
        weight=edges.weight[position],
        age=_age(edges, position, viewers.time[row.group], walk.places.age_unit),
        real=real,
    )


def _weighted(
    walk: Walk,
    edges: Edges,
    draw: picks.Draw,
    seen: picks.Seen,
    first: Int32[Array, " Q"],
    is_weighted: Bool[Array, " Q"],
    most: int,
) -> picks.Picks:
    """By weight; uniform where all weights are equal, as the host has it."""
    replace = walk.sampler.replace

    def rows(mine: Bool[Array, " Q"]) -> picks.Draw:
        return draw._replace(end=jnp.where(mine, draw.end, draw.begin))

    by_weight = weighted(
        rows(is_weighted),
        seen,
        edges,
        first,
        most=most,
        longest=walk.places.longest,
        replace=replace,
    )
    if len(walk.places.weighted) == len(walk.places.types):
        return by_weight
    even = picks.uniform(rows(~is_weighted), seen, most, replace=replace)
    return jax.tree.map(
        lambda one, other: jnp.where(is_weighted.reshape(-1, *[1] * (one.ndim - 1)), one, other),
        by_weight,
        even,
    )


def _age(
    edges: Edges, position: Int32[Array, "Q K"], time: Int32[Array, " Q"], age_unit: float
) -> Float32[Array, "Q K"]:
    elapsed = (time[:, None] - edges.time[position]).astype(jnp.float32)
    known = (time != NO_TIME32)[:, None] & (edges.flags[position] & TIMED_BIT > 0)
    return jnp.where(known, jnp.log1p(jnp.maximum(elapsed, 0.0) / age_unit), 0.0)


class _Relations(NamedTuple):
    """By number of a relation."""

    number: dict[str, int]
    start: Int32[Array, " R"]  # Of the relation's bounds among those of the shard.
    stride: Int32[Array, " R"]
    hidden: Int32[Array, " R"]
    dated: Bool[Array, " R"]
    weighted: Bool[Array, " R"]
    salt_high: UInt32[Array, " R"]
    salt_low: UInt32[Array, " R"]

    @classmethod
    def of(cls, walk: Walk) -> "_Relations":
        edges = {edge.key: edge for edge in walk.schema.all_edges()}
        keys = sorted(edges)
        places = [walk.places.of(edges[key].receiver) for key in keys]
        columns = [place.columns.index(key) for key, place in zip(keys, places, strict=True)]
        salts = np.asarray([relation_salt(key) for key in keys], np.uint64)

        def integers(values: Sequence[int]) -> Array:
            return jnp.asarray(values, jnp.int32)

        return cls(
            number={key: i for i, key in enumerate(keys)},
            start=integers([p.start + c for p, c in zip(places, columns, strict=True)]),
            stride=integers([place.stride for place in places]),
            hidden=integers([walk.hidden.get(key, 0) for key in keys]),
            dated=jnp.asarray([edges[key].kind == "interaction" for key in keys]),
            weighted=jnp.asarray([edges[key].receiver in walk.places.weighted for key in keys]),
            salt_high=jnp.asarray((salts >> np.uint64(32)).astype(np.uint32)),
            salt_low=jnp.asarray(salts.astype(np.uint32)),
        )


def _question(
    layout: Layout, nodes: Mapping[str, Named], hop: int, relations: _Relations, table: Table
) -> tuple[_Question, Bool[Array, " Q"]]:
    """One table's requests, and which of them are any."""
    receiver = parse_key(table.key)[2]
    block = slice(*layout.block(layout.types.index(receiver), hop))
    node, group, real = (part[block] for part in nodes[receiver])
    relation = jnp.full(node.shape, relations.number[table.key], jnp.int32)
    return _Question(node, group, relation, jnp.full(node.shape, table.width, jnp.int32)), real


def _groups_of(layout: Layout, nodes: Mapping[str, Named], hop: int) -> dict[str, Array]:
    """By type, the groups of a hop's rows."""
    return {
        name: nodes[name].group[slice(*layout.block(i, hop))] for i, name in enumerate(layout.types)
    }


class _Met(NamedTuple):
    """The nodes of one type that a hop meets, and the tables that they came in."""

    nodes: Named
    shapes: list[tuple[list[Table], int]]  # By receiver type; the rows of each.


def _met(
    layout: Layout,
    tables: Sequence[Table],
    found: Mapping[str, _Found],
    sender: str,
    groups: Mapping[str, Array],
) -> _Met | None:
    """In the order that the host meets them: row by row of each receiver type, all tables."""
    parts, shapes = [], []
    for receiver in layout.types:
        mine = [t for t in tables if parse_key(t.key)[::2] == (sender, receiver)]
        if not mine:
            continue
        node = jnp.concatenate([found[t.key].node for t in mine], axis=1)
        real = jnp.concatenate([found[t.key].real for t in mine], axis=1)
        group = jnp.broadcast_to(groups[receiver][:, None], node.shape)
        parts.append(Named(node.reshape(-1), group.reshape(-1), real.reshape(-1)))
        shapes.append((mine, mine[0].num_rows))
    if not parts:
        return None
    return _Met(Named(*map(jnp.concatenate, zip(*parts, strict=True))), shapes)


def _split(
    row: Int32[Array, " N"], shapes: Sequence[tuple[list[Table], int]]
) -> dict[str, Int32[Array, "Q k"]]:
    """Undoes the joining of `_met`."""
    found, start = {}, 0
    for tables, num_rows in shapes:
        ends = np.cumsum([table.width for table in tables])
        joined = row[start : start + num_rows * ends[-1]].reshape(num_rows, -1)
        parts = jnp.split(joined, ends[:-1], axis=1)
        found |= {table.key: part for table, part in zip(tables, parts, strict=True)}
        start += num_rows * int(ends[-1])
    return found


def _table(found: _Found, row: Int32[Array, "Q k"]) -> Neighbours:
    mask = row >= 0
    return Neighbours(
        index=jnp.where(mask, row, 0),
        mask=mask,
        weight=jnp.where(mask, found.weight, 0.0),
        age=jnp.where(mask, found.age, 0.0),
    )


def _no_rows(size: int) -> Named:
    zeros = jnp.zeros(size, jnp.int32)
    return Named(zeros, zeros, jnp.zeros(size, bool))


def _with(rows: Named, first: int, block: Named) -> Named:
    """The rows with a block written over some of them."""
    end = first + block.node.shape[0]
    return Named(*(a.at[first:end].set(b) for a, b in zip(rows, block, strict=True)))
