"""Rotary positions: pairs of a head's components turn by an angle that grows with the position."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from star_jax.text.families import LinearRope, Llama3Rope, RopeScaling


def frequencies(
    head_width: int, theta: float, scaling: RopeScaling | None
) -> Float[np.ndarray, " _"]:
    """Radians by which each pair of a head's components turns from one position to the next.

    Args:
      head_width: Twice the number of pairs.
      theta: Pair i turns by theta^(-2i / head_width).
      scaling: How a base was stretched to longer texts; None is not at all.
    """
    plain = theta ** -(np.arange(0, head_width, 2) / head_width)
    match scaling:
        case None:
            scaled = plain
        case LinearRope():
            scaled = plain / scaling.factor
        case Llama3Rope():
            # Turns that the original training saw whole often enough stay, rare ones slow down.
            turns = scaling.original_positions * plain / (2.0 * np.pi)
            kept = (turns - scaling.low_turns) / (scaling.high_turns - scaling.low_turns)
            kept = np.clip(kept, 0.0, 1.0)
            scaled = plain * (kept + (1.0 - kept) / scaling.factor)
    return scaled.astype(np.float32)


def rotary(
    positions: Int[Array, "#R L"], frequency: Float[np.ndarray, " _"]
) -> tuple[Float[Array, "#R L K"], Float[Array, "#R L K"]]:
    """Cosines and sines of positions; the halves of a head rotate together."""
    angle = positions.astype(jnp.float32)[:, :, None] * frequency[None, None, :]
    angle = jnp.concatenate([angle, angle], axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "R L heads K"], cos: Float[Array, "#R L K"], sin: Float[Array, "#R L K"]
) -> Float[Array, "R L heads K"]:
    """The heads, turned."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    cos, sin = (table[:, :, None, :].astype(x.dtype) for table in (cos, sin))
    return x * cos + turned * sin
