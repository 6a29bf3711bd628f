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


class Tries(NamedTuple):
    """Picks on the way."""

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

    def place(offset: Int32[Array, "Q W"]) -> Int32[Array, "Q W"]:
        return draw.begin[:, None] + offset

    tries = try_at_random(draw, seen, most, jnp.where(is_long, size, 0), place, replace=replace)
    done = is_long & (tries.found == draw.fanout)
    slot = jnp.where(is_long, tries.slot, 0)
    rest = draw._replace(end=jnp.where(done, draw.begin, draw.end))
    listed = _enumerate(rest, seen, most, slot, replace=replace)
    return Picks(
        jnp.where(done[:, None], tries.position, listed.position),
        jnp.where(done, tries.found, listed.found),
    )


def try_at_random(
    draw: Draw,
    seen: Seen,
    most: int,
    size: Int32[Array, " Q"],
    place: Callable[[Int32[Array, "Q W"]], Int32[Array, "Q W"]],
    *,
    replace: bool,
) -> Tries:
    """Draws until rows are full or were refused too often; so many slots at a time.

    Args:
      draw: Rows.
      seen: What may be picked.
      most: The largest fanout.
      size: Integers below it are drawn for each row; 0: none.
      place: From such integers to positions.
      replace: Whether a position may be picked again.
    """
    wanted, size = size > 0, jnp.maximum(size, 1)
    limit = 8 * draw.fanout + 64
    # Repeats refuse at most a quarter of the draws: with twice as many one round mostly does.
    at_once = most + 2 if replace else 2 * most + 2

    def active(tries: Tries) -> Bool[Array, " Q"]:
        return wanted & (tries.found < draw.fanout) & (tries.drawn < limit)

    def step(tries: Tries) -> Tries:
        slot = tries.slot[:, None] + 1 + jnp.arange(at_once)[None]
        start = words.Word(*(half[:, None] for half in draw.start))
        offset, drawn = words.scaled(words.draw(start, slot), size[:, None])
        number = tries.drawn[:, None] + jnp.cumsum(drawn, axis=1)
        drawn &= (number <= limit[:, None]) & active(tries)[:, None]
        position = place(offset)
        good = drawn & seen(position)
        if not replace:
            good &= ~known(tries.position, tries.found, position) & ~_repeats(position, drawn)
        picks, found = _append(tries.position, tries.found, position, good, draw.fanout)
        last = jnp.max(jnp.where(drawn, slot, 0), axis=1)  # That of the last try allowed.
        next_slot = jnp.where(number[:, -1] >= limit, last, slot[:, -1])
        still = active(tries)
        return Tries(
            picks,
            found,
            jnp.where(still, next_slot, tries.slot),
            jnp.where(still, jnp.minimum(number[:, -1], limit), tries.drawn),
        )

    zeros = jnp.zeros_like(size)
    empty = jnp.zeros((size.shape[0], most), jnp.int32)
    start = Tries(empty, zeros, zeros, zeros)
    return jax.lax.while_loop(lambda tries: jnp.any(active(tries)), step, start)


