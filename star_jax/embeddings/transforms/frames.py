"""The coordinates that a descent works in, and how its maps come back out of them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64

from star_jax.embeddings.transforms.maps import Linear, linear
from star_jax.embeddings.transforms.normal_equations import Moments, Second, whitened


class Frame(NamedTuple):
    """Rows about their means, scaled or whitened to dimensions of mean square 1.

    Attributes:
      second: Moments within the frame.
      enter: From x into it.
      leave: From the frame of y back to y.
      reach: From y into its frame.
      x_mean: Taken off x.
      y_mean: Taken off y.
      bias: Whether the means are taken off; else they are 0.
    """

    second: Second
    enter: Float64[np.ndarray, "I I"]
    leave: Float64[np.ndarray, "O O"]
    reach: Float64[np.ndarray, "O O"]
    x_mean: Float64[np.ndarray, " I"]
    y_mean: Float64[np.ndarray, " O"]
    bias: bool

    def inside(
        self, x: Float[np.ndarray, "N I"], y: Float[np.ndarray, "N O"]
    ) -> tuple[Float32[np.ndarray, "N I"], Float32[np.ndarray, "N O"]]:
        """Pairs as the frame has them."""
        moved = (x - self.x_mean[None, :]) @ self.enter, (y - self.y_mean[None, :]) @ self.reach
        return moved[0].astype(np.float32), moved[1].astype(np.float32)

    def linear(self, matrix: Float[np.ndarray, "I O"]) -> Linear:
        """A matrix of the frame as a map outside of it."""
        whole = self.enter @ matrix @ self.leave
        return linear(whole, self.y_mean - self.x_mean @ whole if self.bias else None)


def frame(moments: Moments, *, bias: bool, whiten: bool) -> Frame:
    """The frame of pairs.

    Args:
      moments: Of the pairs.
      bias: About their means.
      whiten: By their own moments; else both sides are scaled, each by one number.
    """
    second = moments.second(centred=bias)
    means = second.x_mean, second.y_mean
    if whiten:
        white, x, y = whitened(second)
        return Frame(white, x.white, y.colour, y.white, *means, bias)
    x_scale, y_scale = np.sqrt(second.x_scale), np.sqrt(np.trace(second.yy) / len(second.yy))
    x_scale, y_scale = x_scale or 1.0, y_scale or 1.0  # Of vectors that are all alike.
    scaled = second._replace(
        xx=second.xx / x_scale**2, xy=second.xy / (x_scale * y_scale), yy=second.yy / y_scale**2
    )
    inner, outer = np.eye(len(second.xx)), np.eye(len(second.yy))
    return Frame(scaled, inner / x_scale, outer * y_scale, outer / y_scale, *means, bias)
