"""Formulas of operations against the compiler's count, which sees the same programs."""

import dataclasses

import numpy as np
import pytest

from bench.shapes import MINILM, MISTRAL_7B
from bench.text_flops import compile_step
from bench.text_gpu_rows import STAR, Size, shares
from star_jax.text.bi_encoder import Mode
from star_jax.text.families import MistralShape, T5Shape
from star_jax.text.flops import (
    attention_flops,
    hardware_flops,
    layer_matmuls,
    matmul_parameters,
    model_flops,
)

SEVEN_B = dataclasses.replace(MISTRAL_7B, sliding_window=None)
# Wide for their two blocks, so that norms and activations weigh little; the loop over blocks is
# counted once, hence what is compiled is compared with one block.
MISTRAL = MistralShape(
    vocab_size=64,
    width=512,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_width=128,
    mlp_width=1024,
    max_positions=64,
    norm_epsilon=1e-5,
    rope_theta=10_000.0,
    sliding_window=None,
    eos_id=2,
)
BERT = dataclasses.replace(
    MINILM, vocab_size=64, width=512, num_layers=2, num_heads=4, mlp_width=2048, max_positions=64
)
T5 = T5Shape(
    vocab_size=64,
    width=512,
    num_layers=2,
    num_heads=3,
    head_width=128,
    mlp_width=1024,
    num_buckets=8,
    max_distance=16,
    norm_epsilon=1e-6,
    eos_id=1,
)
ROWS, LENGTH = 4, 32
TOKENS = ROWS * LENGTH


@pytest.fixture(scope="module")
def compiled():
    """Steps by (shape, what trains, remat), each compiled once."""
    known = {}

    def get(shape, kind, remat, chunks=1):
        key = (shape, kind, remat, chunks)
        if key not in known:
            known[key] = compile_step(
                shape, kind, remat, rows=ROWS, length=LENGTH, rank=2, chunks=chunks
            )
        return known[key]

    return get


def test_parameters_as_published():
    assert matmul_parameters(SEVEN_B) == 6_979_321_856
    assert sum(layer_matmuls(SEVEN_B).values()) == 218_103_808
    assert matmul_parameters(MINILM) == 6 * (4 * 384**2 + 2 * 384 * 1536)


@pytest.mark.parametrize(("length", "share"), [(512, 0.009), (1800, 0.033), (3600, 0.063)])
def test_attention_of_the_7b_model(length, share):
    """Causal: 2 s 4096 a token and block, so much of the forward pass."""
    attention = attention_flops(SEVEN_B, np.array([length]), "causal", None)
    assert attention == length * 2 * length * 4096 * 32
    forward = attention + 2 * matmul_parameters(SEVEN_B) * length
    assert attention / forward == pytest.approx(share, abs=6e-4)


@pytest.mark.parametrize("window", [None, 3, 5, 100])
def test_attention_counts_the_pairs_within_the_window(window):
    lengths = np.array([0, 1, 4, 9])
    pairs = sum(
        window is None or abs(i - j) < window
        for length in lengths
        for i in range(length)
        for j in range(length)
    )
    one = dataclasses.replace(SEVEN_B, num_layers=1)
    both = attention_flops(one, lengths, "bidirectional", window)
    assert both == 4 * 4096 * pairs
    assert attention_flops(one, lengths, "causal", window) == both / 2


def test_model_flops_are_those_of_the_convention():
    """MFU = (4N + 3 attention) tokens a second / peak for LoRA, and so on."""
    lengths = np.array([1800, 1000])
    attention = attention_flops(SEVEN_B, lengths, "causal", None)
    n = 6_979_321_856 * 2800
    expected: dict[Mode, float] = {
        "lora": 4 * n + 3 * attention,
        "full": 6 * n + 3 * attention,
        "frozen": 2 * n + attention,
    }
    for mode, flops in expected.items():
        assert model_flops(SEVEN_B, mode, lengths, "causal") == pytest.approx(flops)
    windowed = dataclasses.replace(SEVEN_B, sliding_window=256)
    assert model_flops(windowed, "lora", lengths, "causal") < 4 * n + 1.5 * attention


@pytest.mark.parametrize(
    ("shape", "mode", "remat", "chunks"),
    [
        (MISTRAL, "lora", "none", 1),
        (MISTRAL, "lora", "dots", 1),
        (MISTRAL, "lora", "full", 1),
        (MISTRAL, "lora", "none", 3),
        (MISTRAL, "full", "none", 1),
        (BERT, "lora", "full", 1),
        (T5, "lora", "full", 1),
    ],
)
def test_hardware_flops_are_what_is_compiled(compiled, shape, mode, remat, chunks):
    found = compiled(shape, mode, remat, chunks).flops
    lengths = np.full(ROWS, LENGTH)
    flops = hardware_flops(shape, mode, lengths, remat, cached=chunks > 1)
    expected = flops / shape.num_layers
    assert found == pytest.approx(expected, rel=0.05)


def test_no_gradient_of_a_frozen_weight_is_formed(compiled):
    """A third more than forward and input gradients would be one: merged LoRA forms it."""
    parameters = sum(layer_matmuls(MISTRAL).values())
    assert compiled(MISTRAL, "lora", "none").flops < 4.3 * parameters * TOKENS
    assert compiled(MISTRAL, "merged", "none").flops > 5.8 * parameters * TOKENS


def test_remat_lowers_the_memory(compiled):
    none, dots, full = (
        compiled(MISTRAL, "lora", remat).temp_bytes for remat in ("none", "dots", "full")
    )
    assert full < dots < none


def test_the_gpu_benchmark_counts_what_is_computed_again():
    size = Size(SEVEN_B, 1, 1e15)
    plain, full, cached = (shares(STAR[key], 1.0, size) for key in ("rows", "rows-full", "cache"))
    assert plain[0] == plain[1] == full[0]
    n, down = matmul_parameters(SEVEN_B), 32 * layer_matmuls(SEVEN_B)["down_proj"]
    assert full[1] / full[0] == pytest.approx(1 + (2 * n - 2 * down) / (4 * n), abs=0.01)
    assert cached[1] / cached[0] == pytest.approx(1.5, abs=0.01)
    export = shares(STAR["export"], 1.0, size)[0]
    assert export == pytest.approx(2 * n * 8 * 1800 / 1e15, rel=0.05)
