from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import minimize

from star_jax.config import InputError
from star_jax.embeddings.transforms.closed_form import fit_linear
from star_jax.embeddings.transforms.lowrank import solve_lowrank
from star_jax.embeddings.transforms.normal_equations import (
    Moments,
    solve_ridge,
    whitened,
    whitening,
)
from star_jax.embeddings.transforms.procrustes import solve_procrustes

FIT: dict[str, Any] = {"ridge": 0.01, "rank": 2, "bias": False, "whiten": False}


def at(ridge) -> dict[str, Any]:
    return FIT | {"ridge": ridge}


class Pairs(NamedTuple):
    x: np.ndarray
    y: np.ndarray

    def moments(self, block=64):
        moments = Moments(self.x.shape[1], self.y.shape[1])
        for start in range(0, len(self.x), block):
            moments.add(self.x[start : start + block], self.y[start : start + block])
        return moments


def pairs(inputs=6, outputs=4, count=300, seed=0):
    """Correlated, off-centre, in float32, with noise."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(inputs, inputs))
    x = rng.normal(size=(count, inputs)) @ mixed + rng.normal(size=inputs)
    y = x @ rng.normal(size=(inputs, outputs)) + 0.5 * rng.normal(size=(count, outputs)) + 1.0
    return Pairs(x.astype(np.float32), y.astype(np.float32))


def ridge_by_rows(x, y, ridge):
    """Ordinary least squares, with rows that say what a ridge says."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    strength = ridge * np.square(x).sum() / x.shape[1]
    rows = np.vstack([x, np.sqrt(strength) * np.eye(x.shape[1])])
    aims = np.vstack([y, np.zeros((x.shape[1], y.shape[1]))])
    return np.linalg.lstsq(rows, aims, rcond=None)[0]


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.3])
@pytest.mark.parametrize(("inputs", "outputs"), [(6, 4), (3, 5)])
def test_ridge_is_least_squares(inputs, outputs, ridge):
    given = pairs(inputs, outputs)
    got = solve_ridge(given.moments().second(centred=False), ridge)
    np.testing.assert_allclose(got, ridge_by_rows(*given, ridge), rtol=1e-6, atol=1e-9)
    if not ridge:
        plain = np.linalg.lstsq(*(each.astype(np.float64) for each in given), rcond=None)[0]
        np.testing.assert_allclose(got, plain, rtol=1e-6)


def test_a_bias_is_a_column_of_ones_that_costs_nothing():
    x, y = pairs()
    own = fit_linear(pairs().moments(), "ridge", **FIT | {"bias": True})
    about = [each.astype(np.float64) - each.mean(axis=0, dtype=np.float64) for each in (x, y)]
    expected = ridge_by_rows(about[0], about[1], 0.01)
    np.testing.assert_allclose(own.factors[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(own.apply(x).mean(axis=0), y.mean(axis=0), rtol=1e-5)
    unbiased = fit_linear(pairs().moments(), "ridge", **FIT)
    assert unbiased.bias is None


def test_parts_add_up_to_the_whole(tmp_path):
    given = pairs()
    whole, merged = given.moments(block=300), Moments(6, 4)
    for number, rows in enumerate(np.array_split(np.arange(300), [1, 120, 120])):
        Pairs(given.x[rows], given.y[rows]).moments(block=7).write(tmp_path / f"{number}.npz")
        merged.merge(Moments.read(tmp_path / f"{number}.npz"))
    np.testing.assert_allclose(merged.gram, whole.gram, rtol=1e-12)
    rows = np.column_stack([np.ones(300), *given]).astype(np.float64)
    np.testing.assert_allclose(whole.gram, np.einsum("ni,nj->ij", rows, rows), rtol=1e-10)
    length = np.linalg.norm(given.y.astype(np.float64), axis=1)
    np.testing.assert_allclose(merged.lengths, [length.min(), length.max()])
    assert merged.count == 300
    with pytest.raises(ValueError, match="moments of 5 inputs and 10 in all, needed 6 and 10"):
        merged.merge(Moments(5, 5))


def test_sums_of_many_like_vectors_keep_their_digits():
    """Sums in float32 would lose the small part of each."""
    x = np.full((200_000, 1), 1000.25, np.float32)
    x[::2] = 1000.0
    second = Pairs(x, x).moments(block=5000).second(centred=True)
    np.testing.assert_allclose(second.xx, [[0.125**2]], rtol=1e-6)


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 4), (6, 4), (3, 5)])
def test_procrustes_is_scipys(inputs, outputs):
    given = pairs(inputs, outputs)
    got = solve_procrustes(given.moments().second(centred=False))
    size = max(inputs, outputs)
    filled = [np.pad(each, ((0, 0), (0, size - each.shape[1]))) for each in given]
    rotation, _ = orthogonal_procrustes(filled[0].astype(float), filled[1].astype(float))
    np.testing.assert_allclose(got, rotation[:inputs, :outputs], atol=1e-6)


