"""What is particular to a family, beside its states: rotations, relative bias, adapters, E5."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.text.attention import Visibility, attention
from star_jax.text.families import LinearRope, Llama3Rope, TokenLimits
from star_jax.text.lora import LoraConfig, adapted, init_lora, merge_lora
from star_jax.text.pooling import PoolingConfig
from star_jax.text.rotary import frequencies, rotary, rotate
from star_jax.text.t5 import relative_buckets
from star_jax.text.tower import TowerConfig, build_tokenizer, build_tower, load_params
from tests.text.fixtures import FOLDER, arrays, pad, rows_of

LIMITS = TokenLimits(job=40, profile=40, resume=40, other=40)


def load(name, **changes):
    config = TowerConfig(base=str(FOLDER / name), limits=LIMITS, **changes)
    tower = build_tower(config)
    return tower, load_params(config, tower)


def apply(tower, variables, tokens, mask) -> Any:
    return tower.apply(variables, rows_of(tokens, mask))


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 9)])
def test_buckets_are_those_of_transformers(num_buckets, max_distance):
    got = relative_buckets(np.arange(-300, 301), num_buckets, max_distance)
    np.testing.assert_array_equal(got, arrays("tiny_t5")[f"buckets_{num_buckets}_{max_distance}"])
    # The definition: half of them after the query; near ones alone; the far ones together.
    assert got[301] == num_buckets // 2 + 1
    assert got[300] == 0
    assert set(got[300 + max_distance :]) == {num_buckets - 1}


def test_one_bias_serves_texts_that_share_a_row():
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(size=(3, 1, 9, 2, 4)), jnp.float32)
    place = np.arange(9)
    buckets = relative_buckets(place[None] - place[:, None], 8, 9)
    bias = jnp.asarray(np.moveaxis(rng.normal(size=(8, 2))[buckets], -1, 0), jnp.float32)
    mask, segments = jnp.ones((1, 9), bool), jnp.array([[0] * 4 + [1] * 5])

    @jax.jit
    def mixed(rows, visible, bias):
        query, key, value = rows
        kinds: dict[str, Any] = {"span": "bidirectional", "window": None, "backend": "xla"}
        return attention(query, key, value, visible, **kinds, scale=1.0, bias=bias)

    got = mixed(rows, Visibility(mask, segments), bias)
    expected = mixed(rows[:, :, 4:], Visibility(mask[:, 4:], None), bias[:, :5, :5])
    np.testing.assert_allclose(got[:, 4:], expected, atol=1e-6)


def test_padding_and_remat_change_nothing_in_t5():
    golden = arrays("tiny_t5")
    grads, vectors = {}, {}
    tokens = np.pad(golden["tokens"], ((0, 1), (0, 6)), constant_values=99)
    mask = np.pad(golden["mask"], ((0, 1), (0, 6)))
    for remat, inputs in (("none", (golden["tokens"], golden["mask"])), ("full", (tokens, mask))):
        tower, params = load("tiny_t5", remat=remat)

        def loss(p, *inputs, tower=tower):
            z = apply(tower, {"params": p}, *inputs)
            return jnp.sum(jnp.sin(z[:3])), z

        (_, vectors[remat]), grads[remat] = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            params, *inputs
        )
    np.testing.assert_allclose(vectors["full"][:3], vectors["none"], atol=1e-5)
    np.testing.assert_array_equal(vectors["full"][3], 0.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        grads["full"],
        grads["none"],
    )
    assert np.abs(grads["none"]["encoder"]["relative_bias"]["embedding"]).max() > 1e-4


@pytest.mark.parametrize("name", ["tiny_t5", "tiny_qwen3"])
def test_bfloat16_is_close(name):
    golden = arrays(name)
    vectors = []
    for dtype in ("float32", "bfloat16"):
        tower, params = load(name, param_dtype=dtype, compute_dtype=dtype)
        encode = jax.jit(lambda p, *inputs, tower=tower: apply(tower, {"params": p}, *inputs))
        vectors.append(np.asarray(encode(params, golden["tokens"], golden["mask"])))
    assert vectors[1].dtype == np.float32
    assert np.sum(vectors[0] * vectors[1], axis=1).min() > 0.99


@pytest.mark.parametrize("name", ["tiny_t5", "tiny_llama"])
def test_merged_adapters_are_adapters(name):
    golden = arrays(name)
    tower, params = load(name)
    config = LoraConfig(rank=2, alpha=4.0, targets=r".*/\w+_proj")
    lora = init_lora(jax.random.key(0), params, config)
    keys = iter(jax.random.split(jax.random.key(1), 99))
    lora = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), lora)

    inputs = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])

    @jax.jit
    def encode(variables):
        with adapted(config):
            return apply(tower, variables, *inputs)

    got = encode({"params": params, "lora": lora})
    expected = encode({"params": merge_lora(params, lora, config)})
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(np.asarray(got) - np.asarray(encode({"params": params}))).max() > 0.01


def test_e5_with_its_prompts():
    """What its model card computes: prefixes, mean over the real tokens, unit length."""
    tower, params = load("tiny_e5")
    tokenizer = build_tokenizer(
        TowerConfig(base=str(FOLDER / "tiny_e5"), limits=LIMITS, prompts="e5-1")
    )
    rows = [
        *tokenizer.encode(["senior nurse"], "profile"),
        *tokenizer.encode(["remote python engineer london"], "job"),
        *tokenizer.encode(["team"], "resume"),
    ]
    encode = jax.jit(lambda p, *inputs: apply(tower, {"params": p}, *inputs))
    np.testing.assert_allclose(encode(params, *pad(rows)), arrays("tiny_e5")["vectors"], atol=1e-5)


def test_rotations_of_llama3_by_the_wavelength():
    scaling = Llama3Rope(factor=8.0, low_turns=1.0, high_turns=4.0, original_positions=8192)
    plain = frequencies(128, 500_000.0, None)
    got = frequencies(128, 500_000.0, scaling)
    kinds = set()
    for before, after in zip(plain.astype(np.float64), got, strict=True):
        wavelength = 2.0 * np.pi / before
        if wavelength < 8192 / 4.0:
            kind, expected = "short", before
        elif wavelength > 8192 / 1.0:
            kind, expected = "long", before / 8.0
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            kind, expected = "between", (1.0 - smooth) * before / 8.0 + smooth * before
        kinds.add(kind)
        np.testing.assert_allclose(after, expected, rtol=1e-5)
    assert kinds == {"short", "between", "long"}


def test_linear_rotations_are_those_of_nearer_positions():
    far = rotary(jnp.array([[0, 4, 8]]), frequencies(8, 100.0, LinearRope(factor=4.0)))
    near = rotary(jnp.array([[0, 1, 2]]), frequencies(8, 100.0, None))
    np.testing.assert_allclose(far, near, atol=1e-6)


def test_rotated_products_know_distances_alone():
    query, key = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 5, 1, 8)), jnp.float32)
    frequency = frequencies(8, 100.0, None)

    def products(positions):
        turns = rotary(positions, frequency)
        return jnp.einsum("rlhk,rmhk->rlm", rotate(query, *turns), rotate(key, *turns))

    positions = jnp.array([[0, 1, 2, 3, 4]])
    expected = products(positions)
    np.testing.assert_allclose(products(positions + 7), expected, atol=1e-5)
    assert np.abs(products(2 * positions) - expected).max() > 0.1


def test_t5_is_never_causal():
    with pytest.raises(
        InputError, match=r"is a T5 encoder: needed pooling.attention=bidirectional"
    ):
        load("tiny_t5", pooling=PoolingConfig(attention="causal"))
