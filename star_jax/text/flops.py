"""Floating-point operations of the text tower by formula; a multiply-add counts two.

Model FLOPs are what the mathematics of the real tokens needs; MFU divides them by the peak.
Hardware FLOPs are what runs: padding and what is computed again count too; HFU divides them.
Adapters, norms, embeddings and the scorer are left out of both: below a percent at size.
"""

import numpy as np
from jaxtyping import Int

from star_jax.text.bi_encoder import Mode
from star_jax.text.families import BertShape, MistralShape, Shape
from star_jax.text.pooling import AttentionSpan
from star_jax.text.stack import Remat

# Forward, gradient of the input, gradient of the weight: two operations a parameter each. A
# frozen weight needs no gradient, and below a tower of which nothing trains there is none at all.
_PER_PARAMETER = {"frozen": 2.0, "lora": 4.0, "full": 6.0}
_GATED = ["gate_proj", "up_proj", "down_proj"]
_PER_ATTENTION = {"frozen": 1.0, "lora": 3.0, "full": 3.0}  # Backward is twice the forward.


def layer_matmuls(shape: Shape) -> dict[str, int]:
    """Parameters of each linear map of one block."""
    query = key = heads_width(shape)
    if isinstance(shape, MistralShape):
        key = shape.num_kv_heads * shape.head_width
    names = ["up_proj", "down_proj"] if isinstance(shape, BertShape) else _GATED
    sizes = {"q_proj": query, "k_proj": key, "v_proj": key, "o_proj": query}
    sizes |= dict.fromkeys(names, shape.mlp_width)
    return {name: shape.width * size for name, size in sizes.items()}


def heads_width(shape: Shape) -> int:
    """Width of all query heads together."""
    return shape.width if isinstance(shape, BertShape) else shape.num_heads * shape.head_width


def matmul_parameters(shape: Shape) -> int:
    """N: parameters of all linear maps, without embeddings."""
    return shape.num_layers * sum(layer_matmuls(shape).values())


def attention_flops(
    shape: Shape, lengths: Int[np.ndarray, " U"], span: AttentionSpan, window: int | None
) -> float:
    """Forward operations of scores and mixed values, between all tokens that see each other.

    Args:
      shape: Of the encoder.
      lengths: Tokens of each text.
      span: `causal` counts half of the square.
      window: As `MistralShape.sliding_window`.
    """
    size = lengths.astype(np.float64)
    pairs = np.square(size)
    if window is not None:
        beyond = np.maximum(size - window, 0.0)
        pairs = pairs - beyond * (beyond + 1.0)
    half = 0.5 if span == "causal" else 1.0
    return float(4.0 * heads_width(shape) * shape.num_layers * half * pairs.sum())


def model_flops(
    shape: Shape, mode: Mode, lengths: Int[np.ndarray, " U"], span: AttentionSpan
) -> float:
    """A training step's model FLOPs: 4N a token with LoRA, 6N in full, 2N below a trained head."""
    window = shape.sliding_window if isinstance(shape, MistralShape) else None
    linear = _PER_PARAMETER[mode] * matmul_parameters(shape) * float(lengths.sum())
    return linear + _PER_ATTENTION[mode] * attention_flops(shape, lengths, span, window)


def hardware_flops(
    shape: Shape, mode: Mode, lengths: Int[np.ndarray, " U"], remat: Remat, *, cached: bool
) -> float:
    """A training step's hardware FLOPs, with attention that computes whole squares.

    Args:
      shape: Of the encoder.
      mode: What trains.
      lengths: Padded length of every row.
      remat: What the blocks compute again.
      cached: Chunks are encoded once more in the backward pass (GradCache).
    """
    tokens, square = float(lengths.sum()), attention_flops(shape, lengths, "bidirectional", None)
    parameters = matmul_parameters(shape)
    linear, attention = _PER_PARAMETER[mode] * parameters, _PER_ATTENTION[mode]
    if remat == "full" and mode != "frozen":
        # The last map's result is the next block's input, which is kept; behind it BERT has a norm
        # whose backward pass needs that result.
        kept = 0 if isinstance(shape, BertShape) else layer_matmuls(shape)["down_proj"]
        linear += 2.0 * (parameters - shape.num_layers * kept)
        attention += 1.0
    if remat == "dots" and mode != "frozen":
        # The scores; what the values mix to enters only the gradient of `o_proj`'s weight.
        attention += 1.0 if mode == "full" else 0.5
    if cached and mode != "frozen":
        linear, attention = linear + 2.0 * parameters, attention + 1.0
    return linear * tokens + attention * square
