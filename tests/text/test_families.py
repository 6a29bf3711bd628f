"""What is read from a config.json, against published sizes and the rules of transformers."""

import json
from typing import Any

import jax
import pytest

import bench.shapes
from star_jax import trees
from star_jax.config import InputError
from star_jax.text.families import (
    LinearRope,
    Llama3Rope,
    MistralShape,
    T5Shape,
    TokenLimits,
    defaults,
    read_shape,
)
from star_jax.text.lora import LoraConfig, init_lora
from star_jax.text.tower import TextTower, TowerConfig, build_tower, param_shapes, read_base
from tests.text.fixtures import FOLDER

MISTRAL_7B = {
    "model_type": "mistral",
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
}
LLAMA_1B = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "max_position_embeddings": 131_072,
    "eos_token_id": [128_001, 128_008],
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "max_position_embeddings": 32_768,
    "max_window_layers": 24,
    "sliding_window": 32_768,
    "use_sliding_window": False,
    "rope_theta": 1_000_000.0,
    "eos_token_id": 151_643,
}
QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "max_position_embeddings": 40_960,
    "rope_theta": 1_000_000.0,
    "eos_token_id": 151_645,
}
MINILM = {
    "model_type": "bert",
    "vocab_size": 30_522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
POOLER = 384 * 384 + 384  # Not built: no embedding needs it.
E5_SMALL = MINILM | {"vocab_size": 250_037, "num_hidden_layers": 12}  # The multilingual one.
T5_SMALL = {
    "model_type": "t5",
    "vocab_size": 32_128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}
T5_BASE = T5_SMALL | {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}


def t5_decoder(width, inner, mlp_width, num_layers, num_heads):
    """What a published T5 has beside its encoder: two attentions a block, and its own head."""
    block = 2 * 4 * width * inner + 3 * width * mlp_width + 3 * width
    return num_layers * block + 32 * num_heads + width + 32_128 * width


def read(folder, values, **changes) -> Any:
    (folder / "config.json").write_text(json.dumps(values | changes))
    return read_shape(folder)


def shapes(shape):
    return param_shapes(TextTower(shape, defaults(shape).pooling, "bfloat16", "full", "xla"))


@pytest.mark.parametrize(
    ("values", "published"),
    [
        (MISTRAL_7B, 7_110_660_096),
        (LLAMA_1B, 1_235_814_400),  # Llama-3.2-1B: its head is its embedding.
        (QWEN2, 494_032_768),  # Qwen2.5-0.5B, so too.
        (QWEN3, 596_049_920),  # Qwen3-0.6B, so too.
        (MINILM, 22_713_216 - POOLER),
        (E5_SMALL, 117_653_760 - POOLER),
        (T5_SMALL, 76_961_152 - t5_decoder(512, 384, 1024, 8, 6)),
        (T5_BASE, 247_577_856 - t5_decoder(768, 768, 2048, 12, 12)),
    ],
    ids=["mistral-7b", "llama-1b", "qwen2", "qwen3", "minilm", "e5-small", "t5-small", "t5-base"],
)
def test_parameters_are_as_many_as_published(tmp_path, values, published):
    assert trees.count(shapes(read(tmp_path, values))) == published


@pytest.mark.parametrize(
    ("values", "targets", "count"),
    [
        (MISTRAL_7B, r".*/(q_proj|v_proj)", 3_407_872),
        (MISTRAL_7B, LoraConfig().targets, 4_718_592),
        (MISTRAL_7B, r".*/\w+_proj", 20_971_520),
        # Rank 8 of 512 to 384 and back, three and one times, and of 512 to 1024, in 8 blocks.
        (T5_SMALL, LoraConfig().targets, 8 * 8 * 3 * (512 + 384)),
        (T5_SMALL, r".*/\w+_proj", 8 * 8 * (4 * (512 + 384) + 3 * (512 + 1024))),
        (MINILM, r".*/\w+_proj", 6 * 8 * (4 * (384 + 384) + 2 * (384 + 1536))),
    ],
)
def test_adapters_have_their_sizes(tmp_path, values, targets, count):
    base, config = shapes(read(tmp_path, values)), LoraConfig(rank=8, targets=targets)
    lora = jax.eval_shape(lambda: init_lora(jax.random.key(0), base, config))
    assert trees.count(lora) == count


def test_llama(tmp_path):
    shape = read(tmp_path, LLAMA_1B, attention_bias=True)
    assert shape.rope_scaling == Llama3Rope(
        factor=32.0, low_turns=1.0, high_turns=4.0, original_positions=8192
    )
    assert (shape.rope_theta, shape.eos_id) == (500_000.0, 128_001)
    assert (shape.qkv_bias, shape.out_bias, shape.mlp_bias) == (True, True, False)
    # The spelling of transformers 5, and of before 4.43.
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 7.0}
    for key, values in (("rope_parameters", linear), ("rope_scaling", {"type": "linear"} | linear)):
        stretched = read(tmp_path, LLAMA_1B, **{"rope_scaling": None, key: values})
        assert (stretched.rope_scaling, stretched.rope_theta) == (LinearRope(factor=4.0), 7.0)


