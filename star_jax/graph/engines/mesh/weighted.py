"""Neighbours by weight, the same ones as `samplers/picks/weighted` takes row by row.

Float64 sums of the host are pairs of integers here, of which it uses as many bits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, UInt32

from star_jax.graph.engines.mesh import words
from star_jax.graph.engines.mesh.picks import (
    Draw,
    Picks,
    Seen,
    block,
    has_block,
    known,
    try_at_random,
)
from star_jax.graph.engines.mesh.topology import Edges
from star_jax.graph.engines.mesh.visibility import first_not
from star_jax.graph.samplers.picks.uniform import SMALL
from star_jax.graph.samplers.picks.weighted import BITS, LEAST_SUM

_FRACTION_BITS = 23  # Of a float32.
_LARGEST_BLOCK = 1 << 16

State = TypeVar("State")


class _Going(NamedTuple):
    """Picks on the way."""

    position: Int32[Array, "Q K"]
    found: Int32[Array, " Q"]
    slot: Int32[Array, " Q"]  # The last one that was asked.
    left: Bool[Array, " Q"]  # Whether anything may be.
    first: Int32[Array, "Q W"]  # `_bits` of the first block.


def weighted(
    draw: Draw,
    seen: Seen,
    edges: Edges,
    start: Int32[Array, " Q"],
    *,
    most: int,
    longest: int,
    replace: bool,
) -> Picks:
    """Visible edges drawn in proportion to their weights, or to those of what is left.

    Args:
      draw: Rows, what the times leave of them.
      seen: What may be picked.
      edges: With weights and their sums.
      start: Where sums begin: of whole rows.
      most: The largest fanout.
      longest: No row is longer.
      replace: Whether an edge may be picked again.

    Raises:
      ValueError: The fanout is too large for sums in 32 bits.
    """
    if SMALL * most > _LARGEST_BLOCK:
        raise ValueError(f"{most} neighbours by weight, needed at most {_LARGEST_BLOCK // SMALL}")
    total, place = sums_of(draw, edges, start, longest)
    is_long = (draw.end - draw.begin > SMALL * draw.fanout) & (total >= LEAST_SUM)
    size = jnp.where(is_long, total, 0)
    tries = try_at_random(draw, seen, most, size, place, replace=replace)
    picks = (tries.position, tries.found, tries.slot)
    is_one = draw.end - draw.begin <= SMALL * most
    for mine, is_single in ((is_one, True), (~is_one, False)):
        unfinished = mine & (picks[1] < draw.fanout)
        rows = draw._replace(end=jnp.where(unfinished, draw.end, draw.begin))
        picks = _enumerate(rows, seen, edges, most, picks, is_single=is_single, replace=replace)
    return Picks(*picks[:2])


def sums_of(
    draw: Draw, edges: Edges, start: Int32[Array, " Q"], longest: int
) -> tuple[Int32[Array, " Q"], Callable[[Int32[Array, "Q W"]], Int32[Array, "Q W"]]]:
    """The sum of the weights of each row, cut to 31 bits of all up to its end.

    Returns:
      The sums, and what turns integers below them into positions.
    """
    digits, exponents = jnp.asarray(edges.digits), jnp.asarray(edges.exponent)
    last = jnp.maximum(draw.end - 1, 0)
    exponent = exponents[last].astype(jnp.int32)

    def cut(position: Int32[Array, "Q P"], exponent: Int32[Array, "Q 1"]) -> Int32[Array, "Q P"]:
        """Sums up to positions, to as many bits as the last one of a row has."""
        shift = exponent - exponents[position].astype(jnp.int32)
        return digits[position] >> jnp.clip(shift, 0, BITS)

    before = cut(jnp.maximum(draw.begin - 1, 0)[:, None], exponent[:, None])[:, 0]
    before = jnp.where(draw.begin > start, before, 0)

    def place(offset: Int32[Array, "Q W"]) -> Int32[Array, "Q W"]:
        def each(row: Int32[Array, " Q"]) -> Int32[Array, " QW"]:
            return jnp.repeat(row, offset.shape[1])

        own, sought = each(exponent)[:, None], (before[:, None] + offset).reshape(-1, 1)
        found = first_not(
            lambda position: cut(position, own) <= sought,
            each(draw.begin),
            each(draw.end),
            longest,
        )
        return found.reshape(offset.shape)

    return jnp.where(draw.end > draw.begin, digits[last] - before, 0), place


def _enumerate(
    draw: Draw,
    seen: Seen,
    edges: Edges,
    most: int,
    picks: tuple[Int32[Array, "Q K"], Int32[Array, " Q"], Int32[Array, " Q"]],
    *,
    is_single: bool,
    replace: bool,
) -> tuple[Int32[Array, "Q K"], Int32[Array, " Q"], Int32[Array, " Q"]]:
    """Goes on after some picks with all that is left, pick by pick; exact.

    Args:
      draw: Rows.
      seen: What may be picked.
      edges: With weights.
      most: The largest fanout.
      picks: Positions, how many of them count, and the last slot that was asked.
      is_single: Whether no row is longer than one block, which is then read once.
      replace: Whether an edge may be picked again.
    """

    def bits(number: Int32[Array, ""], going: tuple[Array, Array]) -> Int32[Array, "Q W"]:
        position = block(draw, number, most)
        shown = seen(position)
        if not replace:
            shown &= ~known(*going, position)
        return _bits(edges, position, shown)

    def fold(step: Callable[[State, Array, Array], State], start: State, going: _Going) -> State:
        """Over the blocks."""
        folded = step(start, jnp.int32(0), going.first)
        if is_single:
            return folded

        def one(state: tuple[Array, State]) -> tuple[Array, State]:
            number, folded = state
            return number + 1, step(folded, number, bits(number, going[:2]))

        state = (jnp.int32(1), folded)
        return jax.lax.while_loop(lambda state: has_block(draw, state[0], most), one, state)[1]

    def step(going: _Going) -> _Going:
        return _one_more(draw, going, fold, replace=replace)

    start = _Going(*picks, draw.end > draw.begin, bits(jnp.int32(0), picks[:2]))
    made = jax.lax.while_loop(
        lambda going: jnp.any(going.left & (going.found < draw.fanout)), step, start
    )
    return made[:3]


def _one_more(draw: Draw, going: _Going, fold: Callable[..., Any], *, replace: bool) -> _Going:
    """The next pick of every row that lacks one."""
    width = going.first.shape[1]
    none = jnp.zeros_like(going.found)
    largest = fold(
        lambda most, _, bits: jnp.maximum(most, jnp.max(_exponent(bits), axis=1)), none, going
    )
    zero = words.Word(*[none.astype(jnp.uint32)] * 2)

    def add(total: words.Word, _: Array, bits: Array) -> words.Word:
        sums = words.running_sums(_cut(bits, largest))
        return words.plus(total, words.Word(*(half[:, -1] for half in sums)))

    total = fold(add, zero, going)
    shift = jnp.maximum(words.num_bits(total) - BITS, 0)
    size = words.shifted_right(total, shift).astype(jnp.int32)
    drawn, slot = (x[:, 0] for x in words.each_below(draw.start, going.slot, size[:, None]))
    bound = words.shifted_left((drawn + 1).astype(jnp.uint32), shift)

    def look(
        state: tuple[words.Word, Array], number: Array, bits: Array
    ) -> tuple[words.Word, Array]:
        before, column = state
        own = words.running_sums(_cut(bits, largest))
        upto = words.plus(words.Word(*(half[:, None] for half in before)), own)
        is_before = words.below(upto, words.Word(*(half[:, None] for half in bound)))
        column += jnp.sum(is_before, axis=1)
        return words.Word(*(half[:, -1] for half in upto)), column

    column = fold(look, (zero, none), going)[1]
    left = going.left & (largest > 0)
    picked = left & (going.found < draw.fanout)
    place = picked[:, None] & (jnp.arange(going.position.shape[1])[None] == going.found[:, None])
    taken = picked[:, None] & (jnp.arange(width)[None] == column[:, None])
    return _Going(
        jnp.where(place, (draw.begin + column)[:, None], going.position),
        going.found + picked,
        jnp.where(picked, slot, going.slot),
        left,
        going.first if replace else jnp.where(taken, 0, going.first),
    )


def _bits(
    edges: Edges, position: Int32[Array, "Q W"], shown: Bool[Array, "Q W"]
) -> Int32[Array, "Q W"]:
    """Weights as the integers that floats are stored as; 0 where none may be picked.

    Nothing is computed with floats: devices take the smallest ones for zero.
    """
    weight = jnp.asarray(edges.weight)[jnp.where(shown, position, 0)]
    bits = jax.lax.bitcast_convert_type(weight, jnp.int32)
    return jnp.where(shown, jnp.maximum(bits, 0), 0)


def _exponent(bits: Int32[Array, "Q W"]) -> Int32[Array, "Q W"]:
    """As stored; 1 of the smallest floats too, and 0 of zeros."""
    return jnp.where(bits > 0, jnp.maximum(bits >> _FRACTION_BITS, 1), 0)


def _cut(bits: Int32[Array, "Q W"], largest: Int32[Array, " Q"]) -> UInt32[Array, "Q W"]:
    """Weights to 31 bits of those with the largest exponent."""
    one = 1 << _FRACTION_BITS
    digits = (bits & (one - 1)) + jnp.where(bits >= one, one, 0)
    shift = jnp.clip(largest[:, None] - _exponent(bits), 0, BITS)
    return (digits << (BITS - 1 - _FRACTION_BITS) >> shift).astype(jnp.uint32)
