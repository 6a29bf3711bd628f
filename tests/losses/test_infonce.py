"""InfoNCE and the triplet hinge against loops."""

import math
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.losses.contrastive import Component
from star_jax.losses.infonce import InfonceConfig, infonce_loss
from star_jax.losses.semi_hard import SemiHardConfig, semi_hard_loss, triplet_hinge_loss
from tests.losses.test_semi_hard import B, combined, host, make, simple, unit


def by_definition(document, components, rows, config):
    if config.request_combine != "separate":
        components = combined(components, config.request_combine)
    total, anchors = 0.0, set()
    for i, component in product(range(B), components):
        if not (rows.mask[i] and document.present[i] and component.present[i] and rows.label[i]):
            continue
        d, q = np.asarray(document.vector, np.float64), np.asarray(component.vector, np.float64)
        requests = [j for j in range(B) if component.present[j] and request_of(rows, i, j)]
        documents = [j for j in range(B) if document.present[j] and document_of(rows, i, j)]
        for scores in ([d[i] @ q[j] for j in requests], [q[i] @ d[j] for j in documents]):
            positive = d[i] @ q[i]
            if config.false_negative_margin is not None:
                scores = [s for s in scores if s <= positive + config.false_negative_margin]
            if scores:
                others = sum(math.exp((s - positive) / config.temperature) for s in scores)
                total += 0.5 * math.log(1.0 + others)
                anchors.add(i)
    return total / max(len(anchors), 1), len(anchors)


def request_of(rows, i, j):
    """Whether the request of row j may stand against the document of row i."""
    return (
        rows.mask[j]
        and rows.sender[j] != rows.sender[i]
        and not (rows.receiver[j] == rows.receiver[i] and rows.label[j] == 1)
        and not rows.known_positive[i, j]
    )


def document_of(rows, i, j):
    """Whether the document of row j may stand against the request of row i."""
    return (
        rows.mask[j]
        and rows.receiver[j] != rows.receiver[i]
        and not (rows.sender[j] == rows.sender[i] and rows.label[j] == 1)
        and not rows.known_positive[j, i]
    )


@pytest.mark.parametrize(
    "config",
    [
        InfonceConfig(temperature=0.2),
        InfonceConfig(temperature=0.2, false_negative_margin=None),
        InfonceConfig(temperature=0.5, request_combine="mean"),
    ],
    ids=str,
)
def test_is_its_definition(config):
    loss = jax.jit(lambda d, c, r: infonce_loss(d, c, r, config))
    counts = []
    for seed in range(8):
        batch = make(seed, spread=0.3 if seed % 2 else 1.0)
        expected, num_anchors = by_definition(*batch, config)
        got = loss(*batch)
        np.testing.assert_allclose(got.loss, expected, rtol=2e-5, atol=1e-6)
        assert got.num_anchors == num_anchors
        counts.append(num_anchors)
    assert len(set(counts)) > 1


def test_explicit_negatives_stand_against_their_members_request():
    """Row 1 is what member 5 was shown and skipped: no stranger's request, but a document."""
    vectors = unit(np.random.default_rng(0).normal(size=(2, 4)))
    document, rows = simple(vectors, label=[1, 0], sender=[5, 5])
    config = InfonceConfig(temperature=1.0, false_negative_margin=None)
    loss = jax.jit(lambda d, c, r: infonce_loss(d, c, r, config))
    got = loss(document, (host(Component, vectors, document.present),), rows)
    gap = vectors[0] @ vectors[1] - 1.0
    np.testing.assert_allclose(got.loss, 0.5 * np.log1p(np.exp(gap)), rtol=1e-5)


def test_pools_find_their_negatives_in_themselves():
    document, components, rows = make(3)
    config, half = InfonceConfig(temperature=0.2), B // 2
    pools = (np.arange(B) // half).astype(np.int32)
    loss = jax.jit(lambda d, c, r: infonce_loss(d, c, r, config))
    whole = loss(document, components, rows._replace(pool=pools))
    parts = []
    for part in (slice(0, half), slice(half, B)):
        cut = rows._replace(
            **{
                name: column[part, part] if column.ndim == 2 else column[part]
                for name, column in rows._asdict().items()
                if column is not None
            }
        )
        d, *c = (host(Component, v[part], p[part]) for v, p in (document, *components))
        parts.append(loss(d, tuple(c), cut))
    counts = [float(part.num_anchors) for part in parts]
    assert whole.num_anchors == sum(counts)
    expected = sum(float(p.loss) * n for p, n in zip(parts, counts, strict=True)) / sum(counts)
    np.testing.assert_allclose(whole.loss, expected, rtol=1e-5)


def test_the_hinge_takes_the_semi_hard_negatives():
    config = SemiHardConfig(temperature=1.0, hinge=0.3)
    hinge = jax.jit(lambda d, c, r: triplet_hinge_loss(d, c, r, config))
    soft = jax.jit(lambda d, c, r: semi_hard_loss(d, c, r, config))
    for seed in range(4):
        document, (profile, _), rows = make(seed)
        nobody = np.zeros(B, bool)
        resume = host(Component, np.zeros_like(profile.vector), nobody)
        for i in range(B):  # One anchor at a time: both losses tell the same gap.
            one = rows._replace(label=(np.arange(B) == i).astype(np.float32) * rows.label[i])
            got, other = (
                hinge(document, (profile, resume), one),
                soft(document, (profile, resume), one),
            )
            assert got.num_anchors == other.num_anchors
            if got.num_anchors:
                gap = np.log(np.expm1(np.float64(other.loss)))
                np.testing.assert_allclose(got.loss, max(0.0, 0.3 + gap), atol=1e-5)


def test_one_row_and_equal_vectors_have_finite_gradients():
    vectors = np.tile(unit(np.ones((1, 8))), (3, 1))
    document, rows = jax.tree.map(jnp.asarray, simple(vectors, receiver=[0, 0, 1]))

    def loss(q):
        request = Component(q, document.present)
        return infonce_loss(document, (request,), rows, InfonceConfig()).loss

    assert np.isfinite(jax.jit(jax.grad(loss))(jnp.asarray(vectors))).all()


@pytest.mark.parametrize(
    ("make_config", "message"),
    [
        (lambda: InfonceConfig(temperature=0.0), "temperature 0.0 is not above 0"),
        (lambda: SemiHardConfig(hinge=0.0), "hinge 0.0 is not above 0"),
    ],
)
def test_wrong_values_are_named(make_config, message):
    with pytest.raises(ValueError, match=message):
        make_config()
