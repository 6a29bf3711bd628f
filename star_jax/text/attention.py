"""Attention between the tokens of each text; back ends are chosen once, at start."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from star_jax.text import attention_kernels as kernels
from star_jax.text.pooling import AttentionSpan

Backend = Literal["xla", "cudnn", "tokamax", "splash"]

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
    scale: float | None = None,
    bias: Float[Array, "H L L"] | None = None,
) -> Float[Array, "R L H K"]:
    """Softmax over visible keys in float32, then the weighted sum of their values.

    What stands on padding is finite, and differs between back ends.

    Args:
      query: H heads; consecutive H / G of them share a key-value head.
      key: G heads.
      value: As `key`.
      visible: Padding and segments.
      span: Whether a token sees those after it.
      window: A token sees those less than this many positions away; None is all.
      backend: `xla` is the reference; `attention_choice` says what the others can do.
      scale: Of the logits; None is one over the root of the head width.
      bias: Added to the logits; `xla` only.

    Raises:
      ValueError: The back end cannot do that.
    """
    if window is not None and window >= query.shape[1]:
        window = None
    factor = float(query.shape[-1] ** -0.5 if scale is None else scale)
    if backend == "xla":
        return _xla(query, key, value, _logit_mask(visible, span, window), factor, bias)
    if bias is not None:
        raise ValueError(f"attention_backend {backend} got a bias, needed xla")
    mask, segments = visible
    if backend == "cudnn":
        if segments is not None:
            raise ValueError("attention_backend cudnn got several texts a row, needed one")
        return kernels.cudnn(query, key, value, mask, span=span, window=window, scale=factor)
    kernel = kernels.tokamax if backend == "tokamax" else kernels.splash
    return kernel(query, key, value, mask, segments, span=span, window=window, scale=factor)


def _xla(
    query: Float[Array, "R L H K"],
    key: Float[Array, "R L G K"],
    value: Float[Array, "R L G K"],
    logit_mask: Float[Array, "#R #L L"],
    scale: float,
    bias: Float[Array, "H L L"] | None,
) -> Float[Array, "R L H K"]:
    """Plain matmuls of the heads' own matrices, divided last: what compilers do well on a CPU."""
    num_rows, length, num_heads, head_width = query.shape
    num_groups = key.shape[2]
    by_head, by_group = (num_rows, num_heads, length, -1), (num_rows, num_groups, -1, length)
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query * scale, key, value))
    # The heads of a group stand below one another: axis x counts heads and queries.
    grouped = query.reshape(num_rows, num_groups, -1, head_width)
    logits = jnp.einsum("ugxk,ugmk->ugxm", grouped, key).astype(jnp.float32).reshape(by_head)
    if bias is not None:
        logits += bias.astype(jnp.float32)[None]
    logits += logit_mask[:, None]
    most = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weight = jnp.exp(logits - most)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    weight = weight.astype(value.dtype).reshape(by_group)
    mixed = jnp.einsum("ugxm,ugmk->ugxk", weight, value)
    return jnp.swapaxes(mixed.reshape(by_head) / total, 1, 2).astype(value.dtype)


def _logit_mask(
    visible: Visibility, span: AttentionSpan, window: int | None
) -> Float[Array, "#R #L L"]:
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
