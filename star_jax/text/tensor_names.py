"""What Hugging Face calls the tensors of each family, and where they go in our trees."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from star_jax.text.families import BertShape, Shape

# Our linear maps within a block; a torch weight is (out, in), ours (in, out).
_MISTRAL_BLOCK = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention_in/q_proj",
    "self_attn.k_proj": "attention_in/k_proj",
    "self_attn.v_proj": "attention_in/v_proj",
    "self_attn.o_proj": "attention_out/o_proj",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "mlp_in/gate_proj",
    "mlp.up_proj": "mlp_in/up_proj",
    "mlp.down_proj": "mlp_out/down_proj",
}
_BERT_BLOCK = {
    "attention.self.query": "attention_in/q_proj",
    "attention.self.key": "attention_in/k_proj",
    "attention.self.value": "attention_in/v_proj",
    "attention.output.dense": "attention_out/o_proj",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "mlp_in/up_proj",
    "output.dense": "mlp_out/down_proj",
    "output.LayerNorm": "mlp_norm",
}
_MISTRAL_REST = {"embed_tokens": "embed", "norm": "final_norm"}
_BERT_REST = {
    "embeddings.word_embeddings": "embed",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "embed_norm",
}
# Heads that no embedding needs, and buffers that are computed here.
UNUSED = re.compile(
    r"lm_head\..*|pooler\..*|cls\..*|embeddings\.position_ids|.*rotary_emb\.inv_freq"
)


class Target(NamedTuple):
    """Where a tensor goes."""

    path: str
    layer: int | None
    """Row of a stacked leaf; None is the whole leaf."""


def targets(shape: Shape, leaves: dict[str, Any]) -> Iterator[tuple[str, Target]]:
    """Every tensor that must be there, by its name without prefix."""
    bert = isinstance(shape, BertShape)
    block, rest = (_BERT_BLOCK, _BERT_REST) if bert else (_MISTRAL_BLOCK, _MISTRAL_REST)
    prefix = "encoder.layer" if bert else "layers"
    suffixes = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
    for path in leaves:
        module, _, leaf = path.rpartition("/")
        for theirs, ours in rest.items():
            if module == ours:
                yield f"{theirs}.{suffixes[leaf]}", Target(path, None)
        for theirs, ours in block.items():
            if module == f"layers/{ours}":
                for i in range(shape.num_layers):
                    yield f"{prefix}.{i}.{theirs}.{suffixes[leaf]}", Target(path, i)
