"""One large batch, however it is cut and wherever it lies: the same loss, the same gradients.

The batch has what made others wrong: members, jobs and texts that repeat, explicit negatives, a
missing resume, padding.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.losses.infonce import InfonceConfig
from star_jax.losses.semi_hard import SemiHardConfig
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import Rule, batch_shardings, put, shardings
from star_jax.text.bi_encoder import (
    TextBatch,
    bi_encoder_loss,
    build_bi_encoder,
    init_variables,
    row_axes,
    trainable_split,
)
from star_jax.text.lora import LoraConfig
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.packing import Tokens
from star_jax.text.scorer import ScorerConfig
from star_jax.text.tower import TowerConfig

B, U, L = 32, 48, 12
OBJECTIVE = ObjectiveConfig(
    contrastive="infonce+semihard",
    semi_hard=SemiHardConfig(temperature=0.1, min_gap=0.001, fallback="easiest"),
    infonce=InfonceConfig(temperature=0.1),
    widths=(32, 8),
)


def host(cls: Any, **values: Any) -> Any:
    return cls(**values)


@pytest.fixture(scope="module")
def model():
    tower = TowerConfig(base="random")
    lora = LoraConfig(rank=2, targets=r".*/\w+_proj", dropout=0.0)
    built = build_bi_encoder(tower, ScorerConfig(hidden=(8,)), OBJECTIVE, lora)
    variables = init_variables(built, tower, jax.random.key(0))
    rng = np.random.default_rng(1)
    variables["lora"] = jax.tree.map(
        lambda leaf: leaf + rng.normal(0, 0.05, leaf.shape).astype(np.float32), variables["lora"]
    )
    return built, *trainable_split(variables, "lora")


def whole_batch(num_chunks=1):
    """All pairs; the texts in so many chunks."""
    rng = np.random.default_rng(4)
    lengths = rng.integers(3, L + 1, (U, 1)).astype(np.int32)
    tokens = rng.integers(3, 259, (U, L)).astype(np.int32)
    texts = host(Tokens, tokens=tokens, lengths=lengths)
    if num_chunks > 1:
        texts = jax.tree.map(lambda a: a.reshape(num_chunks, -1, a.shape[-1]), texts)
    label = (np.arange(B) % 4 != 3).astype(np.float32)
    sender = np.repeat(rng.integers(0, 9, B // 2), 2).astype(np.int32)
    return host(
        TextBatch,
        texts=(texts,),
        document=rng.integers(0, 20, B).astype(np.int32),
        profile=(20 + sender).astype(np.int32),
        resume=np.where(sender % 3 == 0, -1, 29 + sender).astype(np.int32),
        label=label,
        mask=np.arange(B) < B - 3,
        sender=sender,
        receiver=rng.integers(0, 12, B).astype(np.int32),
        known_positive=rng.random((B, B)) < 0.05,
    )


def value_and_grads(model, batch, mesh):
    built, trainable, frozen = model
    rules = (Rule(".*/(kernel|embedding)", None), Rule(".*", jax.sharding.PartitionSpec()))
    trainable = put(trainable, shardings(trainable, mesh, rules))
    frozen = put(frozen, shardings(frozen, mesh, rules))
    batch = put(batch, batch_shardings(batch, mesh, axis=row_axes(batch)))
    loss = jax.value_and_grad(
        lambda t, f, b: bi_encoder_loss({**f, **t}, b, built, None), has_aux=True
    )
    return jax.device_get(jax.jit(loss)(trainable, frozen, batch))


@pytest.fixture(scope="module")
def one_shot(model):
    return value_and_grads(model, whole_batch(), make_mesh(MeshConfig(data=1)))


@pytest.mark.parametrize(
    ("num_chunks", "data", "fsdp"), [(3, 1, 1), (1, 2, 1), (3, 4, 1), (2, 2, 4)]
)
def test_chunks_and_devices_change_nothing(model, one_shot, num_chunks, data, fsdp, monkeypatch):
    monkeypatch.setattr("star_jax.parallel.rules._SMALL", 1)  # Even these arrays are split.
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp))
    (loss, metrics), grads = value_and_grads(model, whole_batch(num_chunks), mesh)
    (expected, expected_metrics), expected_grads = one_shot
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics["semihard_anchors"] == expected_metrics["semihard_anchors"] > 5
    assert metrics["infonce_anchors"] == expected_metrics["infonce_anchors"] > 5

    def close(got, wanted):
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=1e-5)
        assert np.abs(wanted).max() > 0

    jax.tree.map(close, grads, expected_grads)


def test_chunks_cost_the_memory_of_one(model):
    built, trainable, frozen = model
    memory = {}
    for num_chunks in (1, 6):
        batch = whole_batch(num_chunks)
        gradient = jax.grad(
            lambda t, f, b: bi_encoder_loss({**f, **t}, b, built, None), has_aux=True
        )
        analysis: Any = (
            jax.jit(gradient).lower(trainable, frozen, batch).compile().memory_analysis()
        )
        memory[num_chunks] = analysis.temp_size_in_bytes
    assert memory[6] < 0.5 * memory[1]


@pytest.mark.slow
def test_dropout_is_drawn_once_for_both_passes(model, monkeypatch):
    """Against chunks that keep their states, so that there is no second pass."""
    _, trainable, frozen = model
    built = build_bi_encoder(
        TowerConfig(base="random"),
        ScorerConfig(hidden=(8,)),
        ObjectiveConfig(contrastive="none"),
        LoraConfig(rank=2, targets=r".*/\w+_proj", dropout=0.5),
    )
    batch, key = jax.tree.map(jnp.asarray, whole_batch(3)), jax.random.key(3)

    def gradient(dropout_key):
        loss = jax.grad(lambda t: bi_encoder_loss({**frozen, **t}, batch, built, dropout_key)[0])
        return jax.jit(loss)(trainable)["lora"]

    got, still = gradient(key), gradient(None)
    monkeypatch.setattr(
        "star_jax.text.bi_encoder.encode_chunks",
        lambda encode, chunks: jnp.stack(
            [encode(jax.tree.map(lambda a, i=i: a[i], chunks)) for i in range(3)]
        ),
    )
    kept = gradient(key)
    for ours, theirs, other in zip(*map(jax.tree.leaves, (got, kept, still)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
        assert np.abs(ours - other).max() > 1e-3 * np.abs(ours).max()
