"""BERT: encoder blocks with learned positions and a LayerNorm after each residual."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from star_jax.text.attention import Backend, Visibility, attention
from star_jax.text.families import BertShape
from star_jax.text.linears import Linears
from star_jax.text.pooling import TokenPool
from star_jax.text.stack import Context, Encoded, Remat, leaving, run_stack, stack_blocks


@jax.custom_jvp
def gelu(x: Float[Array, "*rows F"]) -> Float[Array, "*rows F"]:
    """The input times the normal distribution function at x, exactly."""
    return x * 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5))


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Keeps one array for the backward pass, the derivative, where autodiff keeps three."""
    ((x,), (tangent,)) = primals, tangents
    below = 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5))
    density = jnp.exp(-0.5 * jnp.square(x)) * (2.0 * jnp.pi) ** -0.5
    return x * below, (below + x * density) * tangent


_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "gelu": gelu,
        "gelu_new": partial(jax.nn.gelu, approximate=True),
        "relu": jax.nn.relu,
    }
)


class BertBlock(nn.Module):
    """Attention and an MLP, each with a residual and then a norm."""

    shape: BertShape
    backend: Backend
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "R L D"], context: Context
    ) -> tuple[Float[Array, "R L D"], Float[Array, "R S D"] | None]:
        """The next state, and its pooled form where the context asks for it."""
        x = _norm(self.shape, self.dtype, "attention_norm")(x + self._attend(x, context))
        x = _norm(self.shape, self.dtype, "mlp_norm")(x + self._transform(x))
        return leaving(x, context)

    def _attend(self, x: Float[Array, "R L D"], context: Context) -> Float[Array, "R L D"]:
        width = self.shape.width
        features = (("q_proj", width), ("k_proj", width), ("v_proj", width))
        query, key, value = (
            y.reshape(*y.shape[:2], self.shape.num_heads, -1)
            for y in Linears(features, bias=True, dtype=self.dtype, name="attention_in")(x)
        )
        mixed = attention(
            query,
            key,
            value,
            context.visible,
            span="bidirectional",
            window=None,
            backend=self.backend,
        )
        features = (("o_proj", width),)
        merged = mixed.reshape(x.shape)
        (out,) = Linears(features, bias=True, dtype=self.dtype, name="attention_out")(merged)
        return out

    def _transform(self, x: Float[Array, "R L D"]) -> Float[Array, "R L D"]:
        features = (("up_proj", self.shape.mlp_width),)
        (up,) = Linears(features, bias=True, dtype=self.dtype, name="mlp_in")(x)
        hidden = _ACTIVATIONS[self.shape.activation](up)
        features = (("down_proj", self.shape.width),)
        (out,) = Linears(features, bias=True, dtype=self.dtype, name="mlp_out")(hidden)
        return out


class BertEncoder(nn.Module):
    """Embeddings of token, position and type 0, blocks; no pooler."""

    shape: BertShape
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
        """States of all tokens; pooled ones per block where it is said how."""
        shape = self.shape
        positions = jnp.minimum(positions, shape.max_positions - 1)  # Of padding alone.
        embed = partial(nn.Embed, features=shape.width, dtype=self.dtype)
        x = (
            embed(shape.vocab_size, name="embed")(tokens)
            + embed(shape.max_positions, name="positions")(positions)
            + embed(shape.num_token_types, name="token_types")(jnp.zeros((1, 1), jnp.int32))
        )
        x = _norm(shape, self.dtype, "embed_norm")(x)
        context = Context(visible, pooling, None)
        stack = stack_blocks(BertBlock, shape.num_layers, self.remat)
        blocks = stack(shape, self.backend, self.dtype, name="layers")
        last, pooled = run_stack(blocks, x, context)
        return Encoded(last, last, pooled)


def _norm(shape: BertShape, dtype: DTypeLike, name: str) -> nn.Module:
    """Norm with mean and variance in float32; the backward pass recomputes it from its input."""
    norm = nn.remat(nn.LayerNorm, prevent_cse=False)
    return norm(shape.norm_epsilon, dtype=dtype, name=name, use_fast_variance=False)
