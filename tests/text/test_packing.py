"""Packed rows against a text a row: the same vectors, the same gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.text.bi_encoder import BiEncoder, encode
from star_jax.text.lora import LoraConfig, init_lora
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.packing import Tokens, spans
from star_jax.text.pooling import PoolingConfig
from star_jax.text.scorer import PairScorer, ScorerConfig
from star_jax.text.tower import TowerConfig, build_tower, init_pooler, load_params
from tests.text.fixtures import FOLDER
from tests.text.test_lora import LIMITS

LENGTHS = [[5, 3, 7], [9, 0, 0], [2, 11, 0], [0, 0, 0]]
ROW = 16
TEXTS = [(row, slot) for row, of_row in enumerate(LENGTHS) for slot, n in enumerate(of_row) if n]


def host(cls: Any, *values: Any) -> Any:
    return cls(*values)


def test_spans_are_counted_token_by_token():
    where = jax.jit(spans, static_argnums=1)(jnp.asarray(LENGTHS), ROW)
    for row, of_row in enumerate(LENGTHS):
        slots = [slot for slot, n in enumerate(of_row) for _ in range(n)]
        places = [place for n in of_row for place in range(n)]
        rest = ROW - len(slots)
        assert where.slot[row].tolist() == slots + [3] * rest
        assert where.position[row].tolist() == places + [0] * rest
        assert where.mask[row].tolist() == [True] * len(slots) + [False] * rest


def packed_and_padded(vocab_size, skip):
    """The same texts several to a row and one to a row, and the slot of each."""
    rng = np.random.default_rng(2)
    lengths = np.array(LENGTHS, np.int32)
    tokens = rng.integers(3, vocab_size, (len(LENGTHS), ROW)).astype(np.int32)
    alone = np.full((len(TEXTS), ROW), 7, np.int32)
    for i, (row, slot) in enumerate(TEXTS):
        start = lengths[row, :slot].sum()
        alone[i, : lengths[row, slot]] = tokens[row, start : start + lengths[row, slot]]
    of_text = np.array([[lengths[at]] for at in TEXTS], np.int32)
    skipped = (lengths // 2, of_text // 2) if skip else (None, None)
    slots = np.array([row * 3 + slot for row, slot in TEXTS])
    packed = host(Tokens, tokens, lengths, skipped[0])
    return packed, host(Tokens, alone, of_text, skipped[1]), slots


CASES = [
    ("tiny_mistral", PoolingConfig()),
    ("tiny_mistral", PoolingConfig(token="mean", layers="attention", exclude_prompt=True)),
    ("tiny_bert", PoolingConfig(token="weighted_mean", layers="all", exclude_prompt=True)),
    ("tiny_bert", PoolingConfig(token="latent", layers="last", exclude_prompt=True)),
]


@pytest.mark.parametrize(("family", "pooling"), CASES, ids=lambda case: str(case)[:12])
def test_packed_is_padded_in_values_and_gradients(family, pooling):
    config = TowerConfig(base=str(FOLDER / family), limits=LIMITS, pooling=pooling)
    lora = LoraConfig(rank=2, targets=r".*/\w+_proj")
    model = BiEncoder(
        tower=build_tower(config),
        scorer=PairScorer(ScorerConfig()),
        lora=lora,
        objective=ObjectiveConfig(),
    )
    params = load_params(config, model.tower)
    adapters = jax.tree.map(lambda leaf: leaf + 0.02, init_lora(jax.random.key(1), params, lora))
    packed, padded, slots = packed_and_padded(model.tower.shape.vocab_size, pooling.exclude_prompt)
    rest = {"params": params}
    if pooler := init_pooler(model.tower, jax.random.key(2)):
        rest["pooler"] = jax.tree.map(lambda leaf: leaf + 0.02 * jnp.sin(leaf + 1), pooler)

    def loss(adapters, texts, slots):
        vectors = encode(model, {**rest, "lora": adapters}, texts, None)
        weight = jnp.cos(jnp.arange(vectors.shape[1]))
        return jnp.sum(jnp.sin(vectors[slots] @ weight)), vectors

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, expected), expected_grads = step(adapters, padded, np.arange(len(TEXTS)))
    (_, got), grads = step(adapters, packed, slots)
    np.testing.assert_allclose(got[slots], expected, atol=1e-5)
    np.testing.assert_array_equal(np.delete(got, slots, axis=0), 0.0)
    # Of all adapters together: some have no gradient but rounding.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_grads))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest, rtol=1e-5),
        grads,
        expected_grads,
    )
