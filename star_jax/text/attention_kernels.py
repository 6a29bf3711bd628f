"""Attention by libraries of kernels: what each of them must be given to compute ours.

All take what `attention.attention` takes. Where XLA cannot split a kernel over devices, the kernel
runs on each device's rows and heads.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from star_jax.parallel.activations import on_each_device
from star_jax.text.pooling import AttentionSpan

TokamaxKernel = Literal["triton", "mosaic", "xla_chunked"]

_PADDING = -1  # The segment of what is no text.
_LANES = 128  # Width of a TPU's vector registers.
_LONGEST_BLOCK = 512  # Of queries or keys, in lanes' multiples: fits the fast memory of every TPU.


def cudnn(
    query: Float[Array, "R L H K"],
    key: Float[Array, "R L G K"],
    value: Float[Array, "R L G K"],
    mask: Bool[Array, "R L"],
    *,
    span: AttentionSpan,
    window: int | None,
    scale: float,
) -> Float[Array, "R L H K"]:
    """Flash attention of cuDNN; one text a row, states in bfloat16."""
    options = cudnn_options(mask, span=span, window=window, scale=scale)
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn", **options)


def cudnn_options(
    mask: Bool[Array, "R L"], *, span: AttentionSpan, window: int | None, scale: float
) -> dict[str, Any]:
    """What `jax.nn.dot_product_attention` is told beside the states and the implementation."""
    lengths = _lengths(mask)
    return {
        "scale": scale,
        "is_causal": span == "causal",
        "query_seq_lengths": lengths,
        "key_value_seq_lengths": lengths,
        "local_window_size": _window_sides(span, window),
    }


def tokamax(
    query: Float[Array, "R L H K"],
    key: Float[Array, "R L G K"],
    value: Float[Array, "R L G K"],
    mask: Bool[Array, "R L"],
    segments: Int[Array, "R L"] | None,
    *,
    span: AttentionSpan,
    window: int | None,
    scale: float,
    implementation: tuple[TokamaxKernel, ...] = ("mosaic", "triton"),
) -> Float[Array, "R L H K"]:
    """Tokamax's flash attention on a GPU.

    Args:
      query: H heads; consecutive H / G of them share a key-value head.
      key: G heads.
      value: As `key`.
      mask: True for real tokens.
      segments: Of packed rows.
      span: As in `attention`, like the two below.
      window: A token sees those less than this many positions away.
      scale: Of the logits.
      implementation: The first that can do the case runs: `mosaic` on Hopper in bfloat16, where
        it is the faster one (bench/results/attention_gpu.md). Named, because the library's own
        choice ends in its plain XLA form.
    """
    from tokamax import dot_product_attention  # pyright: ignore[reportMissingImports] # an extra

    attend = partial(
        dot_product_attention,
        scale=scale,
        is_causal=span == "causal",
        local_window_size=_window_sides(span, window),
        implementation=implementation,
    )
    if segments is None:
        return on_each_device(
            lambda q, k, v, lengths: attend(q, k, v, key_value_seq_lengths=lengths),
            *(query, key, value),
            of_rows=(_lengths(mask),),
            heads=2,
        )
    return on_each_device(
        lambda q, k, v, ids: attend(q, k, v, mask=(ids[:, :, None] == ids[:, None, :])[:, None]),
        *(query, key, value),
        of_rows=(_segment_ids(mask, segments),),
        heads=2,
    )


def splash(
    query: Float[Array, "R L H K"],
    key: Float[Array, "R L G K"],
    value: Float[Array, "R L G K"],
    mask: Bool[Array, "R L"],
    segments: Int[Array, "R L"] | None,
    *,
    span: AttentionSpan,
    window: int | None,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "R L H K"]:
    """JAX's splash attention on a TPU; lengths and heads are padded to what the kernel takes.

    Args:
      query: H heads; consecutive H / G of them share a key-value head.
      key: G heads.
      value: As `key`.
      mask: True for real tokens.
      segments: Of packed rows.
      span: As in `attention`, like the two below.
      window: A token sees those less than this many positions away.
      scale: Of the logits.
      interpret: Computes the kernel step by step, on any platform.
    """
    length, head_width = query.shape[1], query.shape[3]
    more_tokens, more_width = -length % _LANES, -head_width % _LANES
    states = [
        jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, more_tokens), (0, more_width)))
        for x in (query * scale, key, value)
    ]
    # Padding sees padding, so that no query is without keys: the kernel would divide by zero.
    ids = jnp.pad(
        _segment_ids(mask, segments), ((0, 0), (0, more_tokens)), constant_values=_PADDING
    )
    attend = partial(_splash, span=span, window=window, interpret=interpret)
    mixed = jnp.swapaxes(on_each_device(attend, *states, of_rows=(ids,), heads=1), 1, 2)
    return mixed[:, :length, :, :head_width]


def _splash(
    query: Float[Array, "R H L K"],
    key: Float[Array, "R G L K"],
    value: Float[Array, "R G L K"],
    ids: Int[Array, "R L"],
    *,
    span: AttentionSpan,
    window: int | None,
    interpret: bool,
) -> Float[Array, "R H L K"]:
    from jax.experimental.pallas.ops.tpu.splash_attention import (  # Slow to import.
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    num_heads, length = query.shape[1:3]
    square = (length, length)
    sides = _window_sides(span, window)
    if sides is not None:
        seen = masks.LocalMask(square, sides, 0)
    else:
        seen = masks.CausalMask(square) if span == "causal" else masks.FullMask(square)
    block = _block(length)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([seen] * num_heads),
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    mixed = jax.vmap(kernel)(query, key, value, kernels.SegmentIds(ids, ids))
    assert isinstance(mixed, Array)  # Without `save_residuals` it is nothing else.
    return mixed


def _block(length: int) -> int:
    """The longest block that divides a length of whole lanes."""
    return max(b for b in range(_LANES, _LONGEST_BLOCK + 1, _LANES) if length % b == 0)


def _segment_ids(mask: Bool[Array, "R L"], segments: Int[Array, "R L"] | None) -> Int[Array, "R L"]:
    """Segment of each token; padding has one of its own."""
    ids = jnp.zeros(mask.shape, jnp.int32) if segments is None else segments
    return jnp.where(mask, ids, _PADDING)


def _lengths(mask: Bool[Array, "R L"]) -> Int[Array, " R"]:
    """Real tokens of each row; 1 where there is none, so that no query is without keys."""
    return jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1)


def _window_sides(span: AttentionSpan, window: int | None) -> tuple[int, int] | None:
    """How far a token sees before and after itself."""
    if window is None:
        return None
    return window - 1, 0 if span == "causal" else window - 1
