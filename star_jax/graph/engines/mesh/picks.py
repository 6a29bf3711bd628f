"""Neighbours of many rows at once, the same ones as `samplers/picks` takes row by row."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from star_jax.graph.engines.mesh import words
from star_jax.graph.samplers.picks.uniform import SMALL

Seen = Callable[[Int32[Array, "Q W"]], Bool[Array, "Q W"]]
"""Which positions a row's example may see; false outside the row."""


class Draw(NamedTuple):
    """What is asked of every row."""

    begin: Int32[Array, " Q"]
    end: Int32[Array, " Q"]
    fanout: Int32[Array, " Q"]
    start: words.Word  # Of its random numbers.


class Picks(NamedTuple):
    """Positions of edges; the first `found` of each row count."""

    position: Int32[Array, "Q K"]
    found: Int32[Array, " Q"]


class _Tries(NamedTuple):
    position: Int32[Array, "Q K"]
    found: Int32[Array, " Q"]
    slot: Int32[Array, " Q"]  # The last one that was asked.
    drawn: Int32[Array, " Q"]  # How many integers.


def last_n(draw: Draw, seen: Seen, most: int) -> Picks:
    """The latest visible edges of each row, from the last one back."""

    def more(state: tuple[Array, Array, Array]) -> Array:
        number, _, found = state
        return jnp.any((found < draw.fanout) & (draw.end - number * SMALL * most > draw.begin))

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, picks, found = state
        position = _block_from_end(draw, number, most)
        picks, found = _append(picks, found, position, seen(position), draw.fanout)
        return number + 1, picks, found

    empty = jnp.zeros((draw.end.shape[0], most), jnp.int32)
    start = (jnp.int32(0), empty, jnp.zeros_like(draw.end))
    _, position, found = jax.lax.while_loop(more, step, start)
    return Picks(position, found)


def top_k(draw: Draw, seen: Seen, weight: Float32[Array, " M"], most: int) -> Picks:
    """The visible edges of largest weight of each row, of equal ones the latest."""

    def more(state: tuple[Array, Array, Array]) -> Array:
        return jnp.any(draw.end - state[0] * SMALL * most > draw.begin)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, position, known = state
        # Those known are later, and a stable order leaves them in front of equal ones.
        block = _block_from_end(draw, number, most)
        joined = jnp.concatenate([position, block], axis=1)
        counts = jnp.concatenate([known, seen(block)], axis=1)
        key = jnp.where(counts, -weight[jnp.where(counts, joined, 0)], jnp.inf)
        order = jnp.argsort(key, axis=1, stable=True)[:, :most]
        take = functools.partial(jnp.take_along_axis, indices=order, axis=1)
        return number + 1, take(joined), take(counts)

    empty = jnp.zeros((draw.end.shape[0], most), jnp.int32)
    start = (jnp.int32(0), empty, jnp.zeros(empty.shape, bool))
    _, position, known = jax.lax.while_loop(more, step, start)
    return Picks(position, jnp.minimum(jnp.sum(known, axis=1), draw.fanout))


def uniform(draw: Draw, seen: Seen, most: int, *, replace: bool) -> Picks:
    """Every visible edge of a row is equally likely.

    Long rows are tried at random; short ones, and those with too many refusals, are enumerated.
    """
    size = draw.end - draw.begin
    is_long = size > SMALL * draw.fanout
    tries = _try(draw, seen, most, is_long, replace=replace)
    done = is_long & (tries.found == draw.fanout)
    slot = jnp.where(is_long, tries.slot, 0)
    rest = draw._replace(end=jnp.where(done, draw.begin, draw.end))
    listed = _enumerate(rest, seen, most, slot, replace=replace)
    return Picks(
        jnp.where(done[:, None], tries.position, listed.position),
        jnp.where(done, tries.found, listed.found),
    )


