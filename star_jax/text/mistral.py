"""Mistral and its kin: grouped-query attention, rotary positions, RMSNorm.

Llama, Qwen2 and Qwen3 are the same decoder with biases, norms of heads or stretched rotations that
their shape declares.
"""

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from star_jax.text.attention import Backend, Visibility, attention
from star_jax.text.families import MistralShape
from star_jax.text.linears import Linears, gated_mlp
from star_jax.text.pooling import AttentionSpan, TokenPool
from star_jax.text.rms_norm import RmsNorm
from star_jax.text.rotary import frequencies, rotary, rotate
from star_jax.text.stack import Context, Encoded, Remat, leaving, run_stack, stack_blocks


class MistralBlock(nn.Module):
    """Attention and a gated MLP, each after a norm and beside a residual."""

    shape: MistralShape
    span: AttentionSpan
    backend: Backend
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "R L D"], context: Context
    ) -> tuple[Float[Array, "R L D"], Float[Array, "R S D"] | None]:
        """The next state, and its pooled form where the context asks for it."""
        x = x + self._attend(RmsNorm(self.shape.norm_epsilon, name="attention_norm")(x), context)
        y = RmsNorm(self.shape.norm_epsilon, name="mlp_norm")(x)
        x = x + gated_mlp(
            y, self.shape.mlp_width, nn.silu, bias=self.shape.mlp_bias, dtype=self.dtype
        )
        return leaving(x, context)

    def _attend(self, x: Float[Array, "R L D"], context: Context) -> Float[Array, "R L D"]:
        shape = self.shape
        query_size = shape.num_heads * shape.head_width
        kv_size = shape.num_kv_heads * shape.head_width
        features = (("q_proj", query_size), ("k_proj", kv_size), ("v_proj", kv_size))
        query, key, value = (
            y.reshape(*y.shape[:2], -1, shape.head_width)
            for y in Linears(features, bias=shape.qkv_bias, dtype=self.dtype, name="attention_in")(
                x
            )
        )
        if shape.head_norm:
            query = RmsNorm(shape.norm_epsilon, name="query_norm")(query)
            key = RmsNorm(shape.norm_epsilon, name="key_norm")(key)
        assert context.rotary is not None
        mixed = attention(
            rotate(query, *context.rotary),
            rotate(key, *context.rotary),
            value,
            context.visible,
            span=self.span,
            window=shape.sliding_window,
            backend=self.backend,
        )
        features = (("o_proj", shape.width),)
        merged = mixed.reshape(*x.shape[:2], query_size)
        linears = Linears(features, bias=shape.out_bias, dtype=self.dtype, name="attention_out")
        (out,) = linears(merged)
        return out


class MistralEncoder(nn.Module):
    """Token embedding, blocks, final norm; no language-model head."""

    shape: MistralShape
    span: AttentionSpan
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
        embed = nn.Embed(shape.vocab_size, shape.width, dtype=self.dtype, name="embed")
        x = embed(tokens)
        frequency = frequencies(shape.head_width, shape.rope_theta, shape.rope_scaling)
        context = Context(visible, pooling, rotary(positions, frequency))
        stack = stack_blocks(MistralBlock, shape.num_layers, self.remat)
        blocks = stack(shape, self.span, self.backend, self.dtype, name="layers")
        last, pooled = run_stack(blocks, x, context)
        return Encoded(last, RmsNorm(shape.norm_epsilon, name="final_norm")(last), pooled)