def _enumerate(
    draw: Draw, seen: Seen, most: int, slot: Int32[Array, " Q"], *, replace: bool
) -> Picks:
    """Counts what is visible, shuffles the ranks, then looks the ranks up; exact.

    The first block of a row, which is all of a short one, is read once; the loops are for the rest.
    """
    shown = seen(block(draw, jnp.int32(0), most))

    def count(state: tuple[Array, Array]) -> tuple[Array, Array]:
        number, visible = state
        return number + 1, visible + jnp.sum(seen(block(draw, number, most)), axis=1)

    start = (jnp.int32(1), jnp.sum(shown, axis=1))
    visible = jax.lax.while_loop(lambda state: has_block(draw, state[0], most), count, start)[1]
    rank, found = _ranks(draw, visible, slot, most, replace=replace)

    def look_up(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, before, picks = state
        shown = seen(block(draw, number, most))
        met = _positions(draw, number, shown, rank - before[:, None])
        return number + 1, before + jnp.sum(shown, axis=1), jnp.where(met < 0, picks, met)

    start = (jnp.int32(1), jnp.sum(shown, axis=1), _positions(draw, jnp.int32(0), shown, rank))
    picks = jax.lax.while_loop(lambda state: has_block(draw, state[0], most), look_up, start)[2]
    return Picks(picks, found)


def _positions(
    draw: Draw, number: Int32[Array, ""], shown: Bool[Array, "Q W"], rank: Int32[Array, "Q K"]
) -> Int32[Array, "Q K"]:
    """Of the visible edges of a block with given ranks; -1 for those that are elsewhere."""
    upto = jnp.cumsum(shown, axis=1)
    column = jnp.sum(upto[:, None] <= rank[:, :, None], axis=2)
    here = (rank >= 0) & (column < shown.shape[1])
    return jnp.where(here, (draw.begin + number * shown.shape[1])[:, None] + column, -1)


def _ranks(
    draw: Draw, visible: Int32[Array, " Q"], slot: Int32[Array, " Q"], most: int, *, replace: bool
) -> tuple[Int32[Array, "Q K"], Int32[Array, " Q"]]:
    """Which of the visible edges are taken: the first steps of a Fisher-Yates shuffle."""
    step = jnp.broadcast_to(jnp.arange(most)[None], (visible.shape[0], most)).astype(jnp.int32)
    some = visible > 0
    shuffled = some & (replace | (visible > draw.fanout))
    wanted = shuffled[:, None] & (step < draw.fanout[:, None])
    size = visible[:, None] if replace else visible[:, None] - step
    offset, _ = words.each_below(draw.start, slot, jnp.where(wanted, size, 1))
    if replace:
        return jnp.where(wanted, offset, step), jnp.where(some, draw.fanout, 0)
    rank = jnp.where(wanted, shuffled_ranks(jnp.where(wanted, step + offset, -1)), step)
    return rank, jnp.minimum(visible, jnp.where(some, draw.fanout, 0))


def shuffled_ranks(target: Int32[Array, "Q K"]) -> Int32[Array, "Q K"]:
    """What the first steps of a Fisher-Yates shuffle of 0, 1, 2, ... take.

    Step i swaps the entries at i and `target[i]` >= i, or -1 for no swap, and takes the one that
    comes to i. What it moves away from i is i itself, or what the last swap with i moved there,
    and so on: chains, whose ends are found by doubling.
    """
    step = jnp.arange(target.shape[1])
    earlier = step[None, :] < step[:, None]  # [i, j]: j before i.

    def last_swap(place: Int32[Array, "Q K"]) -> Int32[Array, "Q K"]:
        hits = (target[:, None] == place[:, :, None]) & earlier[None]
        return jnp.max(jnp.where(hits, step[None, None], -1), axis=2, initial=-1)

    own = jnp.broadcast_to(step[None], target.shape)
    before = last_swap(own)
    moved = jnp.where(before < 0, own, before)
    for _ in range((target.shape[1] - 1).bit_length()):
        moved = _at(moved, moved, own)
    swapped = last_swap(target)
    return jnp.where(swapped < 0, target, _at(moved, swapped, own))


def block(draw: Draw, number: Int32[Array, ""], most: int) -> Int32[Array, "Q W"]:
    """Some positions of each row; the last ones may be beyond it."""
    window = SMALL * most
    return (draw.begin + number * window)[:, None] + jnp.arange(window)[None]


def _block_from_end(draw: Draw, number: Int32[Array, ""], most: int) -> Int32[Array, "Q W"]:
    window = SMALL * most
    return (draw.end - 1 - number * window)[:, None] - jnp.arange(window)[None]


def has_block(draw: Draw, number: Int32[Array, ""], most: int) -> Bool[Array, ""]:
    """Whether a block has positions of any row."""
    return jnp.any(draw.begin + number * SMALL * most < draw.end)


def _append(
    picks: Int32[Array, "Q K"],
    found: Int32[Array, " Q"],
    position: Int32[Array, "Q W"],
    good: Bool[Array, "Q W"],
    fanout: Int32[Array, " Q"],
) -> tuple[Int32[Array, "Q K"], Int32[Array, " Q"]]:
    """Adds what is good while there is room."""
    total = found + jnp.sum(good, axis=1)
    place = jnp.where(good, found[:, None] + jnp.cumsum(good, axis=1) - 1, -1)
    step = jnp.arange(picks.shape[1])[None]
    is_new = (step >= found[:, None]) & (step < total[:, None])
    added = _at(position, jnp.broadcast_to(step, picks.shape), place)
    return jnp.where(is_new, added, picks), jnp.minimum(total, fanout)


def _at(
    values: Int32[Array, "Q W"], index: Int32[Array, "Q K"], place: Int32[Array, "Q W"]
) -> Int32[Array, "Q K"]:
    """The value whose place is `index`, 0 where there is none.

    A sum over what is compared instead of a gather or scatter: one fused pass over narrow rows,
    where a TPU would move one number at a time.
    """
    return jnp.sum(jnp.where(place[:, None] == index[:, :, None], values[:, None], 0), axis=2)


def known(
    picks: Int32[Array, "Q K"], found: Int32[Array, " Q"], position: Int32[Array, "Q W"]
) -> Bool[Array, "Q W"]:
    """Whether positions are among the picks."""
    counts = jnp.arange(picks.shape[1])[None] < found[:, None]
    return jnp.any((picks[:, None] == position[:, :, None]) & counts[:, None], axis=2)


def _repeats(position: Int32[Array, "Q W"], drawn: Bool[Array, "Q W"]) -> Bool[Array, "Q W"]:
    """Whether the same position was drawn before."""
    width = position.shape[1]
    before = jnp.tril(jnp.ones((width, width), bool), -1)
    same = (position[:, :, None] == position[:, None]) & drawn[:, None]
    return jnp.any(same & before[None], axis=2)
