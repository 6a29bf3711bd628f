"""What Hugging Face calls the tensors of each family, and where they go in our trees."""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from star_jax.text.families import BertShape, MistralShape, Shape, T5Shape


class _Names(NamedTuple):
    """Modules of a family: theirs -> ours. A torch weight is (out, in), a kernel (in, out)."""

    blocks: str
    """What stands before the number of a block."""
    block: Mapping[str, str]
    """Within a block."""
    rest: Mapping[str, str]


_NAMES: Mapping[type[Shape], _Names] = MappingProxyType(
    {
        MistralShape: _Names(
            "layers",
            {
                "input_layernorm": "attention_norm",
                "self_attn.q_proj": "attention_in/q_proj",
                "self_attn.k_proj": "attention_in/k_proj",
                "self_attn.v_proj": "attention_in/v_proj",
                "self_attn.q_norm": "query_norm",
                "self_attn.k_norm": "key_norm",
                "self_attn.o_proj": "attention_out/o_proj",
                "post_attention_layernorm": "mlp_norm",
                "mlp.gate_proj": "mlp_in/gate_proj",
                "mlp.up_proj": "mlp_in/up_proj",
                "mlp.down_proj": "mlp_out/down_proj",
            },
            {"embed_tokens": "embed", "norm": "final_norm"},
        ),
        BertShape: _Names(
            "encoder.layer",
            {
                "attention.self.query": "attention_in/q_proj",
                "attention.self.key": "attention_in/k_proj",
                "attention.self.value": "attention_in/v_proj",
                "attention.output.dense": "attention_out/o_proj",
                "attention.output.LayerNorm": "attention_norm",
                "intermediate.dense": "mlp_in/up_proj",
                "output.dense": "mlp_out/down_proj",
                "output.LayerNorm": "mlp_norm",
            },
            {
                "embeddings.word_embeddings": "embed",
                "embeddings.position_embeddings": "positions",
                "embeddings.token_type_embeddings": "token_types",
                "embeddings.LayerNorm": "embed_norm",
            },
        ),
        T5Shape: _Names(
            "encoder.block",
            {
                "layer.0.layer_norm": "attention_norm",
                "layer.0.SelfAttention.q": "attention_in/q_proj",
                "layer.0.SelfAttention.k": "attention_in/k_proj",
                "layer.0.SelfAttention.v": "attention_in/v_proj",
                "layer.0.SelfAttention.o": "attention_out/o_proj",
                "layer.1.layer_norm": "mlp_norm",
                "layer.1.DenseReluDense.wi_0": "mlp_in/gate_proj",
                "layer.1.DenseReluDense.wi_1": "mlp_in/up_proj",
                "layer.1.DenseReluDense.wo": "mlp_out/down_proj",
            },
            {
                "shared": "embed",
                # Kept in the first block, used by all.
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias": "relative_bias",
                "encoder.final_layer_norm": "final_norm",
            },
        ),
    }
)
# Heads and decoders that no embedding needs, second copies, and buffers that are computed here.
UNUSED = re.compile(
    r"lm_head\..*|pooler\..*|cls\..*|embeddings\.position_ids|.*rotary_emb\.inv_freq"
    r"|decoder\..*|encoder\.embed_tokens\.weight"
)
# Where a file has one, it must be what the tensor itself is.
COPIES = {
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
}


class Target(NamedTuple):
    """Where a tensor goes."""

    path: str
    layer: int | None
    """Row of a stacked leaf; None is the whole leaf."""


def bare(stored: str) -> str:
    """The name without prefix of a tensor as a file calls it, in today's spelling."""
    name = stored.removeprefix("model.").removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def targets(shape: Shape, leaves: dict[str, Any]) -> Iterator[tuple[str, Target]]:
    """Every tensor that must be there, by its name without prefix."""
    names = _NAMES[type(shape)]
    suffixes = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
    for path in leaves:
        module, _, leaf = path.rpartition("/")
        for theirs, ours in names.rest.items():
            if module == ours:
                yield f"{theirs}.{suffixes[leaf]}", Target(path, None)
        for theirs, ours in names.block.items():
            if module == f"layers/{ours}":
                for i in range(shape.num_layers):
                    yield f"{names.blocks}.{i}.{theirs}.{suffixes[leaf]}", Target(path, i)