def test_procrustes_finds_a_rotation():
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    x = rng.normal(size=(50, 5)).astype(np.float32)
    given = Pairs(x, (x.astype(np.float64) @ rotation).astype(np.float32))
    own = fit_linear(given.moments(), "procrustes", **FIT)
    np.testing.assert_allclose(own.factors[0], rotation, atol=1e-5)


def search(second, ridge, rank, start):
    """Mean of |x W - y|^2, less what W does not change, plus the ridge: by BFGS."""
    strength = ridge * second.x_scale

    def value(flat):
        left, right = flat[: 6 * rank].reshape(6, rank), flat[6 * rank :].reshape(rank, 4)
        matrix = left @ right
        gradient = 2 * (second.xx @ matrix - second.xy + strength * matrix)
        loss = np.sum(matrix * (second.xx @ matrix - 2 * second.xy + strength * matrix))
        return loss, np.concatenate([(gradient @ right.T).ravel(), (left.T @ gradient).ravel()])

    return minimize(value, start, jac=True, method="BFGS", options={"maxiter": 3000})


@pytest.mark.parametrize("ridge", [1e-6, 0.5])
def test_low_rank_is_what_a_search_finds(ridge):
    second = pairs().moments().second(centred=False)
    left, right = solve_lowrank(second, ridge, 2)
    assert (left.shape, right.shape) == ((6, 2), (2, 4))
    starts = np.random.default_rng(0).normal(size=(3, 20))
    best = min((search(second, ridge, 2, start) for start in starts), key=lambda found: found.fun)
    found = best.x[:12].reshape(6, 2) @ best.x[12:].reshape(2, 4)
    np.testing.assert_allclose(left @ right, found, rtol=1e-3, atol=1e-4)


def test_low_rank_of_all_is_ridge():
    second = pairs().moments().second(centred=False)
    left, right = solve_lowrank(second, 0.01, 4)
    np.testing.assert_allclose(left @ right, solve_ridge(second, 0.01), rtol=1e-9)


def test_whitening_makes_dimensions_alike():
    x, y = pairs()
    second = Pairs(x, y).moments().second(centred=True)
    own, back = whitening(second.xx)
    white = (x - second.x_mean) @ own
    np.testing.assert_allclose(white.T @ white / len(x), np.eye(6), atol=1e-5)
    np.testing.assert_allclose(own @ back, np.eye(6), atol=1e-9)
    both, _, _ = whitened(second)
    for got in (both.xx, both.yy):
        np.testing.assert_allclose(got, np.eye(len(got)), atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mode", ["ridge", "procrustes", "lowrank"])
def test_a_map_of_whitened_vectors_is_folded(mode, bias):
    """As if the rows had been whitened, mapped and coloured again, one step after the other."""
    x, y = (each.astype(np.float64) for each in pairs())
    second = pairs().moments().second(centred=bias)
    (x_white, _), (y_white, y_colour) = whitening(second.xx), whitening(second.yy)
    white = Pairs((x - second.x_mean) @ x_white, (y - second.y_mean) @ y_white)
    inner = fit_linear(white.moments(), mode, **FIT)
    expected = inner.matrix()
    expected = (white.x @ expected) @ y_colour + second.y_mean
    own = fit_linear(pairs().moments(), mode, **FIT | {"bias": bias, "whiten": True})
    np.testing.assert_allclose(own.apply(pairs().x), expected, rtol=1e-4, atol=1e-4)
    assert (own.bias is None) == (not bias)


def test_whitened_ridge_shrinks_all_directions_alike():
    plain = fit_linear(pairs().moments(), "ridge", **at(0.0))
    shrunk = fit_linear(pairs().moments(), "ridge", **at(0.25) | {"whiten": True})
    np.testing.assert_allclose(shrunk.factors[0] * 1.25, plain.factors[0], rtol=1e-4)


@pytest.mark.parametrize("mode", ["ridge", "procrustes", "lowrank"])
def test_directions_without_pairs_do_no_harm(mode):
    x, y = pairs()
    x = np.column_stack([x, x[:, :2], np.zeros(len(x), np.float32)])
    options: dict[str, Any] = FIT | {"ridge": 1e-9, "bias": True, "whiten": True}
    got = fit_linear(Pairs(x, y).moments(), mode, **options)
    expected = fit_linear(pairs().moments(), mode, **options)
    np.testing.assert_allclose(got.apply(x), expected.apply(pairs().x), rtol=1e-3, atol=1e-3)


def test_what_pairs_do_not_determine_is_said():
    x, y = pairs(count=3)
    with pytest.raises(InputError, match=r"ridge 0\.0: the pairs do not span all 6 dimensions"):
        fit_linear(Pairs(x, y).moments(), "ridge", **at(0.0))
