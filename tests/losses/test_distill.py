import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.losses.distill import DistillConfig, distill_loss

LOGITS = np.array([0.5, -2.0, 3.0, 40.0, -1.0], np.float32)
TEACHER = np.array([1.0, np.nan, -4.0, 6.0, 2.0], np.float32)
MASK = np.array([True, True, True, True, False])


def loss(logits, config, teacher=TEACHER, mask=MASK):
    return jax.jit(distill_loss, static_argnums=3)(logits, teacher, mask, config)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_means_over_the_rows_with_a_teacher(temperature):
    rows = [0, 2, 3]
    target = TEACHER[rows].astype(np.float64) / temperature
    logits = LOGITS[rows].astype(np.float64)
    found = loss(LOGITS, DistillConfig(kind="mse", temperature=temperature))
    np.testing.assert_allclose(found, ((logits - target) ** 2).mean(), rtol=1e-6)
    p, q = 1 / (1 + np.exp(-target)), 1 / (1 + np.exp(-logits))
    entropy = -(p * np.log(q) + (1 - p) * np.log1p(-q.clip(max=1 - 1e-16)))
    entropy[2] = (1 - p[2]) * 40.0 + np.log1p(np.exp(-40.0))  # log(1 - q) rounds to nothing there.
    found = loss(LOGITS, DistillConfig(kind="bce", temperature=temperature))
    np.testing.assert_allclose(found, entropy.mean(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["mse", "bce"])
def test_rows_without_a_teacher_get_no_gradient_and_no_nan(kind):
    grads = jax.grad(lambda x: loss(x, DistillConfig(kind=kind)))(jnp.asarray(LOGITS))
    assert np.isfinite(grads).all()
    assert (grads[np.array([1, 4])] == 0).all()
    assert (grads[np.array([0, 2, 3])] != 0).all()
    nobody = np.full(5, np.nan, np.float32)
    assert loss(LOGITS, DistillConfig(kind=kind), teacher=nobody) == 0


def test_bad_configs_are_refused():
    with pytest.raises(ValueError, match=r"temperature 0\.0 is not above 0"):
        DistillConfig(temperature=0.0)
    with pytest.raises(ValueError, match=r"weight 0\.0 is not above 0; kind none leaves it out"):
        DistillConfig(weight=0.0)
