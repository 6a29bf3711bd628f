"""Nodes of similar degrees share a shape: all neighbours fit, and little is padded."""

import itertools

import numpy as np
import pytest

from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.pipeline import graph_buckets
from star_jax.pipeline.graph_buckets import Shapes, _cut, make_buckets, needs, places
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
    number = places(each, FANOUT, buckets)
    assert len(np.unique(number)) == len(buckets) > 2
    widths = np.array([[bucket.fanout.get(key, 0) for key, _ in FANOUT] for bucket in buckets])
    np.testing.assert_array_equal(widths[-1], each.max(axis=0))
    for row, place in zip(each, number, strict=True):
        fitting = [i for i, width in enumerate(widths) if (row <= width).all()]
        assert place == min(fitting, key=lambda i: widths[i].sum())
    for bucket, width in zip(buckets, widths, strict=True):
        assert bucket.num_rows == 1 or bucket.num_slots <= 64
        sizes = dict(zip(bucket.layout.types, bucket.layout.sizes.tolist(), strict=True))
        assert sizes["job"] == [bucket.num_rows, 0]
        for name, fanout in (("member", width[0]), ("skill", width[1])):
            most = min(int(fanout) * bucket.num_rows, {"member": 300, "skill": 5}[name])
            assert sizes.get(name, [0, 0])[1] >= most
    assert (number == len(buckets) - 1).sum() == buckets[-1].num_rows == 1  # The hub.
    assert each.sum() / widths[number].sum() > 0.7


def test_a_bucket_saves_more_than_its_program_costs(store):
    """With one price for a program, fewer buckets pad more; a dear one leaves one bucket."""
    slots = []
    for price in (16, 400, 1_000_000):
        shapes = Shapes(program_slots=price)
        buckets = make_buckets(store, "job", FANOUT, SamplerConfig(), TRAIN_VAL, shapes)
        width = np.array([sum(bucket.fanout.values()) for bucket in buckets])
        padded = width[places(needed(store), FANOUT, buckets)].sum()
        slots.append((len(buckets), int(padded)))
    counts, padded = zip(*slots, strict=True)
    assert counts[0] > counts[1] > counts[2] == 1
    assert padded[0] < padded[1] < padded[2] == NUM_JOBS * 302
    assert padded[1] + 400 * (counts[1] - 1) < padded[2]


def test_a_hub_is_alone_even_if_no_sample_has_met_it(store, monkeypatch):
    monkeypatch.setattr(graph_buckets, "_MOST_SAMPLED", 8)
    monkeypatch.setattr(graph_buckets, "_CHUNK_NODES", 64)
    shapes = Shapes(program_slots=64)
    buckets = make_buckets(store, "job", FANOUT, SamplerConfig(), TRAIN_VAL, shapes)
    number = places(needed(store), FANOUT, buckets)
    assert np.flatnonzero(number == len(buckets) - 1).tolist() == [7]
    assert len(buckets) > 2


def test_cuts_are_the_cheapest_of_all():
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 9, 7)
    slots = np.sort(rng.integers(0, 40, 7))

    def cost(ends, price):
        padded = sum(
            count * slots[min(e for e in ends if e >= i)] for i, count in enumerate(counts)
        )
        return padded + price * len(ends)

    choices = [(*some, 6) for k in range(7) for some in itertools.combinations(range(6), k)]
    for price in (1, 30, 10_000):
        best = min(cost(ends, price) for ends in choices)
        assert cost(_cut(counts, slots, price), price) == best
    assert _cut(counts, slots, 10_000) == [6]
