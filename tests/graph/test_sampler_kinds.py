"""Ways to pick neighbours, each against a plain reading of what it promises."""

import itertools
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from star_jax.config import InputError
from star_jax.graph.samplers import draws
from star_jax.graph.samplers.compiled import kernel
from star_jax.graph.samplers.fanouts import FanoutConfig, resolve
from star_jax.graph.samplers.picks.draw import Draw, Scratch
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.samplers.visibility import Edges, Row, Rule
from star_jax.shapes import NO_TIME
from tests.graph.test_sampler_visibility import SLOW_BUILD, maybe_time, worlds
from tests.graph.visible import TRAIN, draw, sampled, sampled_and_visible
from tests.graph.worlds import Edge, World

KEY = "job__rev_apply__member"
_ALPHA = 1e-3  # The draws are fixed: a test that passes today passes always.


@pytest.mark.parametrize("kind", ["weighted", "top_k", "last_n"])
@given(worlds(), maybe_time, st.integers(1, 15), st.integers(1, 3))
@SLOW_BUILD
def test_every_kind_takes_a_part_of_the_visible(kind, world, time, splits, fanout):
    with tempfile.TemporaryDirectory() as folder:
        store = world.build(Path(folder))
        subgraph, _, budget = draw(
            store,
            "member",
            [0, 1, 2],
            [time] * 3,
            visible_splits=splits,
            fanouts=dict.fromkeys(store.meta.num_edges, (fanout, 1)),
            sampler=SamplerConfig(kind=kind),
        )
    for hop, found, visible in sampled_and_visible(subgraph, budget, world, time, splits):
        assert found <= visible
        assert found.total() == min(fanout if hop == 0 else 1, visible.total())
        if kind == "top_k":
            largest, taken = (
                sorted((w for _, w in edges.elements()), reverse=True) for edges in (visible, found)
            )
            assert taken == largest[: len(taken)]


def member_of(tmp_path, edges):
    """Member 0 and its applications."""
    world = World(nodes={"member": [None], "job": [None] * 20}, edges={"member__apply__job": edges})
    return world.build(tmp_path)


def jobs_of(store, time, fanout, sampler, **options):
    fanouts = dict.fromkeys(store.meta.num_edges, (fanout,))
    subgraph, _, budget = draw(
        store, "member", [0], [time], fanouts=fanouts, sampler=sampler, **options
    )
    (found,) = sampled(subgraph, budget, KEY, 0).values()
    return sorted(job for job, _ in found.elements())


def test_last_n_are_the_latest_that_are_visible(tmp_path):
    edges = [Edge(0, i, t=10 * i, split=3 if i == 7 else 1) for i in range(1, 10)]
    store = member_of(tmp_path, [*edges, Edge(0, 0)])
    last = SamplerConfig(kind="last_n")
    assert jobs_of(store, 85, 3, last, visible_splits=TRAIN) == [5, 6, 8]
    assert jobs_of(store, 15, 3, last, visible_splits=TRAIN) == [0, 1]
    assert jobs_of(store, None, 2, last) == [8, 9]


def test_top_k_of_equal_weights_are_the_latest(tmp_path):
    edges = [Edge(0, i, t=i, weight=2.0 if i % 2 else 1.0) for i in range(8)]
    store = member_of(tmp_path, edges)
    top = SamplerConfig(kind="top_k")
    assert jobs_of(store, 6, 2, top) == [3, 5]
    assert jobs_of(store, 6, 4, top) == [1, 3, 4, 5]


def test_max_age_bounds_interactions_from_below(tmp_path):
    edges = [Edge(0, i, t=10 * i) for i in range(8)]
    store = member_of(tmp_path, [*edges, Edge(0, 9)])
    for age, expected in ((20, [3, 4]), (25, [3, 4]), (30, [2, 3, 4]), (1000, [0, 1, 2, 3, 4])):
        assert jobs_of(store, 50, 10, SamplerConfig(max_age=age)) == expected
    assert jobs_of(store, 50, 10, SamplerConfig()) == [0, 1, 2, 3, 4, 9]
    assert jobs_of(store, None, 10, SamplerConfig(max_age=20)) == [*range(8), 9]
    assert jobs_of(store, 50, 10, SamplerConfig(max_age=20), use_time=False) == [3, 4, 5, 6, 7]


