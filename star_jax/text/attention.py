"""Attention between the tokens of each text; back ends are chosen once, at start."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from star_jax.text.pooling import AttentionSpan

Backend = Literal["xla"]

_MASKED = -1e30  # Finite: a row without any real key must not become NaN.


class Visibility(NamedTuple):
    """Which keys exist for a query; real tokens come first (right padding)."""

    mask: Bool[Array, "R L"]
    """True for real tokens."""
    segments: Int[Array, "R L"] | None
    """Tokens see only their own segment, where a row holds several texts; None is one text."""


def attention(
    query: Float[Array, "R L H K"],
    key: Float[Array, "R L G K"],
    value: Float[Array, "R L G K"],
    visible: Visibility,
    *,
    span: AttentionSpan,
    window: int | None,
    backend: Backend,
) -> Float[Array, "R L H K"]:
    """Softmax over visible keys in float32, then the weighted sum of their values.

    Args:
      query: H heads; consecutive H / G of them share a key-value head.
      key: G heads.
      value: As `key`.
      visible: Padding and segments.
      span: Whether a token sees those after it.
      window: A token sees those less than this many positions away; None is all.
      backend: `xla` is the reference.
    """
    assert backend == "xla"
    bias = _bias(visible, span, window)
    num_rows, length, num_heads, head_width = query.shape
    num_groups = key.shape[2]
    grouped = query.reshape(num_rows, length, num_groups, num_heads // num_groups, head_width)
    logits = jnp.einsum("ulgrk,umgk->ugrlm", grouped * head_width**-0.5, key)
    weight = jax.nn.softmax(logits.astype(jnp.float32) + bias[:, None, None], axis=-1)
    mixed = jnp.einsum("ugrlm,umgk->ulgrk", weight.astype(value.dtype), value)
    return mixed.reshape(query.shape)


def _bias(visible: Visibility, span: AttentionSpan, window: int | None) -> Float[Array, "#R #L L"]:
    """0 where the query of a row may see the key of a column, very negative elsewhere."""
    allowed = visible.mask[:, None, :]
    if visible.segments is not None:
        allowed &= visible.segments[:, :, None] == visible.segments[:, None, :]
    position = jnp.arange(visible.mask.shape[1])
    ahead = position[None, None, :] - position[None, :, None]
    if span == "causal":
        allowed &= ahead <= 0
    if window is not None:
        allowed &= jnp.abs(ahead) < window
    return jnp.where(allowed, 0.0, _MASKED)
