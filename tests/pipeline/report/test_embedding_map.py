import numpy as np
import pytest

from star_jax.pipeline.report.embedding_map import Colouring, explained, most_frequent, project


def test_projection_is_the_one_that_singular_vectors_give():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 6)) * [5, 3, 1, 1, 1, 1] + 10
    left, singular, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    expected = left[:, :2] * singular[:2]
    plane = project(vectors)
    signs = np.sign((plane.points * expected).sum(axis=0))
    np.testing.assert_allclose(plane.points, expected * signs, atol=1e-9)
    np.testing.assert_allclose(plane.kept, singular[:2] ** 2 / (singular**2).sum())


def test_explained_is_one_minus_the_variance_within():
    rng = np.random.default_rng(1)
    vectors, value = rng.standard_normal((60, 4)), rng.integers(-1, 2, 60)
    within = sum(
        ((vectors[value == v] - vectors[value == v].mean(axis=0)) ** 2).sum() for v in (-1, 0, 1)
    )
    whole = ((vectors - vectors.mean(axis=0)) ** 2).sum()
    share = explained(vectors, Colouring("a", ["x", "y"], value))
    assert share == pytest.approx(1 - within / whole)


def test_rare_values_share_the_last_colour():
    value = np.array([9, 9, 9, 4, 4, -1, *range(20, 28)])
    found = most_frequent("a", value, [f"v{i}" for i in range(30)])
    assert found is not None
    assert found.names[:2] == ["v9", "v4"]
    assert len(found.names) == 7
    assert found.value[:6].tolist() == [0, 0, 0, 1, 1, -1]
    assert (found.value == -1).sum() == 1 + 3  # None, and three values beyond the seven.


@pytest.mark.parametrize("value", [[3] * 30, [3] * 30 + [2], [-1] * 5, []])
def test_an_attribute_that_tells_nothing_apart_is_no_colouring(value):
    assert most_frequent("a", np.array(value, np.int64), list("abcdef")) is None
