"""The loss against loops over the text of SPEC 1.1."""

import math
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.losses.contrastive import Component, Rows
from star_jax.losses.semi_hard import SemiHardConfig, semi_hard_loss

B, E = 12, 5


def host(cls: Any, *values: Any, **named: Any) -> Any:
    """A NamedTuple of device arrays, holding those of the host."""
    return cls(*values, **named)


def unit(array):
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


def make(seed, spread=1.0):
    """A batch in which members, jobs and vectors repeat; `spread` 0 makes all vectors equal."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=E)
    vectors = [unit(centre + spread * rng.normal(size=(B, E))) for _ in range(3)]
    vectors[1][3] = vectors[1][7]  # A tie.
    present = [np.ones(B, bool), rng.random(B) < 0.9, rng.random(B) < 0.6]
    components = [
        host(Component, np.where(p[:, None], v, 0.0), p)
        for v, p in zip(vectors, present, strict=True)
    ]
    rows = host(
        Rows,
        label=(rng.random(B) < 0.6).astype(np.float32),
        mask=rng.random(B) < 0.85,
        sender=rng.integers(0, 7, B).astype(np.int32),
        receiver=rng.integers(0, 6, B).astype(np.int32),
        known_positive=rng.random((B, B)) < 0.1,
    )
    return components[0], (components[1], components[2]), rows


def combined(components, how):
    vectors, present = [], []
    for i in range(B):
        there = [np.asarray(c.vector[i], np.float64) for c in components if c.present[i]]
        present.append(bool(there))
        if not there:
            vectors.append(np.zeros(E))
            continue
        vector = np.sum(there, axis=0) if how == "mean" else np.max(there, axis=0)
        vectors.append(vector / np.linalg.norm(vector))
    return [host(Component, np.array(vectors), np.array(present))]


def by_definition(document, components, rows, config, num_rows=B):
    """SPEC 1.1, word by word."""
    if config.request_combine != "separate":
        components = combined(components, config.request_combine)
    total, anchors = 0.0, set()
    for i, component in product(range(num_rows), components):
        if not (rows.mask[i] and document.present[i] and component.present[i]):
            continue
        if config.anchors == "positive" and rows.label[i] != 1:
            continue
        d = np.asarray(document.vector[i], np.float64)
        q = np.asarray(component.vector, np.float64)
        positive = d @ q[i]
        valid = [
            j
            for j in range(num_rows)
            if j != i
            and rows.mask[j]
            and component.present[j]
            and rows.sender[j] != rows.sender[i]
            and not (rows.receiver[j] == rows.receiver[i] and rows.label[j] == 1)
            and not (rows.known_positive is not None and rows.known_positive[i, j])
        ]
        scores = [float(d @ q[j]) for j in valid]
        semi_hard = [s for s in scores if s < positive - max(config.min_gap, 1e-6)]
        if config.margin is not None:
            semi_hard = [s for s in semi_hard if s > positive - config.margin]
        if semi_hard:
            negative = max(semi_hard)
        elif scores and config.fallback == "easiest":
            negative = min(scores)
        elif scores and config.fallback == "hardest":
            negative = max(scores)
        else:
            continue
        total += math.log1p(math.exp((negative - positive) / config.temperature))
        anchors.add(i)
    return total / max(len(anchors), 1), len(anchors)


CONFIGS = [
    SemiHardConfig(temperature=0.2),
    SemiHardConfig(temperature=0.02),
    SemiHardConfig(temperature=0.2, fallback="easiest"),
    SemiHardConfig(temperature=0.2, fallback="hardest"),
    SemiHardConfig(temperature=0.2, min_gap=0.3),
    SemiHardConfig(temperature=0.2, margin=0.1),
    SemiHardConfig(temperature=0.2, margin=0.3, min_gap=0.1, fallback="hardest"),
    SemiHardConfig(temperature=0.2, anchors="all"),
    SemiHardConfig(temperature=0.2, request_combine="mean"),
    SemiHardConfig(temperature=0.2, request_combine="max", fallback="easiest"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_is_its_definition(config):
    loss = jax.jit(lambda d, c, r: semi_hard_loss(d, c, r, config))
    counts = []
    for seed in range(12):
        batch = make(seed, spread=0.3 if seed % 2 else 1.0)
        expected, num_anchors = by_definition(*batch, config)
        got = loss(*batch)
        np.testing.assert_allclose(got.loss, expected, rtol=2e-5, atol=1e-6)
        assert got.num_anchors == num_anchors
        counts.append(num_anchors)
    assert len(set(counts)) > 1  # The masks had something to say.


def simple(vectors, *, label=None, sender=None, receiver=None):
    size = len(vectors)
    document = host(Component, vectors, np.ones(size, bool))
    rows = host(
        Rows,
        np.ones(size, np.float32) if label is None else np.asarray(label, np.float32),
        np.ones(size, bool),
        np.arange(size, dtype=np.int32) if sender is None else np.asarray(sender, np.int32),
        np.arange(size, dtype=np.int32) if receiver is None else np.asarray(receiver, np.int32),
        None,
    )
    return document, rows


CONFIG = SemiHardConfig()


@pytest.mark.parametrize("size", [1, 2, 7, 33])
def test_identical_vectors_and_single_rows_give_zero_and_finite_gradients(size):
    # Seven and 33 columns: a matmul may round the columns of its last tile otherwise.
    vectors = np.tile(unit(np.random.default_rng(3).normal(size=(1, 384))), (size, 1))
    document, rows = simple(vectors)

    def loss(d, q):
        request = Component(q, document.present)
        return semi_hard_loss(host(Component, d, document.present), (request,), rows, CONFIG).loss

    rows = jax.tree.map(jnp.asarray, rows)
    document = jax.tree.map(jnp.asarray, document)
    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(vectors, vectors)
    assert value == 0.0
    for grad in grads:
        np.testing.assert_array_equal(grad, 0.0)


def test_gradients_reach_document_and_both_components():
    document, (profile, resume), rows = make(0)
    config = SemiHardConfig(temperature=0.2)

    def loss(d, p, r):
        components = (host(Component, p, profile.present), host(Component, r, resume.present))
        return semi_hard_loss(host(Component, d, document.present), components, rows, config).loss

    document, profile, resume, rows = jax.tree.map(jnp.asarray, (document, profile, resume, rows))
    arrays = [np.asarray(c.vector, np.float32) for c in (document, profile, resume)]
    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
    for which, grad in enumerate(grads):
        assert np.abs(grad).max() > 0
        # Central difference of the definition along a random direction.
        direction = np.random.default_rng(which).normal(size=arrays[which].shape)
        step = 1e-5
        shifted = [[array.astype(np.float64) for array in arrays] for _ in range(2)]
        shifted[0][which] += step * direction
        shifted[1][which] -= step * direction
        ends = [
            by_definition(
                host(Component, d, document.present),
                (host(Component, p, profile.present), host(Component, r, resume.present)),
                rows,
                config,
            )[0]
            for d, p, r in shifted
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(grad * direction), slope, rtol=2e-3)


def test_similarities_are_float32_under_bfloat16():
    document, components, rows = make(1)

    def narrow(component):
        return Component(jnp.asarray(component.vector, jnp.bfloat16), component.present)

    def widened(component):
        return Component(jnp.asarray(narrow(component).vector, jnp.float32), component.present)

    loss = jax.jit(lambda d, c, r: semi_hard_loss(d, c, r, CONFIG).loss)
    got = loss(narrow(document), tuple(narrow(c) for c in components), rows)
    expected = loss(widened(document), tuple(widened(c) for c in components), rows)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"sender": [5, 5]}, False),  # The same member.
        ({"receiver": [4, 4]}, False),  # That member applied to this very job.
        ({"receiver": [4, 4], "label": [1, 0]}, True),  # That member did not.
        ({"label": [1, 0]}, True),
    ],
)
def test_who_may_be_a_negative(change, valid):
    vectors = np.eye(2, dtype=np.float32)
    document, rows = simple(vectors, **change)
    components = (host(Component, vectors, document.present),)
    got = jax.jit(lambda d, c, r: semi_hard_loss(d, c, r, CONFIG))(document, components, rows)
    anchors = int(np.sum(rows.label)) if valid else 0
    assert got.num_anchors == anchors


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.0}, "temperature 0.0 is not above 0"),
        ({"min_gap": -0.1}, "min_gap -0.1 is below 0"),
        ({"min_gap": 0.2, "margin": 0.1}, "margin 0.1 is not above min_gap 0.2"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        SemiHardConfig(**values)
