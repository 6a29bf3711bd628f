"""Rows for the nodes that a hop reaches: each (node, group) once, in the order they are met."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, UInt32

_SPREAD = 4  # Places of a table, for each entry.
_ROUNDS = 3


class Named(NamedTuple):
    """Nodes as groups see them."""

    node: Int32[Array, " N"]
    group: Int32[Array, " N"]
    real: Bool[Array, " N"]


class Numbered(NamedTuple):
    """Where every node stands, and the rows that were added."""

    row: Int32[Array, " N"]  # -1: not real, or no row was left.
    added: Named


def number(
    known: Mapping[str, Named], met: Mapping[str, Named], blocks: Mapping[str, tuple[int, int]]
) -> dict[str, Numbered]:
    """Gives rows to the nodes that have none; as `kernels.row_of`, one after the other.

    Args:
      known: By node type the rows of its table so far; those that are not real are not found.
      met: By node type, in the order that rows are given out.
      blocks: By node type the first and the end row of what can be added.
    """
    if not met:  # A hop around nodes that nothing points to.
        return {}
    leaders = _leaders([known[name] for name in met], list(met.values()))
    found = {}
    for (name, nodes), leader in zip(met.items(), leaders, strict=True):
        first, end = blocks[name]
        num_known, room = known[name].node.shape[0], end - first
        is_new = nodes.real & (leader == num_known + jnp.arange(leader.shape[0]))
        rank = jnp.cumsum(is_new) - 1
        new = rank[jnp.maximum(leader - num_known, 0)]
        row = jnp.where(leader < num_known, leader, jnp.where(new < room, first + new, -1))
        place = jnp.where(is_new, rank, room)
        added = [
            jnp.zeros(room, part.dtype).at[place].set(part, mode="drop")
            for part in (nodes.node, nodes.group, is_new)
        ]
        found[name] = Numbered(jnp.where(nodes.real, row, -1), Named(*added))
    return found


def _leaders(known: list[Named], met: list[Named]) -> list[Int32[Array, " N"]]:
    """By type, for every node that is met, the first equal one among those known and met.

    All types at once: one sort, or one chain of tables, compiles sooner than many. TPUs sort fast
    and scatter slowly, all others the other way round.
    """
    tables = [
        Named(*map(jnp.concatenate, zip(a, b, strict=True)))
        for a, b in zip(known, met, strict=True)
    ]
    sizes = [table.node.shape[0] for table in tables]
    kind = jnp.concatenate([jnp.full(size, i, jnp.int32) for i, size in enumerate(sizes)])
    index = jnp.concatenate([jnp.arange(size, dtype=jnp.int32) for size in sizes])
    node, group, real = (jnp.concatenate(parts) for parts in zip(*tables, strict=True))
    keys = (kind, group, node)
    leader = jax.lax.platform_dependent(keys, real, tpu=leaders_by_sort, default=leaders_by_hash)
    found, start = [], 0
    for own, size in zip(known, sizes, strict=True):
        part = slice(start + own.node.shape[0], start + size)
        found.append(index[leader[part]])
        start += size
    return found


Keys = tuple[Int32[Array, " N"], ...]


def leaders_by_sort(keys: Keys, real: Bool[Array, " N"]) -> Int32[Array, " N"]:
    """For every real entry the first real one with the same keys."""
    index = jnp.arange(real.shape[0], dtype=jnp.int32)
    *ordered, index = jax.lax.sort((~real, *keys, index), num_keys=2 + len(keys))
    opens = jnp.ones(real.shape, bool)
    differs = [part[1:] != part[:-1] for part in ordered]
    opens = opens.at[1:].set(functools.reduce(jnp.logical_or, differs))
    opener = jax.lax.cummax(jnp.where(opens, jnp.arange(real.shape[0]), 0))
    return jnp.zeros_like(index).at[index].set(index[opener])


def leaders_by_hash(keys: Keys, real: Bool[Array, " N"]) -> Int32[Array, " N"]:
    """As `leaders_by_sort`.

    In each round an entry writes its index to a place that its keys choose, and the smallest stays.
    Where that one has its keys it is the first of them, since all of them chose this place; where
    not, the next round chooses another.
    """
    size = real.shape[0]
    places = 1 << (_SPREAD * size - 1).bit_length()
    index = jnp.arange(size, dtype=jnp.int32)

    def step(_: Int32[Array, ""], state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, leader, open_ = state
        place = (_hash(keys, number) & (places - 1)).astype(jnp.int32)
        table = jnp.full(places, size, jnp.int32)
        table = table.at[jnp.where(open_, place, places)].min(index, mode="drop")
        first = jnp.where(open_, table[place], 0)
        same = functools.reduce(jnp.logical_and, [key[first] == key for key in keys]) & open_
        return number + 1, jnp.where(same, first, leader), open_ & ~same

    # So many rounds as nearly always do, which a GPU runs without asking the host; then the rest.
    state = jax.lax.fori_loop(0, _ROUNDS, step, (jnp.int32(0), index, real))
    return jax.lax.while_loop(lambda s: jnp.any(s[2]), lambda s: step(s[0], s), state)[1]


def _hash(keys: Keys, number: Int32[Array, ""]) -> UInt32[Array, " N"]:
    """Multiplies and shifts, as MurmurHash3 mixes 32 bits."""
    x = jnp.zeros(keys[0].shape, jnp.uint32) + number.astype(jnp.uint32)
    for key in keys:
        x = (x ^ key.astype(jnp.uint32)) * jnp.uint32(0x9E3779B1)
        x = (x ^ x >> 16) * jnp.uint32(0x85EBCA6B)
        x = (x ^ x >> 13) * jnp.uint32(0xC2B2AE35)
        x ^= x >> 16
    return x