def test_max_age_leaves_attributes_alone(tmp_path):
    world = World(
        nodes={"member": [None], "job": [None] * 3, "skill": [None] * 2},
        edges={
            "member__apply__job": [Edge(0, 0, t=1), Edge(0, 1, t=90)],
            "skill__has__member": [Edge(0, 0, t=1), Edge(1, 0)],
        },
        kinds={"skill__has__member": "attribute"},
    )
    store = world.build(tmp_path)
    subgraph, _, budget = draw(store, "member", [0], [100], sampler=SamplerConfig(max_age=20))
    (jobs,) = sampled(subgraph, budget, KEY, 0).values()
    (skills,) = sampled(subgraph, budget, "skill__has__member", 0).values()
    assert [job for job, _ in jobs] == [1]
    assert sorted(skill for skill, _ in skills) == [0, 1]


WEIGHTS = [4.0, 1.0, 0.0, 2.5, 0.5, 2.0]


def picks(weights, fanout, *, replace, hidden=(), begin=0, end=None, num=6000):
    """Positions that `num` nodes pick from the same row, of which some may not be seen."""
    n = len(weights)
    edges = Edges(
        bounds=np.asarray([[0, n]], np.int32),
        sender=np.arange(n, dtype=np.int32),
        time=np.zeros(n, np.int64),
        removed=np.zeros(0, np.int64),
        weight=np.asarray(weights, np.float32),
        cumulative=np.cumsum(weights),
        flags=np.asarray([3 if i in hidden else 1 for i in range(n)], np.uint8),
    )
    rule = Rule(np.asarray([NO_TIME]), True, 0, TRAIN, np.zeros(2, np.int64), np.zeros(0, np.int64))
    pick = SamplerConfig(kind="weighted").pick
    out, scratch = np.empty(fanout, np.int64), Scratch.of(n)
    row = Row(0, begin, n if end is None else end, 0, 0, 0, False)
    found = []
    for node in range(num):
        start = np.uint64(draws.stream(np.uint64(3), np.uint64(8), node))
        count = pick(edges, rule, row, Draw(fanout, replace, start), scratch, out)
        found.append(tuple(out[:count].tolist()))
    return found


def sequences(weights, allowed, fanout, *, replace):
    """Probability of every sequence of picks."""
    found = {}
    for chosen in itertools.product(allowed, repeat=fanout):
        if not replace and len(set(chosen)) < fanout:
            continue
        probability, left = 1.0, sum(weights[i] for i in allowed)
        for i in chosen:
            probability *= weights[i] / left
            left -= 0 if replace else weights[i]
        if probability:
            found[chosen] = probability
    return found


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    ("padding", "hidden"), [(0, ()), (0, (3,)), (300, ())], ids=["tried", "hidden", "given up"]
)
def test_picks_follow_the_weights_of_what_is_left(padding, hidden, replace):
    """The row lies among others; with much heavy padding that is hidden, tries are given up."""
    weights = [9.0, *WEIGHTS, *[50.0] * padding, 7.0]
    last = 1 + len(WEIGHTS)
    hidden = {1 + i for i in hidden} | set(range(last, last + padding))
    found = picks(weights, 2, replace=replace, hidden=hidden, begin=1, end=last + padding, num=6000)
    allowed = [i for i in range(1, last) if i not in hidden]
    expected = sequences(weights, allowed, 2, replace=replace)
    counts = Counter(found)
    assert set(counts) <= set(expected)
    observed = np.asarray([counts[chosen] for chosen in expected])
    assert chisquare(observed, np.asarray(list(expected.values())) * len(found)).pvalue > _ALPHA


@pytest.mark.parametrize(
    ("weights", "begin", "fanout"),
    [
        ([1e30, 1e20, 4.0, 3.0, 2.0, 1.0], 0, 4),
        ([1e30, *[1.0, 3.0] * 20], 1, 1),
        ([1e9, *[1.0, 3.0] * 20], 0, 2),
    ],
    ids=["after heavy ones", "after heavy ones of the past", "after refusals"],
)
def test_light_edges_are_told_apart_beside_heavy_ones(weights, begin, fanout):
    """Though no sum that counts the heavy ones has digits for their weights."""
    found = picks(weights, fanout, replace=False, begin=begin)
    heavy = sum(weight > 10 for weight in weights[begin:])
    assert {each[:heavy] for each in found} == {tuple(range(heavy))}
    light = range(begin + heavy, len(weights))
    expected = sequences(weights, light, fanout - heavy, replace=False)
    counts = Counter(each[heavy:] for each in found)
    observed = np.asarray([counts[chosen] for chosen in expected])
    assert chisquare(observed, np.asarray(list(expected.values())) * len(found)).pvalue > _ALPHA


