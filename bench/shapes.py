"""Published shapes that several benchmarks and tests share."""

from star_jax.text.families import MistralShape

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
