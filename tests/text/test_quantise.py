"""Int8 kernels against the same kernels written out in float32."""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import trees
from star_jax.config import InputError
from star_jax.jobs.train_text import TextTrainConfig
from star_jax.text.families import TokenLimits
from star_jax.text.lora import LoraConfig, adapted, init_lora, merge_lora
from star_jax.text.packing import Tokens
from star_jax.text.quantise import quantise
from star_jax.text.tower import TowerConfig, build_tower, load_params
from tests.text.fixtures import FOLDER

LORA = LoraConfig(rank=2, dropout=0.0)
TEXTS = Tokens(jnp.arange(16).reshape(2, 8), jnp.array([[8], [5]]))


def tower_config(name, **changes):
    limits = TokenLimits(job=40, profile=40, resume=40, other=40)
    return TowerConfig(base=str(FOLDER / name), limits=limits, **changes)


def dequantised(params):
    """By definition: an int8 kernel times the scale of its output channel."""
    leaves = dict(zip(trees.paths(params), jax.tree.leaves(params), strict=True))
    found = {}
    for path, leaf in leaves.items():
        if path.endswith("/kernel"):
            assert leaf.dtype == np.int8
            leaf = leaf.astype(np.float32) * leaves[f"{path}_scale"][..., None, :]
        if not path.endswith("_scale"):
            found[path] = leaf
    nested = {}
    for path, leaf in found.items():
        *parents, name = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return nested


@pytest.mark.extra("qwix")
@pytest.mark.parametrize(
    ("name", "remat"), [("tiny_mistral", "full"), ("tiny_bert", "none")]
)  # BERT has biases.
def test_vectors_and_gradients_are_those_of_the_rounded_kernels(name, remat):
    config = tower_config(name, remat=remat)
    tower = build_tower(config)
    plain = load_params(config, tower)
    params = load_params(dataclasses.replace(config, base_quantisation="int8"), tower)
    rounded = dequantised(params)
    for path, kernel in zip(trees.paths(plain), jax.tree.leaves(plain), strict=True):
        if path.endswith("/kernel"):
            got = trees.select(rounded, path)
            step = np.abs(kernel).max(axis=-2, keepdims=True) / 127
            assert np.all(np.abs(jax.tree.leaves(got)[0] - kernel) <= 0.51 * step)
    lora = jax.tree.map(lambda leaf: leaf + 0.01, init_lora(jax.random.key(0), plain, LORA))

    def value_and_grad(params):
        def loss(lora):
            with adapted(LORA):
                vectors: Any = tower.apply({"params": params, "lora": lora}, TEXTS)
            return jnp.sum(jnp.sin(3.0 * jnp.arange(vectors.size)).reshape(vectors.shape) * vectors)

        return jax.jit(jax.value_and_grad(loss))(lora)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        value_and_grad(params),
        value_and_grad(rounded),
    )


@pytest.mark.extra("qwix")
def test_kernels_take_half_of_bfloat16_and_the_rest_stays():
    config = tower_config("tiny_mistral", param_dtype="bfloat16")
    tower = build_tower(config)
    plain, params = load_params(config, tower), quantise(load_params(config, tower))
    kernels = trees.count(trees.select(plain, ".*/kernel"))
    scales = trees.count(trees.select(params, ".*_scale"))
    saved = trees.size_bytes(plain) - trees.size_bytes(params)
    assert saved == kernels - 4 * scales
    embed = params["encoder"]["embed"]["embedding"]
    assert embed.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="kernel is int8, needed the base as it was read"):
        merge_lora(params, init_lora(jax.random.key(0), params, LORA), LORA)


def test_without_qwix_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)  # As the import system says "not found".
    with pytest.raises(InputError, match="int8 needs qwix, which is not installed"):
        quantise({"a": {"kernel": np.ones((2, 2), np.float32)}})


def test_a_quantised_base_does_not_train():
    with pytest.raises(ValueError, match=r"mode full trains the base.* int8 freezes"):
        TextTrainConfig(mode="full", tower=TowerConfig(base_quantisation="int8"))
