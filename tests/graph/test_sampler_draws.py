"""The random numbers of the sampler: uniform, independent, a function of their counters."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.stats import chi2, chisquare

from star_jax.graph.samplers import draws
from star_jax.graph.samplers.compiled import kernel
from star_jax.graph.samplers.picks import uniform
from star_jax.graph.samplers.picks.draw import Draw, Scratch
from star_jax.graph.samplers.sample import sampling_key
from star_jax.graph.samplers.visibility import Edges, Row, Rule
from star_jax.shapes import NO_TIME
from tests.graph.visible import TRAIN, draw, same_bytes
from tests.graph.worlds import Edge, World

_ALPHA = 1e-3  # The draws are fixed: a test that passes today passes always.
_MANY = 6000
HIDDEN = 3  # Split of the edges that nobody may see.


def picks(row, fanout, *, replace, num=_MANY, salt=5):
    """Positions picked by `num` nodes that all have the same row (1: visible, 0: not)."""
    row = np.asarray(row)
    n = len(row)
    edges = Edges(
        bounds=np.asarray([[0, n]], np.int32),
        sender=np.arange(n, dtype=np.int32),
        time=np.zeros(n, np.int64),
        removed=np.zeros(0, np.int64),
        weight=np.ones(n, np.float32),
        cumulative=np.zeros(0, np.float64),
        flags=np.where(row == 1, 1, HIDDEN).astype(np.uint8),
    )
    none = np.zeros(0, np.int64)
    rule = Rule(np.asarray([NO_TIME]), True, 0, TRAIN, np.zeros(2, np.int64), none)
    out, scratch = np.empty(fanout, np.int64), Scratch.of(n)
    found = []
    for node in range(num):
        start = np.uint64(draws.stream(np.uint64(11), np.uint64(salt), node))
        count = uniform.pick(
            edges,
            rule,
            Row(0, 0, n, 0, 0, 0, False),
            Draw(fanout, replace, start),
            scratch,
            out,
        )
        assert count == (fanout if replace else min(fanout, row.sum()))
        found.append(out[:count].copy())
    return np.stack(found)


ROWS = {
    "enumerated": [1, 0, 1, 1, 1, 0, 1, 1],
    "tried": [1, 0, 1, 1] * 6,
    # Two visible of 200: about half of the rows give up trying and are enumerated.
    "given up": [1] + [0] * 150 + [1] + [0] * 48,
}


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("name", ROWS)
def test_every_visible_edge_is_equally_likely(name, replace):
    row = ROWS[name]
    found = picks(row, 2 if name == "enumerated" else 1, replace=replace)
    visible = np.flatnonzero(row)
    counts = np.bincount(found.ravel(), minlength=len(row))
    assert counts.sum() == counts[visible].sum()
    assert chisquare(counts[visible]).pvalue > _ALPHA


@pytest.mark.parametrize("name", ["enumerated", "tried"])
def test_every_pair_without_replacement_is_equally_likely(name):
    row = ROWS[name][:18] if name == "tried" else ROWS[name]
    found = np.sort(picks(row, 2, replace=False), axis=1)
    pairs = list(itertools.combinations(np.flatnonzero(row).tolist(), 2))
    counts = np.asarray([(found == pair).all(axis=1).sum() for pair in pairs])
    assert counts.sum() == len(found)
    assert chisquare(counts).pvalue > _ALPHA


def test_neighbouring_counters_are_independent():
    """Picks of node i and node i + 1, of two relations, of two slots: no cell stands out."""
    row = [1] * 40
    a, b = picks(row, 2, replace=True), picks(row, 2, replace=True, salt=6)
    for x, y in ((a[:-1, 0], a[1:, 0]), (a[:, 0], b[:, 0]), (a[:, 0], a[:, 1])):
        table = np.histogram2d(x // 5, y // 5, bins=8)[0]
        expected = table.sum() / table.size
        statistic = ((table - expected) ** 2 / expected).sum()
        assert chi2.sf(statistic, table.size - 1) > _ALPHA


def test_random_integers_stay_below_their_bound_however_large():
    for n in (1, 3, 2**31 - 1):
        values = [draws.below(np.uint64(9), slot, n)[0] for slot in range(2000)]
        assert min(values) >= 0
        assert max(values) < n
        thirds = np.bincount(np.asarray(values) * 3 // n if n > 1 else [0], minlength=3)
        assert n == 1 or chisquare(thirds).pvalue > _ALPHA


def test_splitmix64_gives_its_published_values():
    """The first three outputs of the reference implementation for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + i * golden) % 2**64 for i in (1, 2, 3)]
    assert [int(draws.mix(np.uint64(state))) for state in states] == published