def test_absent_keys_are_those_of_the_family(tmp_path):
    """transformers' own defaults, which its files leave out at times."""
    short = {"head_dim", "num_key_value_heads", "sliding_window", "eos_token_id"}
    shape = read(tmp_path, {k: v for k, v in MISTRAL_7B.items() if k not in short})
    assert (shape.num_kv_heads, shape.sliding_window, shape.eos_id) == (8, 4096, 2)
    llama = {k: v for k, v in LLAMA_1B.items() if k not in short}
    assert read(tmp_path, llama).num_kv_heads == 32
    assert read(tmp_path, llama).head_width == 64
    qwen = {k: v for k, v in QWEN3.items() if k != "head_dim"} | {"num_attention_heads": 4}
    assert read(tmp_path, qwen).head_width == 128


@pytest.mark.parametrize(
    ("values", "changes", "window"),
    [
        (MISTRAL_7B, {}, 4096),
        (MISTRAL_7B, {"sliding_window": None}, None),  # Mistral from 0.2 on.
        (LLAMA_1B, {"sliding_window": 5}, None),  # No Llama has one.
        (QWEN2, {}, None),
        (QWEN2, {"use_sliding_window": True, "max_window_layers": 0}, 32_768),
        (QWEN2, {"use_sliding_window": True, "max_window_layers": 24}, None),
        (QWEN3, {"sliding_window": 7}, None),
        (QWEN3, {"sliding_window": 7, "use_sliding_window": True}, None),  # 28 of 28 see all.
        (
            QWEN3,
            {
                "sliding_window": 7,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention"] * 28,
            },
            7,
        ),
    ],
)
def test_windows(tmp_path, values, changes, window):
    assert read(tmp_path, values, **changes).sliding_window == window


def test_t5_small_is_not_as_wide_as_its_heads(tmp_path):
    shape = read(tmp_path, T5_SMALL)
    assert isinstance(shape, T5Shape)
    assert (shape.width, shape.num_heads * shape.head_width) == (512, 384)
    assert (shape.num_buckets, shape.max_distance, shape.eos_id) == (32, 128, 1)


def test_t5_brings_its_defaults():
    base = read_base(TowerConfig(base=str(FOLDER / "tiny_t5")))
    assert (base.pooling.token, base.pooling.layers) == ("mean", "last")
    assert base.pooling.attention == "bidirectional"
    assert base.limits == TokenLimits(job=512, profile=512, resume=512, other=512)
    assert base.prompts == "none"
    build_tower(TowerConfig(base=str(FOLDER / "tiny_t5"), limits=TokenLimits(job=100_000)))


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        (
            QWEN2,
            {"use_sliding_window": True, "max_window_layers": 20},
            "20 of 24 layers see all tokens and the others a sliding_window of 32768, needed the",
        ),
        (
            QWEN3,
            {
                "sliding_window": 9,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention"] + ["full_attention"] * 27,
            },
            "27 of 28 layers see all tokens",
        ),
        (QWEN3, {"eos_token_id": None}, "eos_token_id is None, needed the id that ends a text"),
        (QWEN2, {"attention_bias": True}, "attention_bias is True, needed False"),
        (QWEN3, {"mlp_bias": True}, "mlp_bias is True, needed False"),
        (
            LLAMA_1B,
            {"rope_scaling": {"rope_type": "yarn"}},
            "rope_type is 'yarn', needed default, linear or llama3",
        ),
        (
            LLAMA_1B,
            {"rope_scaling": {"rope_type": "linear"}},
            "factor is None, needed a positive number",
        ),
        (LLAMA_1B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, needed 1.0"),
        (T5_SMALL, {"d_kv": None}, "d_kv is None, needed a positive whole number"),
        (
            T5_SMALL,
            {"relative_attention_max_distance": 8},
            "relative_attention_max_distance is 8, needed more than a quarter of",
        ),
    ],
)
def test_variants_that_are_not_computed(tmp_path, values, changes, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, values, **changes)


def test_the_preset_of_the_mistral_family_is_the_published_one(tmp_path):
    shape = read(tmp_path, MISTRAL_7B)
    assert isinstance(shape, MistralShape)
    assert not any((shape.qkv_bias, shape.out_bias, shape.mlp_bias, shape.head_norm))
    assert shape.rope_scaling is None
    assert shape == bench.shapes.MISTRAL_7B
