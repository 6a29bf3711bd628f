"""Counter-based random integers inside the compiled program: `samplers/draws.py`, bit for bit.

A 64-bit word is a pair of 32-bit halves: TPUs have no 64-bit integers, and JAX has none unless all
of a process switches to them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, UInt32

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_HALF = 0xFFFFFFFF


class Word(NamedTuple):
    """64-bit words."""

    high: UInt32[Array, "*_"]
    low: UInt32[Array, "*_"]


def word(value: int) -> Word:
    """A constant."""
    return Word(jnp.uint32(value >> 32 & _HALF), jnp.uint32(value & _HALF))


def mix(x: Word) -> Word:
    """The output function of splitmix64."""
    x = _times(_fold(x, 30), _FIRST)
    x = _times(_fold(x, 27), _SECOND)
    return _fold(x, 31)


def stream(key: Word, salt: Word, node: Int32[Array, "*_"]) -> Word:
    """Start of the draws of one node and relation."""
    salted = mix(Word(key.high ^ salt.high, key.low ^ salt.low))
    return mix(plus(salted, _step(node)))


def draw(start: Word, slot: Int32[Array, "*_"]) -> UInt32[Array, "*_"]:
    """The random bits of a slot."""
    return mix(plus(start, _step(slot))).high


def scaled(
    bits: UInt32[Array, "*_"], n: Int32[Array, "*_"]
) -> tuple[Int32[Array, "*_"], Bool[Array, "*_"]]:
    """Lemire's multiplication: an integer below n >= 1, and whether it may be taken.

    Taken where it may be, integers are exactly uniform; else the next slot is asked.
    """
    size = n.astype(jnp.uint32)
    low = bits * size
    rest = (jnp.uint32(0) - size) % jnp.maximum(size, 1)  # 2^32 - n, modulo n.
    return _high(bits, size).astype(jnp.int32), (low >= size) | (low >= rest)


def each_below(
    start: Word, slot: Int32[Array, " Q"], n: Int32[Array, "Q K"]
) -> tuple[Int32[Array, "Q K"], Int32[Array, "Q K"]]:
    """Exactly uniform integers below each n >= 1, drawn one after the other from a row's slots.

    Args:
      start: Of the rows.
      slot: The last one that was asked.
      n: Bounds; 0 and 1 take whatever their slot gives.

    Returns:
      The integers, and the slots they came from.
    """
    start = Word(*(half[:, None] for half in start))
    ahead = jnp.arange(1, n.shape[1] + 1)[None]

    def draw_all(refusals: Int32[Array, "Q K"]) -> tuple[Int32[Array, "Q K"], Array]:
        """With so many slots refused before each integer."""
        return scaled(draw(start, slot[:, None] + ahead + refusals), n)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """Moves a row on from its first refusal."""
        refusals, _, taken = state
        refusals += jnp.cumsum(~taken, axis=1) > 0
        return refusals, *draw_all(refusals)

    none = jnp.zeros_like(n)
    first = (none, *draw_all(none))
    refusals, value, _ = jax.lax.while_loop(lambda state: ~jnp.all(state[2]), step, first)
    return value, slot[:, None] + ahead + refusals


def plus(a: Word, b: Word) -> Word:
    """Modulo 2^64."""
    low = a.low + b.low
    return Word(a.high + b.high + (low < b.low).astype(jnp.uint32), low)


def below(a: Word, b: Word) -> Bool[Array, "*_"]:
    """Whether a < b."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def num_bits(x: Word) -> Int32[Array, "*_"]:
    """Without leading zeros."""
    zeros = jnp.where(x.high > 0, jax.lax.clz(x.high), 32 + jax.lax.clz(x.low))
    return 64 - zeros.astype(jnp.int32)


def shifted_left(x: UInt32[Array, "*_"], shift: Int32[Array, "*_"]) -> Word:
    """By 0 to 31 bits."""
    by = shift.astype(jnp.uint32)
    return Word(x >> 1 >> (31 - by), x << by)


def shifted_right(x: Word, shift: Int32[Array, "*_"]) -> UInt32[Array, "*_"]:
    """By 0 to 31 bits; the lower half of what is left."""
    by = shift.astype(jnp.uint32)
    return x.high << 1 << (31 - by) | x.low >> by


def running_sums(values: UInt32[Array, "Q W"]) -> Word:
    """Of each row, of at most 2^15 values."""
    high, low = (
        jnp.cumsum(part, axis=1, dtype=jnp.uint32) for part in (values >> 16, values & 0xFFFF)
    )
    return plus(Word(high >> 16, high << 16), Word(jnp.zeros_like(low), low))


def _step(count: Int32[Array, "*_"]) -> Word:
    count = count.astype(jnp.uint32)
    return _times(Word(jnp.zeros_like(count), count), _GOLDEN)


def _fold(x: Word, shift: int) -> Word:
    """Exclusive or of x and x >> shift, for shifts below 32."""
    carried = x.high << (32 - shift) | x.low >> shift
    return Word(x.high ^ x.high >> shift, x.low ^ carried)


def _times(x: Word, factor: int) -> Word:
    """Modulo 2^64."""
    b = word(factor)
    return Word(_high(x.low, b.low) + x.low * b.high + x.high * b.low, x.low * b.low)


def _high(a: UInt32[Array, "*_"], b: UInt32[Array, "*_"]) -> UInt32[Array, "*_"]:
    """The upper half of a product, from products of halves."""
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    middle = a_high * b_low + (a_low * b_low >> 16)
    other = a_low * b_high + (middle & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (other >> 16)
