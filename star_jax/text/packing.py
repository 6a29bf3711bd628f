"""Rows of tokens that hold one text or several, one after the other: what a tower reads."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Tokens(NamedTuple):
    """Texts in rows of one length; a row ends in padding.

    Text s of row r is number `r * S + s`; with S = 1 every text has a row of its own.
    """

    tokens: Int[Array, "R L"]
    lengths: Int[Array, "R S"]
    """Tokens of each text; 0 is no text. The texts of a row follow each other."""
    skipped: Int[Array, "R S"] | None = None
    """Leading tokens of each text that are its prompt; pooling may leave them out."""
    kind: Int[Array, "R S"] | None = None
    """Number of each text's kind, which decides its adapters where every tower has its own."""


class Spans(NamedTuple):
    """Where the texts of a row lie."""

    slot: Int[Array, "R L"]
    """Text that a token belongs to; S on padding."""
    position: Int[Array, "R L"]
    """Place of a token in its text; 0 on padding."""
    mask: Bool[Array, "R L"]
    """True for real tokens."""


def spans(lengths: Int[Array, "R S"], row_length: int) -> Spans:
    """Lays the texts of each row one after the other."""
    ends = jnp.cumsum(lengths, axis=1)
    place = jnp.arange(row_length)[None, :]
    slot = jnp.sum(ends[:, :, None] <= place[:, None, :], axis=1)
    starts = jnp.concatenate([jnp.zeros_like(ends[:, :1]), ends], axis=1)
    mask = slot < lengths.shape[1]
    position = jnp.where(mask, place - jnp.take_along_axis(starts, slot, axis=1), 0)
    return Spans(slot, position, mask)


def kind_of_token(texts: Tokens) -> Int[Array, "R L"]:
    """Number of the kind of each token's text; -1 on padding.

    Raises:
      ValueError: The texts do not say of which kind they are.
    """
    if texts.kind is None:
        raise ValueError("texts without kind, needed the number of each text's kind")
    slot = spans(texts.lengths, texts.tokens.shape[1]).slot
    none = jnp.full_like(texts.kind[:, :1], -1)
    return jnp.take_along_axis(jnp.concatenate([texts.kind, none], axis=1), slot, axis=1)
