"""T5's encoder: pre-norm blocks, and a bias by relative position where others have positions."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from star_jax.text.attention import Backend, Visibility, attention
from star_jax.text.families import T5Shape
from star_jax.text.linears import Linears, gated_mlp
from star_jax.text.pooling import TokenPool
from star_jax.text.rms_norm import RmsNorm
from star_jax.text.stack import Context, Encoded, Remat, leaving, run_stack, stack_blocks


class T5Block(nn.Module):
    """Attention and a gated MLP, each after a norm and beside a residual."""

    shape: T5Shape
    backend: Backend
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "R L D"], context: Context
    ) -> tuple[Float[Array, "R L D"], Float[Array, "R S D"] | None]:
        """The next state, and its pooled form where the context asks for it."""
        x = x + self._attend(RmsNorm(self.shape.norm_epsilon, name="attention_norm")(x), context)
        y = RmsNorm(self.shape.norm_epsilon, name="mlp_norm")(x)
        x = x + gated_mlp(y, self.shape.mlp_width, nn.gelu, bias=False, dtype=self.dtype)
        return leaving(x, context)

    def _attend(self, x: Float[Array, "R L D"], context: Context) -> Float[Array, "R L D"]:
        shape = self.shape
        inner = shape.num_heads * shape.head_width  # Flan-T5-small: 384, beside a width of 512.
        features = (("q_proj", inner), ("k_proj", inner), ("v_proj", inner))
        query, key, value = (
            y.reshape(*y.shape[:2], shape.num_heads, shape.head_width)
            for y in Linears(features, bias=False, dtype=self.dtype, name="attention_in")(x)
        )
        mixed = attention(
            query,
            key,
            value,
            context.visible,
            span="bidirectional",
            window=None,
            backend=self.backend,
            scale=1.0,
            bias=context.bias,
        )
        features = (("o_proj", shape.width),)
        merged = mixed.reshape(*x.shape[:2], inner)
        (out,) = Linears(features, bias=False, dtype=self.dtype, name="attention_out")(merged)
        return out


class T5Encoder(nn.Module):
    """Token embedding, relative bias of all blocks, blocks, final norm; no decoder."""

    shape: T5Shape
    remat: Remat
    backend: Backend
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "R L"],
        visible: Visibility,
        positions: Int[Array, "#R L"],
        pooling: TokenPool | None,
    ) -> Encoded:
        """States of all tokens; pooled ones per block where it is said how.

        Positions are there for the other families: T5 knows distances only.
        """
        del positions
        shape = self.shape
        x = nn.Embed(shape.vocab_size, shape.width, dtype=self.dtype, name="embed")(tokens)
        # Distances within a text are those within its row, however many texts the row holds.
        place = np.arange(tokens.shape[1])
        distance = place[None, :] - place[:, None]
        buckets = relative_buckets(distance, shape.num_buckets, shape.max_distance)
        table = nn.Embed(
            shape.num_buckets, shape.num_heads, dtype=jnp.float32, name="relative_bias"
        )
        bias = jnp.moveaxis(table(jnp.asarray(buckets)), -1, 0)
        context = Context(visible, pooling, None, bias)
        stack = stack_blocks(T5Block, shape.num_layers, self.remat)
        blocks = stack(shape, self.backend, self.dtype, name="layers")
        last, pooled = run_stack(blocks, x, context)
        return Encoded(last, RmsNorm(shape.norm_epsilon, name="final_norm")(last), pooled)


def relative_buckets(
    distance: Int[np.ndarray, "*rows"], num_buckets: int, max_distance: int
) -> Int[np.ndarray, "*rows"]:
    """Which learned bias a distance gets.

    Half of the buckets are for keys before the query, half for those after it. Of each half, the
    first half are one distance each; the rest widen logarithmically.

    Args:
      distance: Position of the key minus that of the query.
      num_buckets: At least 4.
      max_distance: From here on all distances share the last bucket of their side.
    """
    side = num_buckets // 2
    exact = side // 2
    apart = np.abs(distance)
    # In float32, as T5 was trained: a distance on a border falls on the same side of it.
    ratio = np.log(np.maximum(apart, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(np.log(max_distance / exact)) * np.float32(side - exact)
    wide = np.minimum(exact + ratio.astype(np.int32), side - 1)
    return (distance > 0) * side + np.where(apart < exact, apart, wide)
