"""Learned poolings against numpy, and the means that they start from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.text.pooler import Pooler
from star_jax.text.pooling import PoolingConfig, TokenPool
from star_jax.text.stack import Encoded

LAYERS, R, S, L, D, HEADS = 3, 2, 2, 5, 16, 8
RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(R, L, D)).astype(np.float32)
TAPS = RNG.normal(size=(LAYERS + 1, R, S, D)).astype(np.float32)
WEIGHTS = RNG.dirichlet(np.ones(L), (R, S)).astype(np.float32)


def host(cls: Any, *values: Any) -> Any:
    return cls(*values)


def run(config, spread):
    """(Parameters, result); parameters move by `spread` from where they start."""
    pooler = Pooler(config, LAYERS, jnp.dtype("float32"))
    tapped = config.layers != "last"
    inputs = host(Encoded, STATES, STATES, TAPS if tapped else None), host(TokenPool, None, WEIGHTS)
    params = jax.jit(pooler.init)(jax.random.key(0), *inputs)["params"]
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    params = jax.tree.map(
        lambda leaf: leaf + spread * jax.random.normal(next(keys), leaf.shape), params
    )
    return jax.tree.map(np.asarray, params), jax.jit(pooler.apply)({"params": params}, *inputs)


def all_layers():
    last = np.einsum("rsl,rld->rsd", WEIGHTS, STATES)
    return np.stack([*TAPS[1:LAYERS], last])


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def attention(params, query, keys):
    """flax's multi-head attention of one query over keys, head by head."""
    parts = []
    for head in range(HEADS):
        q, k, v = (
            x @ params[name]["kernel"][:, head] + params[name]["bias"][head]
            for x, name in ((query, "query"), (keys, "key"), (keys, "value"))
        )
        weight = softmax(k @ q / np.sqrt(len(q)))
        parts.append(weight @ v @ params["out"]["kernel"][head])
    return np.sum(parts, axis=0) + params["out"]["bias"]


def layer_norm(params, x):
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    return x * params["scale"] + params["bias"]


def gelu(x):
    return np.asarray(jax.nn.gelu(x))


@pytest.mark.parametrize("layers", ["learned", "attention"])
def test_learned_layers_start_as_the_mean(layers):
    _, got = run(PoolingConfig(token="mean", layers=layers), 0.0)
    np.testing.assert_allclose(got, all_layers().mean(axis=0), atol=1e-5)


def test_latents_start_as_the_mean():
    _, got = run(PoolingConfig(token="latent", layers="last"), 0.0)
    np.testing.assert_allclose(got, np.einsum("rsl,rld->rsd", WEIGHTS, STATES), atol=1e-5)


def test_learned_weights_of_layers():
    params, got = run(PoolingConfig(token="mean", layers="learned"), 1.0)
    expected = np.einsum("l,lrsd->rsd", softmax(params["layer_logits"]), all_layers())
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_query_attends_to_layers():
    config = PoolingConfig(token="mean", layers="attention", include_embedding_layer=True)
    params, got = run(config, 0.3)
    params = params["layers"]
    states = np.concatenate([TAPS[:1], all_layers()])
    for row in range(R):
        for slot in range(S):
            of_text = states[:, row, slot]
            expected = of_text.mean(axis=0) + attention(
                params["attention"], params["query"], of_text
            )
            np.testing.assert_allclose(got[row, slot], expected, atol=1e-4)


def test_tokens_attend_to_latents():
    params, got = run(PoolingConfig(token="latent", layers="last"), 0.1)
    params = params["latent"]
    after = np.empty_like(STATES)
    for row in range(R):
        for place in range(L):
            x = STATES[row, place]
            x = x + attention(params["attention"], layer_norm(params["norm"], x), params["latents"])
            hidden = layer_norm(params["mlp_norm"], x) @ params["up"]["kernel"]
            hidden = gelu(hidden + params["up"]["bias"])
            after[row, place] = x + hidden @ params["down"]["kernel"] + params["down"]["bias"]
    np.testing.assert_allclose(got, np.einsum("rsl,rld->rsd", WEIGHTS, after), atol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"token": "latent", "layers": "all"}, "latents attend to the last layer alone"),
        ({"token": "last", "exclude_prompt": True}, "one token counts anyway"),
        ({"layers": "last", "include_embedding_layer": True}, "joins all layers only"),
        ({"layers": (1, 2), "include_embedding_layer": True}, "joins all layers only"),
        ({"layers": (-1,)}, "needs at least one block number"),
    ],
)
def test_combinations_without_meaning_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        PoolingConfig(**values)
