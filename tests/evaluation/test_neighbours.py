import numpy as np
import pytest

from star_jax.evaluation.neighbours import nearest, overlap


def by_brute_force(vectors, rows, k):
    """Sorts all other rows by cosine in float64, the earlier one first where equal."""
    vectors = vectors.astype(np.float64)
    found = []
    for row in rows:
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vectors[row])
        cosine = vectors @ vectors[row] / lengths
        others = [other for other in np.lexsort((np.arange(len(vectors)), -cosine)) if other != row]
        found.append(others[:k])
    return np.asarray(found)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_blocks_find_what_brute_force_finds(block):
    rng = np.random.default_rng(block)
    vectors = (rng.standard_normal((200, 6)) * rng.uniform(0.1, 9, (200, 1))).astype(np.float32)
    rows = rng.permutation(200)[:40]
    blocks = (vectors[start : start + block] for start in range(0, 200, block))
    found = nearest(vectors[rows], rows, blocks, 10)
    np.testing.assert_array_equal(found, by_brute_force(vectors, rows, 10))


def test_of_equal_vectors_the_earlier_row_is_nearer():
    directions = np.eye(2, dtype=np.float32)[np.arange(40) % 2]
    rows = np.array([0, 1, 39])
    blocks = [directions[:9], directions[9:]]
    found = nearest(directions[rows], rows, blocks, 4)
    assert found.tolist() == [[2, 4, 6, 8], [3, 5, 7, 9], [1, 3, 5, 7]]


def test_fewer_rows_than_neighbours_are_an_error():
    with pytest.raises(ValueError, match="3 rows have 2 neighbours each, needed 3"):
        nearest(np.eye(3), np.arange(3), [np.eye(3)], 3)


def test_overlap_counts_shared_neighbours_in_any_order():
    first, second = np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.array([[4, 9, 1, 7], [1, 2, 3, 4]])
    assert overlap(first, second).tolist() == [0.5, 0.0]


def test_a_turned_space_has_the_same_neighbours():
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((80, 5)).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((5, 5)))[0].astype(np.float32)
    rows = np.arange(0, 80, 4)
    found = [nearest(v[rows], rows, [v], 10) for v in (vectors, vectors @ turn)]
    assert overlap(*found).tolist() == [1.0] * len(rows)
    assert np.mean(overlap(found[0], rng.integers(0, 80, found[0].shape))) < 0.4
