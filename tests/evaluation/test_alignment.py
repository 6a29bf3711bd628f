import numpy as np
import pytest

from star_jax.evaluation.alignment import Agreement


def agreement(got, old, bounds=(0,)):
    """Of rows that are counted in block by block."""
    found = Agreement(old.shape[1])
    for first, last in zip(bounds, (*bounds[1:], len(old)), strict=True):
        found.add(got[first:last], old[first:last])
    return found


@pytest.mark.parametrize("bounds", [(0,), (0, 20, 21)])
def test_blocks_add_up_to_the_definition(bounds):
    rng = np.random.default_rng(0)
    old = (3 + rng.standard_normal((50, 4))).astype(np.float32)
    new = (old + 0.3 * rng.standard_normal((50, 4))).astype(np.float32)
    found = agreement(new, old, bounds)
    error = np.mean([np.linalg.norm(a - b) for a, b in zip(old, new, strict=True)])
    cosine = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(old, new, strict=True)]
    unexplained = np.square(old - new).sum() / np.square(old - old.mean(axis=0)).sum()
    assert found.count == 50
    assert found.error == pytest.approx(error, rel=1e-5)
    assert found.relative_error == pytest.approx(unexplained**0.5, rel=1e-5)
    expected = {"alignment_error": error, "cosine": np.mean(cosine), "r2": 1 - unexplained}
    assert found.figures() == pytest.approx(expected, rel=1e-5)


def test_the_relative_error_has_no_unit_and_is_one_at_the_mean():
    rng = np.random.default_rng(1)
    old, new = rng.standard_normal((2, 30, 3))
    mean = np.broadcast_to(old.mean(axis=0), old.shape)
    assert agreement(old, old).relative_error == 0
    assert agreement(mean, old).relative_error == pytest.approx(1)
    scaled, plain = agreement(100 * new, 100 * old), agreement(new, old)
    assert scaled.relative_error == pytest.approx(plain.relative_error)
    assert scaled.error == pytest.approx(100 * plain.error)


def test_zeros_have_no_direction():
    found = agreement(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[2.0, 0.0], [3.0, 1.0]]))
    assert found.figures() == pytest.approx(
        {"alignment_error": (1 + 10**0.5) / 2, "cosine": 0.5, "r2": 1 - 11}
    )


def test_without_spread_or_rows_there_is_nothing_to_say():
    same = np.ones((4, 2))
    with pytest.raises(ValueError, match="all 4 old vectors are equal, needed different ones"):
        _ = agreement(same, same).relative_error
    assert Agreement(3).figures() is None
