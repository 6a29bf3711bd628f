"""Personalised PageRank against exact power iteration on what the rule shows."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from star_jax.config import InputError
from star_jax.graph.samplers import ppr
from star_jax.graph.samplers.channels import channel_key, graph_of
from star_jax.graph.samplers.fanouts import FanoutConfig, channels
from star_jax.graph.samplers.sample import Exclusion
from star_jax.graph.samplers.sampler import PprConfig, SamplerConfig
from star_jax.graph.samplers.visibility import Rule
from star_jax.shapes import NO_TIME
from tests.graph.test_sampler_visibility import SLOW_BUILD, maybe_time, worlds
from tests.graph.visible import TRAIN, draw, sampled, visible_edges
from tests.graph.worlds import Edge, World

CAP = 1000


def exact(world, store, seed, alpha, time=None, splits=TRAIN, cap=CAP):
    """Stopping probabilities of walks from (type, node), by power iteration."""
    nodes = [(name, i) for name, times in world.nodes.items() for i in range(len(times))]
    place = {node: i for i, node in enumerate(nodes)}
    step = np.zeros((len(nodes), len(nodes)))
    for name, node in nodes:
        ends = Counter()
        for edge in store.relations[name]:
            for (far, _), count in visible_edges(world, edge.key, node, time, splits).items():
                ends[(edge.sender, far)] += count
        total = sum(ends.values())
        for end, count in ends.items():
            step[place[name, node], place[end]] = count / total
        if not total:
            step[place[name, node], place[name, node]] = 1.0
    mass = np.zeros(len(nodes))
    mass[place[seed]] = 1.0
    found = np.zeros(len(nodes))
    for _ in range(2000):
        found += alpha * mass
        mass = (1 - alpha) * mass @ step
    return dict(zip(nodes, found, strict=True))


def rule_of(time=None, splits=TRAIN):
    none = np.zeros(0, np.int64)
    bounds = np.zeros(2, np.int64)
    return Rule(np.asarray([NO_TIME if time is None else time]), True, 0, splits, bounds, none)


def scores(store, seed, config, walks=0, time=None, splits=TRAIN, key=1):
    types = list(store.relations)
    settings = ppr.Settings(config.alpha, config.epsilon, config.neighbour_cap, walks, np.uint64(9))
    most = 1 + walks * ppr.LONGEST_WALK if walks else config.most_pushed
    nodes, values = ppr.scores_of(
        graph_of(store, {}),
        rule_of(time, splits),
        types.index(seed[0]),
        seed[1],
        settings,
        most,
        np.uint64(key),
    )
    found = {
        (types[kind], node): value
        for (kind, node), value in zip(nodes.tolist(), values.tolist(), strict=True)
    }
    assert len(found) == len(values)
    return found


@given(worlds(), maybe_time, st.integers(1, 15), st.integers(0, 2))
@SLOW_BUILD
def test_forward_push_is_within_epsilon_of_the_exact_scores(world, time, splits, seed):
    """The error of every node is below epsilon times its degree, so all together below 0.01."""
    config = PprConfig(alpha=0.25, epsilon=1e-6)
    with tempfile.TemporaryDirectory() as folder:
        store = world.build(Path(folder))
        expected = exact(world, store, ("member", seed), 0.25, time, splits)
        found = scores(store, ("member", seed), config, time=time, splits=splits)
    assert sum(found.values()) == pytest.approx(1.0)
    for node, value in expected.items():
        assert found.get(node, 0.0) == pytest.approx(value, abs=2e-4)


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """100 members and 80 jobs; popular jobs are seen more often."""
    rng = np.random.default_rng(0)
    jobs = np.minimum(rng.exponential(12, 600).astype(int), 79)
    edges = [Edge(int(rng.integers(100)), int(job), t=i) for i, job in enumerate(jobs)]
    world = World(
        nodes={"member": [None] * 100, "job": [None] * 80, "skill": [None] * 20},
        edges={
            "member__apply__job": edges,
            "skill__of__member": [
                Edge(int(rng.integers(20)), int(rng.integers(100))) for _ in range(150)
            ],
        },
        kinds={"skill__of__member": "attribute"},
    )
    return world, world.build(tmp_path_factory.mktemp("market"))


def test_walks_stop_as_often_as_the_exact_scores_say(market):
    world, store = market
    expected = exact(world, store, ("member", 3), 0.25)
    found = scores(store, ("member", 3), PprConfig(), walks=20_000)
    assert sum(found.values()) == pytest.approx(1.0)
    far = sum(abs(found.get(node, 0.0) - value) for node, value in expected.items())
    assert far < 0.12  # The expected distance of 20,000 draws over 200 nodes is 0.08.
    assert found != scores(store, ("member", 3), PprConfig(), walks=20_000, key=2)


def test_adding_what_is_left_over_orders_far_nodes(market):
    """With a rough epsilon: most of the exact best are found."""
    world, store = market
    expected = exact(world, store, ("member", 3), 0.25)
    found = scores(store, ("member", 3), PprConfig(epsilon=1e-3))

    def best(of, count):
        jobs = sorted((node for node in of if node[0] == "job"), key=lambda n: (-of[n], n[1]))
        return set(jobs[:count])

    assert len(best(expected, 20) & best(found, 20)) >= 15


def test_a_sample_holds_the_best_of_every_type_and_neighbours_around_them(market):
    world, store = market
    sampler = SamplerConfig(kind="ppr", ppr=PprConfig(epsilon=1e-6, types=("job", "member")))
    config = FanoutConfig(total=(10, 3))
    found = channels(config, store.meta, sampler, ["member"])
    assert found == {channel_key("job", "member"): 5, channel_key("member", "member"): 5}
    fanouts = dict.fromkeys(store.meta.num_edges, (0, 3)) | {k: (n, 0) for k, n in found.items()}
    subgraph, stats, budget = draw(
        store, "member", [3, 40, 3], [300, 300, 600], fanouts=fanouts, sampler=sampler
    )
    assert stats.num_dropped == 0
    assert set(subgraph.hops[0]) == set(found)
    for row, (seed, time) in enumerate([(3, 300), (40, 300), (3, 600)]):
        expected = exact(world, store, ("member", seed), 0.25, time, 0b1111)
        for name in ("job", "member"):
            # Scores within rounding of the exact ones, in their order.
            table = subgraph.hops[0][channel_key(name, "member")]
            nodes = subgraph.nodes[name].node[table.index[row][table.mask[row]]].tolist()
            values = table.weight[row][table.mask[row]]
            best = sorted(
                (v for (t, n), v in expected.items() if t == name and (t, n) != ("member", seed)),
                reverse=True,
            )[:5]
            np.testing.assert_allclose(values, [expected[name, n] for n in nodes], atol=1e-4)
            np.testing.assert_allclose(values, [v for v in best if v > 0], atol=1e-4)
            assert (np.diff(values) <= 0).all()
    around = sampled(subgraph, budget, "member__apply__job", 1)
    assert around
    assert all(each.total() <= 3 for each in around.values())


def test_the_pair_in_question_carries_no_mass(tmp_path):
    """Member 0 applied to job 0 only: hidden, nothing is left to walk to."""
    world = World(
        nodes={"member": [None] * 2, "job": [None] * 2},
        edges={"member__apply__job": [Edge(0, 0), Edge(1, 0), Edge(1, 1)]},
    )
    store = world.build(tmp_path)
    sampler = SamplerConfig(kind="ppr")
    fanouts = dict.fromkeys(store.meta.num_edges, (0,)) | {
        channel_key(name, "member"): (4,) for name in ("member", "job")
    }
    exclude = Exclusion(np.asarray([0]), np.asarray([0]), np.asarray([0]), ("member__apply__job",))
    subgraph, _, _ = draw(
        store, "member", [0, 0], [None, None], fanouts=fanouts, sampler=sampler, exclude=exclude
    )
    for name, expected in (("job", [0, 2]), ("member", [0, 1])):
        mask = subgraph.hops[0][channel_key(name, "member")].mask
        assert mask[:2].sum(axis=1).tolist() == expected


def test_a_hub_counts_its_latest_edges(tmp_path):
    world = World(
        nodes={"member": [None], "job": [None] * 30},
        edges={"member__apply__job": [Edge(0, i, t=i) for i in range(30)]},
    )
    store = world.build(tmp_path)
    found = scores(store, ("member", 0), PprConfig(neighbour_cap=3))
    assert {node for _, node in found if _ == "job"} == {27, 28, 29}


def test_types_and_fanouts_that_do_not_fit_are_refused(market):
    _, store = market
    odd = SamplerConfig(kind="ppr", ppr=PprConfig(types=("town",)))
    with pytest.raises(InputError, match=r"sampler\.ppr\.types names 'town', needed one of"):
        channels(FanoutConfig(total=(4,)), store.meta, odd, ["member"])
    by_relation = FanoutConfig(total=(), per_relation={"member__apply__job": (4,)})
    with pytest.raises(InputError, match=r"needed fanouts\.total instead of fanouts\.per_relation"):
        channels(by_relation, store.meta, SamplerConfig(kind="ppr"), ["member"])
    assert channels(by_relation, store.meta, SamplerConfig(), ["member"]) == {}
    with pytest.raises(ValueError, match=r"alpha is 1\.0, needed between 0 and 1"):
        PprConfig(alpha=1.0)
    with pytest.raises(ValueError, match=r"epsilon is 0\.0, needed between 0 and 1"):
        PprConfig(epsilon=0.0)
    with pytest.raises(ValueError, match="neighbour_cap is 0, needed at least 1"):
        PprConfig(neighbour_cap=0)