def _try(draw: Draw, seen: Seen, most: int, is_long: Bool[Array, " Q"], *, replace: bool) -> _Tries:
    """Draws until rows are full or were refused too often; so many slots at a time."""
    size = jnp.maximum(draw.end - draw.begin, 1)
    limit = 8 * draw.fanout + 64

    def active(tries: _Tries) -> Bool[Array, " Q"]:
        return is_long & (tries.found < draw.fanout) & (tries.drawn < limit)

    def step(tries: _Tries) -> _Tries:
        slot = tries.slot[:, None] + 1 + jnp.arange(most + 2)[None]
        start = words.Word(*(half[:, None] for half in draw.start))
        offset, drawn = words.scaled(words.draw(start, slot), size[:, None])
        number = tries.drawn[:, None] + jnp.cumsum(drawn, axis=1)
        drawn &= (number <= limit[:, None]) & active(tries)[:, None]
        position = draw.begin[:, None] + offset
        good = drawn & seen(position)
        if not replace:
            good &= ~_known(tries.position, tries.found, position) & ~_repeats(position, drawn)
        picks, found = _append(tries.position, tries.found, position, good, draw.fanout)
        last = jnp.max(jnp.where(drawn, slot, 0), axis=1)  # That of the last try allowed.
        next_slot = jnp.where(number[:, -1] >= limit, last, slot[:, -1])
        still = active(tries)
        return _Tries(
            picks,
            found,
            jnp.where(still, next_slot, tries.slot),
            jnp.where(still, jnp.minimum(number[:, -1], limit), tries.drawn),
        )

    zeros = jnp.zeros_like(size)
    empty = jnp.zeros((size.shape[0], most), jnp.int32)
    start = _Tries(empty, zeros, zeros, zeros)
    return jax.lax.while_loop(lambda tries: jnp.any(active(tries)), step, start)


def _enumerate(
    draw: Draw, seen: Seen, most: int, slot: Int32[Array, " Q"], *, replace: bool
) -> Picks:
    """Counts what is visible, shuffles the ranks, then looks the ranks up; exact."""
    visible = _count(draw, seen, most)
    rank, found = _ranks(draw, visible, slot, most, replace=replace)
    return Picks(_positions(draw, seen, most, rank), found)


def _count(draw: Draw, seen: Seen, most: int) -> Int32[Array, " Q"]:
    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        number, count = state
        return number + 1, count + jnp.sum(seen(_block(draw, number, most)), axis=1)

    start = (jnp.int32(0), jnp.zeros_like(draw.begin))
    return jax.lax.while_loop(lambda state: _has_block(draw, state[0], most), step, start)[1]


def _ranks(
    draw: Draw, visible: Int32[Array, " Q"], slot: Int32[Array, " Q"], most: int, *, replace: bool
) -> tuple[Int32[Array, "Q K"], Int32[Array, " Q"]]:
    """Which of the visible edges are taken: the first steps of a Fisher-Yates shuffle.

    Of the shuffled list only what was moved is kept: `moved[i]` is now at `place[i]`.
    """
    shuffled = replace | (visible > draw.fanout)
    rank = jnp.broadcast_to(jnp.arange(most)[None], (visible.shape[0], most)).astype(jnp.int32)

    def at(
        index: Int32[Array, " Q"], place: Int32[Array, "Q K"], moved: Int32[Array, "Q K"]
    ) -> Int32[Array, " Q"]:
        hit = place == index[:, None]
        latest = most - 1 - jnp.argmax(hit[:, ::-1], axis=1)
        value = jnp.take_along_axis(moved, latest[:, None], axis=1)[:, 0]
        return jnp.where(jnp.any(hit, axis=1), value, index)

    def step(i: Int32[Array, ""], state: tuple[Array, ...]) -> tuple[Array, ...]:
        rank, place, moved, slot = state
        wanted = shuffled & (i < draw.fanout) & (visible > 0)
        size = jnp.where(wanted, visible if replace else visible - i, 1)
        offset, next_slot = words.below(draw.start, slot, size)
        slot = jnp.where(wanted, next_slot, slot)
        if replace:
            return rank.at[:, i].set(jnp.where(wanted, offset, rank[:, i])), place, moved, slot
        target = offset + i
        taken, displaced = at(target, place, moved), at(jnp.full_like(target, i), place, moved)
        rank = rank.at[:, i].set(jnp.where(wanted, taken, rank[:, i]))
        place = place.at[:, i].set(jnp.where(wanted, target, -1))
        return rank, place, moved.at[:, i].set(displaced), slot

    nowhere = jnp.full_like(rank, -1)
    rank = jax.lax.fori_loop(0, most, step, (rank, nowhere, nowhere, slot))[0]
    found = jnp.where(visible > 0, draw.fanout, 0)
    return rank, found if replace else jnp.minimum(visible, found)


