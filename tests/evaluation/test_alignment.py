import functools
import operator

import numpy as np
import pytest

from star_jax.evaluation.alignment import alignment


def test_blocks_add_up_to_the_definition():
    rng = np.random.default_rng(0)
    old = (3 + rng.standard_normal((50, 4))).astype(np.float32)
    new = (old + 0.3 * rng.standard_normal((50, 4))).astype(np.float32)
    bounds = ((0, 20), (20, 21), (21, 50))
    found = functools.reduce(operator.add, (alignment(old[a:b], new[a:b]) for a, b in bounds))
    error = np.mean([np.linalg.norm(a - b) for a, b in zip(old, new, strict=True)])
    unexplained = np.square(old - new).sum() / np.square(old - old.mean(axis=0)).sum()
    assert found.num_rows == 50
    assert found.error == pytest.approx(error, rel=1e-5)
    assert found.relative_error == pytest.approx(unexplained**0.5, rel=1e-5)


def test_the_relative_error_has_no_unit_and_is_one_at_the_mean():
    rng = np.random.default_rng(1)
    old, new = rng.standard_normal((2, 30, 3))
    mean = np.broadcast_to(old.mean(axis=0), old.shape)
    assert alignment(old, old).relative_error == 0
    assert alignment(old, mean).relative_error == pytest.approx(1)
    scaled = alignment(100 * old, 100 * new)
    assert scaled.relative_error == pytest.approx(alignment(old, new).relative_error)
    assert scaled.error == pytest.approx(100 * alignment(old, new).error)


def test_equal_old_vectors_have_no_relative_error():
    same = np.ones((4, 2))
    with pytest.raises(ValueError, match="all 4 old vectors are equal, needed different ones"):
        _ = alignment(same, same).relative_error
