import itertools

import numpy as np
import pytest

from star_jax.pipeline.layouts import Table, choose_layouts, choose_packing, place
from star_jax.pipeline.lengths import choose_lengths, padded_length


def padded_tokens(lengths, choices):
    return sum(padded_length(int(length), choices) for length in lengths)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_other_choice_pads_less(seed, count):
    lengths = np.random.default_rng(seed).integers(1, 60, 20)
    chosen = choose_lengths(lengths, count)
    top = -(-int(lengths.max()) // 8) * 8
    others = itertools.combinations(range(8, top, 8), count - 1)
    best = min(padded_tokens(lengths, (*other, top)) for other in others)
    assert len(chosen) <= count
    assert padded_tokens(lengths, chosen) == best


def test_fewer_different_lengths_than_asked_for():
    assert choose_lengths(np.array([3, 5, 14]), 9) == (8, 16)


def test_too_long_is_an_error():
    with pytest.raises(ValueError, match="a text of 17 tokens, needed at most 16"):
        padded_length(17, (8, 16))


def place_by_search(lengths, rows):
    """Whether some assignment of texts to rows exists."""
    return any(
        all(length <= row for length, row in zip(lengths, chosen, strict=True))
        for chosen in itertools.permutations(rows, len(lengths))
    )


@pytest.mark.parametrize("seed", range(30))
def test_texts_are_placed_whenever_they_can_be(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, rng.integers(0, 6))
    layout = (Table(2, 8, 1), Table(1, 16, 1), Table(2, 32, 1))
    placed = place(lengths, layout)
    assert (placed is not None) == place_by_search(lengths, [8, 8, 16, 32, 32])
    if placed is not None:
        assert len(set(placed.tolist())) == len(lengths)
        assert (np.array([8, 8, 16, 32, 32])[placed] >= lengths).all()


def test_layouts_pad_less_than_one_table_and_the_last_holds_anything():
    rng = np.random.default_rng(0)
    samples = [rng.choice([9, 10, 60], 30, p=[0.5, 0.3, 0.2]) for _ in range(64)]
    layouts = list(choose_layouts(samples, 2, max_texts=40, max_length=61, row_multiple=4))
    slots = [sum(rows * length for rows, length, _ in layout) for layout in layouts]
    assert slots == sorted(slots)
    assert len(layouts) <= 3
    assert layouts[-1] == ((40, 64, 1),)
    assert slots[0] < 0.6 * slots[-1]
    assert np.mean([place(sample, layouts[0]) is not None for sample in samples]) >= 0.5
    assert all(place(sample, layouts[-2]) is not None for sample in samples)
    assert all(rows % 4 == 0 for layout in layouts for rows, _, _ in layout)
    assert place(np.full(40, 61), layouts[-1]) is not None


def test_one_table_is_the_layout_for_any_batch():
    layouts = choose_layouts([np.array([5])], 1, max_texts=5, max_length=9, row_multiple=8)
    assert layouts == (((8, 16, 1),),)


@pytest.mark.parametrize("seed", range(10))
def test_packing_fills_rows_and_keeps_to_slots(seed):
    rng = np.random.default_rng(seed)
    samples = [rng.integers(3, 40, rng.integers(20, 60)) for _ in range(8)]
    layout = choose_packing(samples, 64, num_chunks=3, row_multiple=4)
    ((rows, length, slots),) = layout
    assert length == 64
    assert rows % 4 == 0
    for sample in samples:
        placed = place(sample, layout, num_chunks=3)
        assert placed is not None
        assert len(set(placed.tolist())) == len(sample)
        row, slot = np.divmod(placed, slots)
        assert row.max() < 3 * rows
        assert np.bincount(row, weights=sample).max() <= 64
        for r in np.unique(row):  # Slots of a row are filled from the first on.
            assert sorted(slot[row == r]) == list(range(int((row == r).sum())))
    assert 3 * rows * 64 < 1.5 * max(sample.sum() for sample in samples) + 3 * 4 * 64
    assert place(np.full(3 * rows + 1, 33), layout, num_chunks=3) is None