def _positions(draw: Draw, seen: Seen, most: int, rank: Int32[Array, "Q K"]) -> Int32[Array, "Q K"]:
    """Of the visible edges with given ranks."""

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, before, picks = state
        position = _block(draw, number, most)
        upto = before[:, None] + jnp.cumsum(seen(position), axis=1)
        column = jax.vmap(jnp.searchsorted)(upto, rank + 1)
        here = (rank >= before[:, None]) & (column < position.shape[1])
        where = jnp.minimum(column, position.shape[1] - 1)
        met = jnp.take_along_axis(position, where, axis=1)
        return number + 1, upto[:, -1], jnp.where(here, met, picks)

    start = (jnp.int32(0), jnp.zeros_like(draw.begin), jnp.zeros_like(rank))
    return jax.lax.while_loop(lambda state: _has_block(draw, state[0], most), step, start)[2]


def _block(draw: Draw, number: Int32[Array, ""], most: int) -> Int32[Array, "Q W"]:
    window = SMALL * most
    return (draw.begin + number * window)[:, None] + jnp.arange(window)[None]


def _block_from_end(draw: Draw, number: Int32[Array, ""], most: int) -> Int32[Array, "Q W"]:
    window = SMALL * most
    return (draw.end - 1 - number * window)[:, None] - jnp.arange(window)[None]


def _has_block(draw: Draw, number: Int32[Array, ""], most: int) -> Bool[Array, ""]:
    return jnp.any(draw.begin + number * SMALL * most < draw.end)


def _append(
    picks: Int32[Array, "Q K"],
    found: Int32[Array, " Q"],
    position: Int32[Array, "Q W"],
    good: Bool[Array, "Q W"],
    fanout: Int32[Array, " Q"],
) -> tuple[Int32[Array, "Q K"], Int32[Array, " Q"]]:
    """Adds what is good while there is room."""
    place = found[:, None] + jnp.cumsum(good, axis=1) - 1
    place = jnp.where(good & (place < fanout[:, None]), place, picks.shape[1])
    rows = jnp.arange(picks.shape[0])[:, None]
    picks = picks.at[rows, place].set(position, mode="drop")
    return picks, jnp.minimum(found + jnp.sum(good, axis=1), fanout)


def _known(
    picks: Int32[Array, "Q K"], found: Int32[Array, " Q"], position: Int32[Array, "Q W"]
) -> Bool[Array, "Q W"]:
    counts = jnp.arange(picks.shape[1])[None] < found[:, None]
    return jnp.any((picks[:, None] == position[:, :, None]) & counts[:, None], axis=2)


def _repeats(position: Int32[Array, "Q W"], drawn: Bool[Array, "Q W"]) -> Bool[Array, "Q W"]:
    """Whether the same position was drawn before."""
    width = position.shape[1]
    before = jnp.tril(jnp.ones((width, width), bool), -1)
    same = (position[:, :, None] == position[:, None]) & drawn[:, None]
    return jnp.any(same & before[None], axis=2)
