"""What the contrastive losses share: the rows of a batch, and who may be whose negative."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

RequestCombine = Literal["separate", "mean", "max"]


class Rows(NamedTuple):
    """What a batch says about its rows."""

    label: Float[Array, " B"]
    mask: Bool[Array, " B"]
    sender: Int[Array, " B"]
    receiver: Int[Array, " B"]
    known_positive: Bool[Array, "B B"] | None
    """[i, j]: the sender of row j is known to have applied to the receiver of row i."""
    pool: Int[Array, " B"] | None = None
    """Rows find their negatives in their own pool; None is one pool for all."""
    teacher: Float[Array, " B"] | None = None
    """A cross-encoder's logit, NaN where there is none; None where no row has one."""


class Component(NamedTuple):
    """One part of the request, or the document: a vector per row and whether the row has it."""

    vector: Float[Array, "B E"]
    present: Bool[Array, " B"]


class Contrast(NamedTuple):
    """A loss, and over how many anchors it is a mean."""

    loss: Float[Array, ""]
    num_anchors: Float[Array, ""]


def strangers(rows: Rows) -> Bool[Array, "B B"]:
    """[i, j]: the request of row j is no known match of the document of row i.

    Known are: the same member, a member who applied to that very job, and `known_positive`.
    """
    return _in_reach(rows) & ~(rows.sender[:, None] == rows.sender[None, :])


def no_matches(rows: Rows) -> Bool[Array, "B B"]:
    """[i, j]: the sender of row j is not known to have applied to the receiver of row i.

    Unlike `strangers`, a member's own negatives count: read by columns, these are the documents
    that the request of row j may be set against.
    """
    same_sender = rows.sender[:, None] == rows.sender[None, :]
    return _in_reach(rows) & ~(same_sender & (rows.label > 0.5)[:, None])


def combine(components: tuple[Component, ...], how: RequestCombine) -> tuple[Component, ...]:
    """The components themselves, or one unit vector made of those that are there."""
    if how == "separate":
        return components
    present = jnp.stack([component.present for component in components])
    vectors = jnp.stack([component.vector.astype(jnp.float32) for component in components])
    if how == "mean":
        vector = jnp.sum(jnp.where(present[:, :, None], vectors, 0.0), axis=0)
    else:
        vector = jnp.max(jnp.where(present[:, :, None], vectors, -1.0), axis=0)
    square = jnp.sum(jnp.square(vector), axis=1, keepdims=True)
    vector = vector / jnp.sqrt(jnp.maximum(square, 1e-24))
    return (Component(vector, jnp.any(present, axis=0)),)


def _in_reach(rows: Rows) -> Bool[Array, "B B"]:
    """Real rows of the same pool, of which j did not apply to the job of i."""
    same_receiver = rows.receiver[:, None] == rows.receiver[None, :]
    applied = same_receiver & (rows.label > 0.5)[None, :]
    allowed = rows.mask[:, None] & rows.mask[None, :] & ~applied
    if rows.known_positive is not None:
        allowed &= ~rows.known_positive
    if rows.pool is not None:
        allowed &= rows.pool[:, None] == rows.pool[None, :]
    return allowed
