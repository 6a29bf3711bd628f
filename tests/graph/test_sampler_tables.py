"""What `sample` puts into the node tables: rows, features, texts, ages; padding and overflow."""

import dataclasses
import math

import numpy as np
import pytest

from star_jax.graph.samplers.sample import sampling_key
from star_jax.graph.samplers.sampler import SamplerConfig
from tests.graph.visible import draw, sampled, text_as_of
from tests.graph.worlds import Edge, Text, World

KEY = "job__rev_apply__member"


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(3)
    edges = [
        Edge(
            int(rng.integers(10)),
            int(rng.integers(20)),
            t=int(rng.integers(50)) if i % 4 else None,
            weight=i + 1.0,
        )
        for i in range(120)
    ]
    texts = [
        Text(int(rng.integers(10)), int(rng.integers(60)) if i % 5 else None) for i in range(50)
    ]
    return World(
        nodes={"member": [None] * 11, "job": [None] * 20},  # Member 10 has no edge.
        edges={"member__apply__job": edges},
        texts={"member": texts, "job": [Text(i % 20, 10 * (i // 20)) for i in range(60)]},
        categorical={"job": {"kind": [i % 10 for i in range(20)]}},
        dense={"job": {"pay": [None if i % 3 == 0 else float(i) for i in range(20)]}},
    )


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    return world.build(tmp_path_factory.mktemp("world"), text=True)


def test_every_row_has_the_features_and_the_text_of_its_node_and_time(world, store):
    times = [5, 30, 100, None]
    subgraph, _, _ = draw(store, "member", [0, 1, 2, 3], times)
    members, jobs = subgraph.nodes["member"], subgraph.nodes["job"]
    for row in range(4):
        expected = text_as_of(world, "member", int(members.node[row]), times[row])
        found = members.text_row[row]
        assert (-1 if found < 0 else int(members.texts[found, 0])) == expected
    for row in np.flatnonzero(jobs.mask):
        node = int(jobs.node[row])
        assert jobs.categorical[row].tolist() == [node % 10]
        assert jobs.dense[row, 1] == (node % 3 == 0)
    values = np.asarray([i for i in range(20) if i % 3])
    known = jobs.mask & (jobs.node % 3 > 0)
    np.testing.assert_allclose(
        jobs.dense[known, 0], (jobs.node[known] - values.mean()) / values.std(), rtol=1e-6
    )
    assert (jobs.dense[jobs.mask & (jobs.node % 3 == 0), 0] == 0.0).all()
    used = members.text_row[members.text_row >= 0]
    assert set(used) == set(range(used.max() + 1))  # Every vector once, none unused.
    assert len(np.unique(members.texts[: used.max() + 1, 0])) == used.max() + 1


def test_a_node_of_two_groups_has_two_rows_with_the_texts_of_their_times(world, store):
    subgraph, _, _ = draw(store, "member", [1, 1], [5, 100])
    jobs = subgraph.nodes["job"]
    text = {}
    for row in np.flatnonzero(jobs.mask):
        text.setdefault(int(jobs.node[row]), []).append(int(jobs.texts[jobs.text_row[row], 0]))
    pairs = [found for found in text.values() if len(found) == 2]
    assert pairs
    for node, found in text.items():
        versions = {text_as_of(world, "job", node, time) for time in (5, 100)}
        assert set(found) <= versions


def test_within_a_group_every_node_has_one_row(store):
    seeds = np.arange(6)
    sampler = SamplerConfig(replace=True)
    groups = np.zeros(6, np.int32)
    subgraph, _, _ = draw(store, "member", seeds, [40], groups=groups, sampler=sampler)
    for table in subgraph.nodes.values():
        nodes = table.node[table.mask]
        assert len(np.unique(nodes)) == len(nodes)


def test_repeated_seeds_have_rows_of_their_own_and_the_same_neighbours(store):
    subgraph, _, budget = draw(
        store,
        "member",
        [4, 4, 5],
        [40],
        groups=np.zeros(3, np.int32),
        fanouts=dict.fromkeys(store.meta.num_edges, (3, 3)),
    )
    assert subgraph.nodes["member"].node[:3].tolist() == [4, 4, 5]
    rows = sampled(subgraph, budget, KEY, 0)
    assert rows[0] == rows[1] != rows[2]


def test_an_event_s_text_stays_with_its_seed(world, store):
    """Met as a neighbour, the member shows the last text before the group's time."""
    time, group = [30], np.zeros(2, np.int32)
    known = [text_as_of(world, "member", member, 30) for member in (1, 2)]
    pointed = np.asarray([known[0], 17], np.int32)
    subgraph, _, _ = draw(
        store, "member", [1, 2], time, groups=group, seed_text_row=pointed, use_time=False
    )
    members = subgraph.nodes["member"]

    def texts(member):
        rows = np.flatnonzero(members.mask & (members.node == member))
        return [int(members.texts[members.text_row[row], 0]) for row in rows]

    assert known[1] != 17
    assert texts(1) == [known[0]]  # The same text for all: one row.
    assert texts(2) == [17, known[1]]
    nothing = np.full(2, -1, np.int32)
    subgraph, _, _ = draw(store, "member", [1, 2], time, groups=group, seed_text_row=nothing)
    assert subgraph.nodes["member"].text_row[:2].tolist() == [-1, -1]


def test_ages_count_from_the_edge_s_own_time(world, store):
    subgraph, _, _ = draw(store, "member", [0], [60])
    table = subgraph.hops[0][KEY]
    unit = store.meta.age_unit
    for weight, age in zip(table.weight[table.mask], table.age[table.mask], strict=True):
        edge = world.edges["member__apply__job"][int(weight) - 1]
        expected = 0.0 if edge.t is None else math.log1p((60 - edge.t) / unit)
        assert age == pytest.approx(expected, rel=1e-6)
    assert (table.age[table.mask] > 0).any()
    timeless, _, _ = draw(store, "member", [0], [None])
    assert not timeless.hops[0][KEY].age.any()


def test_a_node_without_edges_has_masked_slots_only(store):
    subgraph, _, _ = draw(store, "member", [10, 0], [40, 40])
    table = subgraph.hops[0][KEY]
    assert not table.mask[0].any()
    assert table.mask[1].any()


def test_padding_is_zero_everywhere(store):
    subgraph, _, budget = draw(store, "member", [0, 1, 2], [40] * 3)
    assert budget.block("member", 0) == (0, 8)
    for table in subgraph.nodes.values():
        padding = ~table.mask
        assert padding.any()
        for name in ("node", "categorical", "dense"):
            assert not getattr(table, name)[padding].any()
        assert (table.text_row[padding] == -1).all()
    for hop in subgraph.hops:
        for table in hop.values():
            for part in (table.index, table.weight, table.age):
                assert not part[~table.mask].any()


def test_without_text_features_tables_have_no_text_column(world, tmp_path):
    store = world.build(tmp_path)
    subgraph, _, budget = draw(store, "member", [0], [40], seed_text_row=np.asarray([3], np.int32))
    assert subgraph.nodes["member"].texts.shape == (0, 0)
    assert (subgraph.nodes["job"].text_row == -1).all()
    assert set(dict(budget.texts).values()) == {0}


def _shrunk(budget, rows, texts):
    return dataclasses.replace(
        budget,
        rows=tuple((name, rows.get(name, sizes)) for name, sizes in budget.rows),
        texts=tuple((name, texts.get(name, size)) for name, size in budget.texts),
    )


@pytest.mark.parametrize("capacity", [0, 1, 5, 17])
def test_what_overflows_is_counted_and_leaves_no_dangling_index(store, capacity):
    seeds, times = np.arange(10), [45] * 10
    full, stats, budget = draw(store, "member", seeds, times)
    assert stats.num_dropped == 0
    shapes = (dict(budget.rows)["member"][0], 0, capacity)
    small = _shrunk(budget, {"job": (0, capacity, 0), "member": shapes}, {"job": 2})
    cut, cut_stats, _ = draw(store, "member", seeds, times, budget=small)
    kept = cut.hops[0][KEY].mask.sum()
    assert kept + cut_stats.dropped_edges["job"][0] == full.hops[0][KEY].mask.sum()
    assert cut_stats.dropped_edges["job"][0] > 0
    assert cut.nodes["job"].mask.sum() == min(capacity, full.nodes["job"].mask.sum())
    for hop in cut.hops:
        for key, table in hop.items():
            rows = table.index[table.mask]
            assert cut.nodes[key.split("__")[0]].mask[rows].all()
    jobs = cut.nodes["job"]
    assert (jobs.text_row < 2).all()
    lost = jobs.mask & (jobs.text_row < 0) & (jobs.node >= 0)
    assert cut_stats.dropped_texts["job"] == lost.sum()
    assert cut_stats.num_dropped >= cut_stats.dropped_edges["job"][0]


def test_a_smaller_fanout_than_the_budget_s_leaves_padding(store):
    fanouts = dict.fromkeys(store.meta.num_edges, (6, 4))
    _, _, budget = draw(store, "member", np.arange(10), [45] * 10, fanouts=fanouts)
    fewer = dict.fromkeys(store.meta.num_edges, (2, 0))
    subgraph, stats, _ = draw(
        store,
        "member",
        np.arange(10),
        [45] * 10,
        fanouts=fewer,
        budget=budget,
        key=sampling_key(0, 0),
    )
    assert stats.num_dropped == 0
    assert subgraph.hops[0][KEY].mask.shape == (16, 6)
    assert subgraph.hops[0][KEY].mask.sum(axis=1).max() == 2
    assert not subgraph.hops[1]["member__apply__job"].mask.any()
