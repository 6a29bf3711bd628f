import numpy as np
import pytest

from star_jax.embeddings.transforms.closed_form import fit_linear
from star_jax.embeddings.transforms.descent import DescentConfig, Rows
from star_jax.embeddings.transforms.frames import frame
from star_jax.embeddings.transforms.mlp import fit_mlp
from star_jax.embeddings.transforms.normal_equations import Moments
from star_jax.embeddings.transforms.sgd import fit_sgd

RNG = np.random.default_rng(0)
COUNT = 512
X = (RNG.normal(size=(COUNT, 4)) @ RNG.normal(size=(4, 4)) + 0.5).astype(np.float32)
BENT = np.abs(X @ RNG.normal(size=(4, 6)))
Y = (3 * (X @ RNG.normal(size=(4, 3)) + 0.7 * BENT @ RNG.normal(size=(6, 3))) + 2).astype(
    np.float32
)
FAST = DescentConfig(num_steps=1500, batch_size=256, learning_rate=0.05, validate_every=50)


def moments():
    found = Moments(4, 3)
    found.add(X, Y)
    return found


def rows(inside, numbers):
    return Rows(len(numbers), lambda own: inside.inside(X[numbers[own]], Y[numbers[own]]))


def everything(inside):
    """For both: a descent that ends where the loss on what it is fitted on does."""
    return rows(inside, np.arange(COUNT)), rows(inside, np.arange(COUNT))


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gradient_steps_end_at_the_closed_form(bias, whiten):
    inside = frame(moments(), bias=bias, whiten=whiten)
    config = DescentConfig(
        num_steps=1000, batch_size=COUNT, learning_rate=0.03, validate_every=1000
    )
    got, step = fit_sgd(inside, *everything(inside), 1e-4, config)
    expected = fit_linear(moments(), "ridge", ridge=1e-4, rank=1, bias=bias, whiten=whiten)
    np.testing.assert_allclose(got.apply(X), expected.apply(X), rtol=1e-3, atol=1e-2)
    assert step == 1000
    assert (got.bias is None) == (not bias)


def test_a_ridge_counts_in_every_step():
    inside = frame(moments(), bias=False, whiten=False)
    config = DescentConfig(num_steps=600, batch_size=COUNT, learning_rate=0.03, validate_every=600)
    got, _ = fit_sgd(inside, *everything(inside), 2.0, config)
    expected = fit_linear(moments(), "ridge", ridge=2.0, rank=1, bias=False, whiten=False)
    np.testing.assert_allclose(got.apply(X), expected.apply(X), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("whiten", [False, True])
def test_a_network_learns_what_no_matrix_can(whiten):
    inside = frame(moments(), bias=True, whiten=whiten)
    got, step = fit_mlp(inside, *everything(inside), 1e-6, 32, FAST)
    plain = fit_linear(moments(), "ridge", ridge=1e-6, rank=1, bias=True, whiten=False)
    errors = [np.square(own.apply(X) - Y).mean() for own in (got, plain)]
    assert step > 0
    assert errors[0] < 0.1 * errors[1]
    np.testing.assert_allclose(got.linear.apply(X), plain.apply(X), rtol=1e-3, atol=1e-3)


def test_what_is_held_back_chooses_the_stopping_point():
    """Noise alone: the linear map is the best there is, and what is learned is not kept."""
    noise = np.random.default_rng(1).normal(size=(40, 7)).astype(np.float32)
    x, y = noise[:, :4], noise[:, 4:] + 5 * noise[:, :3]
    found = Moments(4, 3)
    found.add(x[:20], y[:20])
    inside = frame(found, bias=False, whiten=False)
    parts = [
        Rows(20, lambda own, first=first: inside.inside(x[first:][own], y[first:][own]))
        for first in (0, 20)
    ]
    config = DescentConfig(num_steps=400, validate_every=20, patience=3, learning_rate=0.05)
    got, step = fit_mlp(inside, parts[0], parts[1], 1e-6, 64, config)
    assert step <= 40
    plain = fit_linear(found, "ridge", ridge=1e-6, rank=1, bias=False, whiten=False)
    held = [np.square(own.apply(x[20:]) - y[20:]).mean() for own in (got, plain)]
    assert held[0] <= held[1] * (1 + 1e-5)


def test_old_vectors_that_are_all_alike_are_what_is_mapped_to():
    y = np.ones((20, 3), np.float32)
    found = Moments(4, 3)
    found.add(X[:20], y)
    inside = frame(found, bias=True, whiten=False)
    pairs = Rows(20, lambda own: inside.inside(X[own], y[own]))
    got, _ = fit_sgd(inside, pairs, pairs, 1e-6, DescentConfig(num_steps=2, validate_every=1))
    np.testing.assert_allclose(got.apply(X[:20]), y, rtol=1e-6)


def test_the_seed_says_it_all():
    inside = frame(moments(), bias=False, whiten=False)
    config = DescentConfig(num_steps=30, batch_size=64, validate_every=10)
    parts = rows(inside, np.arange(400)), rows(inside, np.arange(400, COUNT))
    first, again = (fit_mlp(inside, *parts, 1e-6, 8, config)[0] for _ in range(2))
    for name, array in first.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name])
    other = fit_mlp(inside, *parts, 1e-6, 8, DescentConfig(num_steps=30, batch_size=64, seed=1))
    assert not np.array_equal(other[0].hidden, first.hidden)
