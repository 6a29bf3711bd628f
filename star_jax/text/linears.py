"""Linear maps that share an input, and the gated MLP made of them."""

from collections.abc import Callable

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class Linears(nn.Module):
    """Several linear maps of one input: name -> `name/kernel` and, with bias, `name/bias`.

    They form one module so that what wraps it (LoRA) sees that they share their input.

    Attributes:
      features: Name and output width of each map.
      bias: Whether they add a bias.
      dtype: Dtype of the computation.
    """

    features: tuple[tuple[str, int], ...]
    bias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "U L D"]) -> tuple[Float[Array, "U L _"], ...]:
        """One result per map, in the order of `features`."""
        return tuple(
            nn.Dense(width, use_bias=self.bias, dtype=self.dtype, name=name)(x)
            for name, width in self.features
        )


def gated_mlp(
    x: Float[Array, "R L D"],
    mlp_width: int,
    activation: Callable[[Array], Array],
    *,
    bias: bool,
    dtype: DTypeLike,
) -> Float[Array, "R L D"]:
    """down(activation(gate(x)) * up(x)); to be called within a module, which gets the maps."""
    features = (("gate_proj", mlp_width), ("up_proj", mlp_width))
    gate, up = Linears(features, bias=bias, dtype=dtype, name="mlp_in")(x)
    features = (("down_proj", x.shape[-1]),)
    (out,) = Linears(features, bias=bias, dtype=dtype, name="mlp_out")(activation(gate) * up)
    return out
