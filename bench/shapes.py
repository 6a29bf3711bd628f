"""Published shapes that several benchmarks and tests share."""

import dataclasses

from star_jax.text.families import BertShape, MistralShape, T5Shape

MISTRAL_7B = MistralShape(
    vocab_size=32_000,
    width=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_width=128,
    mlp_width=14_336,
    max_positions=32_768,
    norm_epsilon=1e-5,
    rope_theta=10_000.0,
    sliding_window=4096,
    eos_id=2,
)
"""Of e5-mistral-7b-instruct: 7,110,660,096 parameters."""

MINILM = BertShape(
    vocab_size=30_522,
    width=384,
    num_layers=6,
    num_heads=12,
    mlp_width=1536,
    max_positions=512,
    num_token_types=2,
    norm_epsilon=1e-12,
    activation="gelu",
)
"""Of all-MiniLM-L6-v2."""

E5_SMALL = dataclasses.replace(MINILM, vocab_size=250_037, num_layers=12)
"""Of multilingual-e5-small."""

FLAN_T5_SMALL = T5Shape(
    vocab_size=32_128,
    width=512,
    num_layers=8,
    num_heads=6,
    head_width=64,
    mlp_width=1024,
    num_buckets=32,
    max_distance=128,
    norm_epsilon=1e-6,
    eos_id=1,
)
FLAN_T5_BASE = dataclasses.replace(
    FLAN_T5_SMALL, width=768, num_layers=12, num_heads=12, mlp_width=2048
)


def hf_config(shape: MistralShape) -> dict[str, object]:
    """The config.json of a Mistral of some shape."""
    return {
        "model_type": "mistral",
        "hidden_act": "silu",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_width,
        "intermediate_size": shape.mlp_width,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "sliding_window": shape.sliding_window,
        "eos_token_id": shape.eos_id,
    }
