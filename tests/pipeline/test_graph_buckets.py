"""Nodes of similar degrees share a shape: all neighbours fit, and little is padded."""

import itertools

import numpy as np
import pytest

from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.pipeline.graph_buckets import Shapes, _cut, make_buckets, needs
from tests.graph.worlds import Edge, World
from tests.pipeline.layered_world import visible_edges

NUM_JOBS = 200
FANOUT = (("member__apply__job", 500), ("skill__rev_needs__job", 2))
TRAIN_VAL = 0b0111


@pytest.fixture(scope="module")
def world():
    """Job j got j % 9 visible applications and one that is not, job 7 all there are."""
    rng = np.random.default_rng(0)
    members = range(300)
    edges = [
        Edge(int(member), job, t=1, split=1 + job % 2)
        for job in range(NUM_JOBS)
        for member in (members if job == 7 else rng.choice(300, job % 9, replace=False))
    ]
    edges += [Edge(0, job, t=5, split=3) for job in range(NUM_JOBS)]
    needs_skill = [Edge(job, s) for job in range(0, NUM_JOBS, 2) for s in range(1 + job % 5)]
    return World(
        nodes={"member": [None] * 300, "job": [None] * NUM_JOBS, "skill": [None] * 5},
        edges={"member__apply__job": edges, "job__needs__skill": needs_skill},
        kinds={"job__needs__skill": "attribute"},
    )


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    return world.build(tmp_path_factory.mktemp("buckets"))


def needed(store, fanout=FANOUT, **sampler):
    nodes = np.arange(NUM_JOBS, dtype=np.int32)
    return needs(store, "job", fanout, SamplerConfig(**sampler), TRAIN_VAL, nodes)


def test_a_node_needs_its_visible_neighbours_up_to_the_fanout(world, store):
    found = needed(store)
    for job in range(NUM_JOBS):
        keys = [key for key, _, _ in visible_edges(world, TRAIN_VAL, "job", job)]
        assert found[job].tolist() == [min(keys.count(key), most) for key, most in FANOUT]
    drawn = needed(store, replace=True)
    np.testing.assert_array_equal(drawn, np.where(found > 0, [[500, 2]], 0))


def test_every_node_fits_and_what_was_cut_was_not_needed(store):
    shapes = Shapes(most_rows=16, most_slots=64, program_slots=64)
    buckets = make_buckets(store, "job", FANOUT, SamplerConfig(), TRAIN_VAL, shapes)
    each = needed(store)
    number = np.searchsorted([bucket.most for bucket in buckets], each.sum(axis=1))
    assert len(np.unique(number)) == len(buckets) > 2
    for i, bucket in enumerate(buckets):
        here = each[number == i]
        width = np.array([bucket.fanout.get(key, 0) for key, _ in FANOUT])
        np.testing.assert_array_equal(width, here.max(axis=0))
        assert bucket.num_rows == 1 or bucket.num_slots <= 64
        sizes = dict(zip(bucket.layout.types, bucket.layout.sizes.tolist(), strict=True))
        assert sizes["job"] == [bucket.num_rows, 0]
        for name, fanout in (("member", width[0]), ("skill", width[1])):
            most = min(int(fanout) * bucket.num_rows, {"member": 300, "skill": 5}[name])
            assert sizes.get(name, [0, 0])[1] >= most
    hub = buckets[-1]
    assert (number == len(buckets) - 1).sum() == hub.num_rows == 1
    padded = [sum(bucket.fanout.values()) for bucket in buckets]
    assert each.sum() / sum(padded[i] for i in number) > 0.7


def test_cuts_are_the_cheapest_of_all():
    rng = np.random.default_rng(1)
    sizes = np.unique(rng.integers(0, 40, 7)).tolist()
    counts = [(size, int(rng.integers(1, 9))) for size in sizes]

    def cost(ends, price):
        padded = sum(count * min(end for end in ends if end >= size) for size, count in counts)
        return padded + price * len(ends)

    choices = [
        (*some, sizes[-1])
        for k in range(len(sizes))
        for some in itertools.combinations(sizes[:-1], k)
    ]
    for price in (1, 30, 10_000):
        best = min(cost(ends, price) for ends in choices)
        assert cost(_cut(counts, price), price) == best
    assert len(_cut(counts, 10_000)) == 1
    assert _cut([], 1) == []
