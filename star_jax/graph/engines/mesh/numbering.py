"""Rows for the nodes that a hop reaches: each (node, group) once, in the order they are met."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

_LAST = jnp.iinfo(jnp.int32).max


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

    One sort serves all types: a sort takes long to compile.
    """
    tables = [
        Named(*map(jnp.concatenate, zip(a, b, strict=True)))
        for a, b in zip(known, met, strict=True)
    ]
    sizes = [table.node.shape[0] for table in tables]
    kind = jnp.concatenate([jnp.full(size, i, jnp.int32) for i, size in enumerate(sizes)])
    index = jnp.concatenate([jnp.arange(size, dtype=jnp.int32) for size in sizes])
    node, group, real = (jnp.concatenate(parts) for parts in zip(*tables, strict=True))
    group = jnp.where(real, group, _LAST)
    kind, group, node, index = jax.lax.sort((kind, group, node, index), num_keys=4)
    opens = jnp.ones(kind.shape, bool)
    differs = [part[1:] != part[:-1] for part in (kind, group, node)]
    opens = opens.at[1:].set(differs[0] | differs[1] | differs[2])
    opener = jax.lax.cummax(jnp.where(opens, jnp.arange(kind.shape[0]), 0))
    leader, start, found = index[opener], 0, []
    for own, size in zip(known, sizes, strict=True):
        part = slice(start, start + size)
        leaders = jnp.zeros(size, jnp.int32).at[index[part]].set(leader[part])
        found.append(leaders[own.node.shape[0] :])
        start += size
    return found
