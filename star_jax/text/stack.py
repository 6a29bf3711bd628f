"""What every encoder is built from: a stack of equal blocks, scanned, and what it returns."""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from star_jax.parallel.activations import split_rows
from star_jax.text.attention import Visibility
from star_jax.text.pooling import TokenPool, pool_tokens

Remat = Literal["none", "full", "dots"]


class Context(NamedTuple):
    """What every block of a stack gets beside the states."""

    visible: Visibility
    pooling: TokenPool | None
    """How each block's states are pooled into its output; None: no such output."""
    rotary: tuple[Float[Array, "#R L K"], Float[Array, "#R L K"]] | None
    """Cosines and sines of the positions, where the family rotates."""
    bias: Float[Array, "H L L"] | None = None
    """Added to every block's attention logits, where the family has one."""


class Encoded(NamedTuple):
    """States of an encoder."""

    last: Float[Array, "R L D"]
    """After the last block."""
    normed: Float[Array, "R L D"]
    """After the final norm; the same as `last` where the family has none."""
    pooled: Float[Array, "layers R S D"] | None
    """Pooled state of the embedding layer and of every block, in that order."""


def stack_blocks(block: type[nn.Module], num_layers: int, remat: Remat) -> Any:
    """A module class that applies `num_layers` blocks one after the other.

    A block maps (state, context) to (state, output); the stack returns all outputs, stacked.
    Parameters, adapters and dropout keys get a leading axis over the blocks.
    """
    return nn.scan(
        rematerialised(block, remat),
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType] # flax declares less
        length=num_layers,
    )


def run_stack(
    stack: Any, x: Float[Array, "R L D"], context: Context
) -> tuple[Float[Array, "R L D"], Float[Array, "layers R S D"] | None]:
    """The state after the last block, and the pooled ones of the embedding layer and all blocks.

    Args:
      stack: An instance of what `stack_blocks` returns.
      x: The embedding layer's state.
      context: With `pooling` where pooled states are asked for.
    """
    x = split_rows(x)
    last, outputs = stack(x, context)
    if context.pooling is None:
        return last, None
    return last, jnp.concatenate([pool_tokens(x, context.pooling)[None], outputs])


def leaving(x: Array, context: Context) -> tuple[Array, Array | None]:
    """What a block returns: its state, whole but for its rows, and that pooled where asked for."""
    pooled = None if context.pooling is None else pool_tokens(x, context.pooling)
    return split_rows(x), pooled


def rematerialised(block: type[nn.Module], remat: Remat) -> type[nn.Module]:
    """The block, recomputing in the backward pass what the policy does not keep.

    Args:
      block: Any module class.
      remat: `none` keeps everything, `full` only the block's input, `dots` the results of
        matmuls with a weight.
    """
    if remat == "none":
        return block
    policies = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    # prevent_cse=False is right inside a scan only; outside it would cancel the recomputation.
    return nn.remat(block, prevent_cse=False, policy=policies[remat])
