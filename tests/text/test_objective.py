import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.losses.bce import binary_cross_entropy
from star_jax.losses.contrastive import Component, Rows
from star_jax.losses.distill import DistillConfig, distill_loss
from star_jax.text.objective import ObjectiveConfig, Vectors, pair_loss

LOGITS = jnp.array([0.5, -1.0, 2.0, 0.1])
ROWS = Rows(
    label=jnp.array([1.0, 0.0, 1.0, 0.0]),
    mask=jnp.array([True, True, True, False]),
    sender=jnp.arange(4),
    receiver=jnp.arange(4),
    known_positive=None,
)
TEACHER = jnp.array([2.0, np.nan, -1.0, 3.0])


def loss(config, rows):
    part = Component(jnp.eye(4), jnp.ones(4, bool))
    return pair_loss(Vectors(part, part, part), rows, lambda _: LOGITS, config)


def test_the_teacher_joins_the_loss_with_its_weight():
    distill = DistillConfig(kind="bce", weight=0.25, temperature=2.0)
    config = ObjectiveConfig(contrastive="none", distill=distill)
    total, metrics = loss(config, ROWS._replace(teacher=TEACHER))
    bce = binary_cross_entropy(LOGITS, ROWS.label, ROWS.mask, 1.0)
    term = distill_loss(LOGITS, TEACHER, ROWS.mask, distill)
    np.testing.assert_allclose(total, bce + 0.25 * term, rtol=1e-6)
    np.testing.assert_allclose(metrics["distill"], term, rtol=1e-6)
    plain, metrics = loss(ObjectiveConfig(contrastive="none"), ROWS._replace(teacher=TEACHER))
    np.testing.assert_allclose(plain, bce, rtol=1e-6)
    assert "distill" not in metrics
    with pytest.raises(ValueError, match=r"distill\.kind bce got rows without a teacher"):
        loss(config, ROWS)
