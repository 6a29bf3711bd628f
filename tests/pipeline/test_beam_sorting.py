"""Parts of an order: whatever they are, put together they are all rows in order. Needs no Beam."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.config import InputError
from star_jax.pipeline.beam.sorting import (
    as_rows,
    choose_borders,
    read_parts,
    split_rows,
    write_part,
)

NAMES = ("a", "b", "c")
ROW = np.dtype(list(zip(NAMES, (np.int32, np.float32, np.uint8), strict=True)))


def rows_of(values):
    columns = np.array(values, np.int64).reshape(-1, 3).T
    return as_rows(dict(zip(NAMES, columns, strict=True)), ROW)


@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1),
    st.integers(1, 50),
    st.integers(1, 9),
    st.integers(1, 7),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_parts_put_together_are_sorted(tmp_path_factory, values, part_rows, block, step):
    folder, rows = tmp_path_factory.mktemp("parts"), rows_of(values)
    borders = choose_borders(rows[::step], len(rows), part_rows)
    blocks = {}
    for start in range(0, len(rows), block):
        for part, own in split_rows(rows[start : start + block], borders):
            blocks.setdefault(part, []).append(own)
    assert sorted(blocks) == list(range(len(borders) + 1))  # None is empty.
    paths = [folder / f"{part}.npy" for part in sorted(blocks)]
    for part, path in enumerate(paths):
        write_part(path, blocks[part])
    found = list(read_parts(paths, len(rows)))
    for name in NAMES:
        column = np.concatenate([columns[name] for columns in found])
        np.testing.assert_array_equal(column, np.sort(rows, order=list(NAMES))[name])
        assert all(columns[name].flags.c_contiguous for columns in found)


def test_parts_are_about_as_large_as_asked_for_however_skewed():
    """One receiver has nearly all edges; its other columns part them."""
    rng = np.random.default_rng(0)
    values = np.stack([np.zeros(6400), rng.permutation(6400), np.zeros(6400)], axis=1)
    rows = rows_of(values)
    borders = choose_borders(rows[::2], len(rows), 640)
    sizes = [len(own) for _, own in split_rows(rows, borders)]
    assert len(sizes) == 10
    assert max(sizes) < 2 * 640


def test_parts_with_rows_too_few_are_refused(tmp_path):
    write_part(tmp_path / "0.npy", [rows_of([(1, 1, 1)])])
    with pytest.raises(InputError, match=r"holds 1 rows, needed 2; remove it"):
        list(read_parts([tmp_path / "0.npy"], 2))