def test_keys_of_runs_and_steps_differ():
    keys = {sampling_key(seed, step) for seed in range(30) for step in range(30)}
    assert len(keys) == 900
    assert sampling_key(3, 4) == sampling_key(3, 4)


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    rng = np.random.default_rng(0)
    edges = [
        Edge(int(rng.integers(40)), int(rng.integers(60)), t=int(rng.integers(100)))
        for _ in range(1500)
    ]
    world = World(
        nodes={"member": [None] * 40, "job": [None] * 60}, edges={"member__apply__job": edges}
    )
    return world.build(tmp_path_factory.mktemp("market"))


def test_one_key_gives_the_same_bytes_on_any_number_of_threads(market):
    fanouts = dict.fromkeys(market.meta.num_edges, (4, 3))
    first, _, budget = draw(market, "member", np.arange(40), [80] * 40, fanouts=fanouts)

    def one(key):
        return draw(
            market, "member", np.arange(40), [80] * 40, fanouts=fanouts, budget=budget, key=key
        )[0]

    serial = [one(key) for key in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(serial, pool.map(one, range(12)), strict=True):
            same_bytes(a, b)
    assert serial[1].nodes["job"].node.tobytes() != serial[2].nodes["job"].node.tobytes()
    same_bytes(serial[0], first)


def test_a_node_draws_the_same_neighbours_whatever_else_is_in_the_batch(market):
    fanouts = dict.fromkeys(market.meta.num_edges, (4,))
    alone, _, _ = draw(market, "member", [7], [80], fanouts=fanouts)
    among, _, _ = draw(market, "member", [3, 9, 7], [20, 80, 80], fanouts=fanouts)
    key = "job__rev_apply__member"

    def jobs(subgraph, row):
        table = subgraph.hops[0][key]
        return subgraph.nodes["job"].node[table.index[row][table.mask[row]]].tolist()

    assert jobs(alone, 0) == jobs(among, 2) != []


def test_a_hub_costs_no_more_tries_than_a_small_row(monkeypatch):
    """Rows of which every other edge is hidden: edges looked at per draw, whatever the length."""
    fanout, num = 10, 60
    looked = 0
    plain = {name: getattr(uniform, name).py_func for name in ("pick", "_enumerate", "visible")}

    def counting(*args):
        nonlocal looked
        looked += 1
        return plain["visible"](*args)

    for name, function in (plain | {"visible": counting}).items():
        monkeypatch.setattr(uniform, name, function)
    means = {}
    for n in (100, 1000, 100_000):
        looked = 0
        picks([1, 0] * (n // 2), fanout, replace=False, num=num)
        means[n] = looked / num
    assert means[100] >= fanout
    assert means[1000] < 3 * fanout
    assert means[100_000] == pytest.approx(means[1000], rel=0.2)


def test_requests_that_do_not_fit_are_refused(market):
    fanouts = dict.fromkeys(market.meta.num_edges, (4,))
    _, _, budget = draw(market, "member", np.arange(8), [80] * 8, fanouts=fanouts)
    with pytest.raises(ValueError, match="9 seeds, needed at most the budget's 8"):
        draw(market, "member", np.arange(9), [80] * 9, fanouts=fanouts, budget=budget)
    with pytest.raises(ValueError, match=r"seeds of type member range over \[40, 40\]"):
        draw(market, "member", [40], [80], fanouts=fanouts, budget=budget)
    with pytest.raises(ValueError, match="no rows for the seed type 'town'"):
        draw(market, "town", [0], [80], fanouts=fanouts, budget=budget)
    wide = dict.fromkeys(market.meta.num_edges, (5,))
    with pytest.raises(ValueError, match="at hop 0 is 5, needed 0 to the budget's 4"):
        draw(market, "member", [0], [80], fanouts=wide, budget=budget)
    with pytest.raises(ValueError, match="visible_splits is 0"):
        draw(market, "member", [0], [80], fanouts=fanouts, budget=budget, visible_splits=0)
    with pytest.raises(ValueError, match=r"groups range over \[3, 3\], needed 0 to 0"):
        draw(
            market,
            "member",
            [0],
            [80],
            fanouts=fanouts,
            budget=budget,
            groups=np.asarray([3], np.int32),
        )


def test_kernels_compile_where_nothing_can_be_cached(caplog):
    """As in a read-only installation: the code has no place to leave its machine code."""
    scope = {}
    exec("def twice(x):\n    return 2 * x", scope)
    with caplog.at_level("INFO"):
        twice = kernel(scope["twice"])
    assert twice(21) == 42
    assert "set NUMBA_CACHE_DIR" in caplog.text
