"""Draws by weight inside the compiled program: those of the host, whatever the weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.graph.engines.mesh import picks, words
from star_jax.graph.engines.mesh import weighted as mesh_weighted
from tests.graph.rows import LENGTHS, RowWorld, picks_of_both

WEIGHTS = {
    "equal": lambda rng, time: np.full(len(time), 0.3),
    "fractions": lambda rng, time: rng.random(len(time)),
    "mostly zeros": lambda rng, time: np.where(
        rng.random(len(time)) < 0.1, rng.random(len(time)), 0.0
    ),
    "one huge": lambda rng, time: np.where(
        rng.random(len(time)) < 0.03, 1e12, rng.random(len(time))
    ),
    "all sizes": lambda rng, time: 10.0 ** rng.uniform(-44, 38, len(time)),
    "below the smallest normal": lambda rng, time: 10.0 ** rng.uniform(-45, -37, len(time)),
    # A few units make a sum: some integers are those at the borders.
    "the smallest": lambda rng, time: np.full(len(time), 2.0**-149),
    "the largest": lambda rng, time: np.full(len(time), np.finfo(np.float32).max),
    "heavy when old": lambda rng, time: np.where(time < 15, 3e4, 1.0) + rng.random(len(time)),
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("replace", "share"), [(False, 0.8), (False, 0.1), (True, 0.3)])
def test_weights_of_any_size_are_drawn_as_the_host_draws_them(weights, replace, share):
    """Rows lose their old edges: where those are heavy, little is left of the sums."""
    lengths = np.asarray([*LENGTHS["short and empty"] * 20, *LENGTHS["long"], 1000])
    world = RowWorld(lengths, share, seed=4, weights=WEIGHTS[weights])
    found, expected = picks_of_both(world, "weighted", replace=replace)
    assert found == expected
    assert sum(map(len, expected)) > 5
    assert all(world.weight[position] > 0 for row in expected for position in row)


@pytest.mark.parametrize("weights", ["mostly zeros", "one huge", "all sizes"])
def test_integers_become_the_edge_whose_sum_is_the_first_above(weights):
    """Both integers at the border of every edge."""
    world = RowWorld(np.asarray([40] * 20), 1.0, seed=5, weights=WEIGHTS[weights])
    edges, _, row = world.on_device()
    begin = row.begin + np.arange(20) % 5 * 3
    zeros = jnp.zeros_like(begin)
    draw = picks.Draw(begin, row.end, zeros, words.word(0))
    sums = np.frexp(world.cumulative.reshape(20, 40))
    upto = np.ldexp(sums[0], 31).astype(np.int64) >> np.minimum(sums[1][:, -1:] - sums[1], 31)
    before = np.asarray([own[b - 1] if b else 0 for own, b in zip(upto, begin % 40, strict=True)])
    total, place = mesh_weighted.sums_of(draw, edges, row.begin, 40)
    np.testing.assert_array_equal(total, upto[:, -1] - before)
    inside = upto - before[:, None]
    drawn = np.clip(np.concatenate([inside - 1, inside], axis=1), 0, np.asarray(total)[:, None] - 1)
    expected = [np.searchsorted(own, x, side="right") for own, x in zip(inside, drawn, strict=True)]
    found = place(jnp.asarray(drawn, jnp.int32)) - np.asarray(row.begin)[:, None]
    some = np.asarray(total) > 0
    assert some.sum() > 10
    np.testing.assert_array_equal(np.asarray(found)[some], np.asarray(expected)[some])