def test_weights_of_zero_are_never_drawn_and_a_short_row_is_taken_whole():
    assert {tuple(sorted(each)) for each in picks(WEIGHTS, 6, replace=False, num=50)} == {
        (0, 1, 3, 4, 5)
    }
    assert picks([0.0, 0.0], 2, replace=True, num=3) == [()] * 3
    assert picks(WEIGHTS, 2, replace=False, begin=2, end=2, num=3) == [()] * 3


def test_running_sums_begin_anew_with_every_relation_and_node(tmp_path, monkeypatch):
    """Across the borders of chunks too; none is written where all weights are equal."""
    monkeypatch.setattr("star_jax.sorting._BATCH_ROWS", 7)
    rng = np.random.default_rng(1)
    world = World(
        nodes={"member": [None] * 3, "job": [None] * 4},
        edges={
            "member__apply__job": [
                Edge(int(rng.integers(3)), int(rng.integers(4)), t=i, weight=float(rng.random()))
                for i in range(50)
            ],
            "member__knows__member": [
                Edge(int(rng.integers(3)), int(rng.integers(3)), weight=float(i)) for i in range(20)
            ],
        },
    )
    store = world.build(tmp_path / "a")
    for adjacency in store.adjacency.values():
        starts = np.unique(adjacency.bounds)
        for begin, end in itertools.pairwise(starts.tolist()):
            np.testing.assert_allclose(
                adjacency.cumulative[begin:end], np.cumsum(adjacency.weight[begin:end]), rtol=1e-6
            )
    equal = member_of(tmp_path / "b", [Edge(0, 1, weight=3.0), Edge(0, 2, weight=3.0)])
    assert equal.adjacency["member"].cumulative.size == 0
    weighted, uniform = (
        jobs_of(equal, None, 1, SamplerConfig(kind=kind), key=5) for kind in ("weighted", "uniform")
    )
    assert weighted == uniform


def test_where_all_weights_are_zero_nothing_is_drawn_by_weight(tmp_path):
    store = member_of(tmp_path, [Edge(0, 1, weight=0.0), Edge(0, 2, weight=0.0)])
    assert jobs_of(store, None, 1, SamplerConfig(kind="weighted")) == []
    assert len(jobs_of(store, None, 1, SamplerConfig())) == 1


def test_full_takes_every_neighbour_or_says_that_there_are_too_many(tmp_path, monkeypatch):
    edges = [Edge(0, i % 20, t=i) for i in range(40)]
    store = member_of(tmp_path, edges)
    fanouts = resolve(FanoutConfig(total=(1,)), store.meta, "full")
    assert fanouts[KEY] == (40,)
    subgraph, _, budget = draw(
        store, "member", [0], [30], fanouts=fanouts, sampler=SamplerConfig(kind="full")
    )
    (found,) = sampled(subgraph, budget, KEY, 0).values()
    assert found.total() == 30
    monkeypatch.setattr("star_jax.graph.samplers.fanouts._MAX_FULL", 39)
    with pytest.raises(InputError, match="job__rev_apply__member up to 40, needed at most 39"):
        resolve(FanoutConfig(total=(1,)), store.meta, "full")


def test_configs_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match="max_age is 0, needed at least 1"):
        SamplerConfig(max_age=0)
    with pytest.raises(ValueError, match="replace is for uniform, weighted, ppr, ppr_walks"):
        SamplerConfig(kind="top_k", replace=True)


def twice_of(inner):
    """A compiled function around another one, made anew in every process."""

    def twice(x):
        return inner(inner(x))

    return kernel(twice, calls=inner.py_func.__name__)


_COMPILES = """
import sys
import numpy as np
from star_jax.graph.samplers import compiled, draws
compiled._Cache._digest += sys.argv[1]
from tests.graph.test_sampler_kinds import twice_of
twice = twice_of(draws.mix)
twice(np.uint64(1))
print(sum(twice.stats.cache_misses.values()))
"""


def test_machine_code_serves_until_any_source_changes(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def misses(change):
        command = [sys.executable, "-c", _COMPILES, change]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return int(done.stdout)

    assert [misses(""), misses(""), misses("another source"), misses("")] == [1, 0, 1, 0]
