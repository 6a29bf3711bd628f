import math

import jax
import numpy as np
import pytest

from star_jax.losses.bce import binary_cross_entropy

LOGITS = np.array([0.3, -2.0, 5.0, 0.0, 90.0, -90.0], np.float32)
LABEL = np.array([1, 0, 0, 1, 1, 0], np.float32)

loss = jax.jit(binary_cross_entropy, static_argnums=3)
loss_and_grad = jax.jit(jax.value_and_grad(binary_cross_entropy), static_argnums=3)


def by_definition(logits, label, mask, positive_weight):
    total = weights = 0.0
    for x, y, real in zip(logits.tolist(), label.tolist(), mask.tolist(), strict=True):
        if real:
            probability = 1.0 / (1.0 + math.exp(-x))
            weight = positive_weight if y else 1.0
            total -= weight * math.log(probability if y else 1.0 - probability)
            weights += weight
    return total / weights


@pytest.mark.parametrize("positive_weight", [1.0, 3.0])
@pytest.mark.parametrize("hidden", [(), (0,), (1, 3)])
def test_is_the_mean_cross_entropy_of_real_rows(positive_weight, hidden):
    logits, label = LOGITS[:4], LABEL[:4]
    mask = ~np.isin(np.arange(4), hidden)
    expected = by_definition(logits, label, mask, positive_weight)
    np.testing.assert_allclose(loss(logits, label, mask, positive_weight), expected, rtol=1e-6)


def test_large_logits_stay_finite():
    mask = np.ones(6, bool)
    value, grad = loss_and_grad(LOGITS, LABEL, mask, 1.0)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    wrong = loss(-LOGITS[4:], LABEL[4:], mask[4:], 1.0)
    np.testing.assert_allclose(wrong, 90.0, rtol=1e-6)


def test_padding_rows_have_no_say():
    mask = np.array([True, True, False, False])
    logits = np.array([0.3, -2.0, 50.0, -70.0], np.float32)
    value, grad = loss_and_grad(logits, LABEL[:4], mask, 2.0)
    np.testing.assert_allclose(value, loss(LOGITS[:2], LABEL[:2], mask[:2], 2.0), rtol=1e-6)
    assert np.abs(grad[:2]).min() > 0.0
    np.testing.assert_array_equal(grad[2:], 0.0)


def test_no_real_row_is_a_loss_of_zero():
    value, grad = loss_and_grad(LOGITS[:3], LABEL[:3], np.zeros(3, bool), 1.0)
    assert value == 0.0
    np.testing.assert_array_equal(grad, 0.0)


def test_reduces_in_float32():
    logits = LOGITS[:4].astype("bfloat16")
    assert loss(logits, LABEL[:4], np.ones(4, bool), 1.0).dtype == np.float32
