import jax
import numpy as np
import pytest

from star_jax.losses.in_batch import in_batch_softmax

SHARDS, B = 2, 5


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    mask = np.ones((SHARDS, B), bool)
    mask[1, -1] = False
    label = np.array([[1, 0, 1, 0, 1], [1, 0, 0, 1, 1]], np.float32)
    linked = rng.random((SHARDS, B, B)) < 0.3
    linked |= np.eye(B, dtype=bool) & (label[:, :, None] == 1)  # A positive is a known link.
    logits = rng.normal(size=(SHARDS, B, B)).astype(np.float32)
    return {"logits": logits, "label": label, "mask": mask, "linked": linked}


def by_hand(logits, label, mask, linked, log_q=None):
    if log_q is not None:
        logits = logits - log_q[:, None, :]
    rows = []
    for shard in range(SHARDS):
        for row in range(B):
            if not mask[shard, row] or not label[shard, row]:
                continue
            others = [c for c in range(B) if c != row and mask[shard, c]]
            others = [c for c in others if not linked[shard, row, c]]
            own = np.exp(logits[shard, row, row].astype(np.float64))
            against = sum(np.exp(logits[shard, row, c].astype(np.float64)) for c in others)
            rows.append(-np.log(own / (own + against)))
    return np.mean(rows)


def test_a_positive_against_the_receivers_of_its_device_that_it_is_not_linked_with(batch):
    got = jax.jit(in_batch_softmax)(**batch)
    np.testing.assert_allclose(got, by_hand(**batch), rtol=1e-5)
    unmasked = batch | {"linked": np.zeros_like(batch["linked"])}
    assert abs(by_hand(**unmasked) - by_hand(**batch)) > 0.01


def test_the_correction_lowers_what_is_met_often(batch):
    log_q = np.log(np.random.default_rng(1).random((SHARDS, B))).astype(np.float32)
    got = jax.jit(in_batch_softmax)(**batch, log_q=log_q)
    np.testing.assert_allclose(got, by_hand(**batch, log_q=log_q), rtol=1e-5)
    assert abs(by_hand(**batch, log_q=log_q) - by_hand(**batch)) > 0.01
    even = jax.jit(in_batch_softmax)(**batch, log_q=np.full((SHARDS, B), -3.0, np.float32))
    np.testing.assert_allclose(even, by_hand(**batch), rtol=1e-5)


def test_padding_links_and_negatives_of_others_have_no_gradient(batch):
    logits = batch.pop("logits")
    gradient = jax.jit(jax.grad(in_batch_softmax))(logits, **batch)
    gradient = np.asarray(gradient)
    assert np.isfinite(gradient).all()
    own = np.eye(B, dtype=bool)[None]
    assert not gradient[batch["linked"] & ~own].any()
    assert not gradient[~batch["mask"]].any()
    assert not gradient[1, :, -1].any()
    assert not gradient[batch["label"] == 0].any()
    assert gradient[0, 0, 0] < 0
    assert gradient.sum() == pytest.approx(0, abs=1e-6)


def test_no_positive_gives_zero(batch):
    batch["label"][:] = 0
    assert jax.jit(in_batch_softmax)(**batch) == 0.0
