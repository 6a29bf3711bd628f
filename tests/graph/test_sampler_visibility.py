import dataclasses
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from star_jax.graph.build import BuildOptions
from star_jax.graph.samplers.channels import channel_key
from star_jax.graph.samplers.sample import NO_EXCLUSION, Exclusion, sampling_key
from star_jax.graph.samplers.sampler import PprConfig, SamplerConfig
from star_jax.graph.store import (
    HAS_OWN_TIME,
    HAS_REMOVAL,
    HAS_TIME,
    HAS_WEIGHT,
    GraphStore,
)
from tests.graph.visible import (
    TEST,
    TRAIN,
    VAL,
    draw,
    same_bytes,
    sampled,
    sampled_and_visible,
    visible_edges,
)
from tests.graph.worlds import Edge, Text, World

KEYS = ("member__apply__job", "job__rev_apply__member", "member__knows__member", "job__in__town")
SLOW_BUILD = settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)

maybe_time = st.none() | st.integers(0, 20)


@st.composite
def worlds(draw_from, max_edges=40):
    """Three members, three jobs, two towns; edges of every split, repeated, to self, removed."""

    def edges(num_senders, num_receivers):
        found = draw_from(
            st.lists(
                st.tuples(
                    st.integers(0, num_senders - 1),
                    st.integers(0, num_receivers - 1),
                    maybe_time,
                    st.none() | st.integers(0, 20),
                    st.integers(0, 3),
                ),
                max_size=max_edges,
            )
        )
        # The weight names the edge.
        return [
            Edge(s, r, t, gone, weight=i + 1.0, split=split)
            for i, (s, r, t, gone, split) in enumerate(found)
        ]

    return World(
        nodes={
            "member": draw_from(st.lists(maybe_time, min_size=3, max_size=3)),
            "job": draw_from(st.lists(maybe_time, min_size=3, max_size=3)),
            "town": [None, None],
        },
        edges={
            "member__apply__job": edges(3, 3),
            "member__knows__member": edges(3, 3),
            "job__in__town": edges(3, 2),
        },
    )


@given(
    worlds(),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=3),
    maybe_time,
    st.integers(1, 15),
    st.booleans(),
)
@SLOW_BUILD
def test_what_is_sampled_is_what_the_rule_shows(world, pairs, time, splits, use_time):
    with tempfile.TemporaryDirectory() as folder:
        store = world.build(Path(folder))
        num_groups = 3
        exclude = Exclusion(
            group=np.repeat(np.arange(num_groups, dtype=np.int32), len(pairs)),
            sender=np.asarray([s for s, _ in pairs] * num_groups, np.int32),
            receiver=np.asarray([r for _, r in pairs] * num_groups, np.int32),
            edge_keys=("member__apply__job",),
        )
        subgraph, stats, budget = draw(
            store,
            "member",
            [0, 1, 2],
            [time] * num_groups,
            exclude=exclude,
            visible_splits=splits,
            use_time=use_time,
        )
    assert stats.num_dropped == 0
    checked = 0
    for hop, tables in enumerate(subgraph.hops):
        for key in tables:
            hidden = pairs if "apply" in key else ()
            receiver_type = key.split("__")[2]
            for row, found in sampled(subgraph, budget, key, hop).items():
                node = int(subgraph.nodes[receiver_type].node[row])
                assert found == visible_edges(world, key, node, time, splits, hidden, use_time)
                checked += 1
    assert checked >= 3


@given(worlds(), maybe_time, st.integers(1, 15), st.integers(1, 3), st.booleans())
@SLOW_BUILD
def test_a_small_fanout_takes_a_part_of_the_visible(world, time, splits, fanout, replace):
    with tempfile.TemporaryDirectory() as folder:
        store = world.build(Path(folder))
        subgraph, _, budget = draw(
            store,
            "member",
            [0, 1, 2],
            [time] * 3,
            visible_splits=splits,
            fanouts=dict.fromkeys(store.meta.num_edges, (fanout, 1)),
            sampler=SamplerConfig(replace=replace),
        )
    for hop, found, visible in sampled_and_visible(subgraph, budget, world, time, splits):
        k = fanout if hop == 0 else 1
        assert set(found) <= set(visible)
        if replace:
            assert found.total() == (k if visible else 0)
        else:
            assert found <= visible
            assert found.total() == min(k, visible.total())


@pytest.fixture
def history(tmp_path):
    """Member 0 applied to jobs 0 to 3 in the splits always, train, val, test, at times 1 to 4."""
    return World(
        nodes={"member": [None, None], "job": [None] * 4},
        edges={
            "member__apply__job": [Edge(0, i, t=i + 1, split=i, weight=i + 1.0) for i in range(4)]
        },
    ).build(tmp_path)


def _jobs(store, time, **options):
    subgraph, _, budget = draw(store, "member", [0], [time], **options)
    (found,) = sampled(subgraph, budget, "job__rev_apply__member", 0).values()
    return sorted(job for job, _ in found)


def test_the_rule_holds_in_training_and_in_evaluation(history):
    assert _jobs(history, 2, visible_splits=TRAIN) == [0]  # At the example's own time: hidden.
    assert _jobs(history, 3, visible_splits=TRAIN) == [0, 1]
    assert _jobs(history, 100, visible_splits=TRAIN) == [0, 1]
    assert _jobs(history, None, visible_splits=TRAIN) == [0, 1]
    assert _jobs(history, 1, visible_splits=VAL, use_time=False) == [0, 1]
    assert _jobs(history, 1, visible_splits=TEST, use_time=False) == [0, 1, 2]
    assert _jobs(history, 3, visible_splits=TEST, use_time=True) == [0, 1]


def test_an_edge_is_seen_until_it_is_removed(tmp_path):
    edges = [Edge(0, 0, t=1, removed_t=5), Edge(0, 1, t=1)]
    world = World(nodes={"member": [None], "job": [None] * 2}, edges={"member__apply__job": edges})
    store = world.build(tmp_path)
    assert _jobs(store, 4) == [0, 1]
    assert _jobs(store, 5) == [1]
    assert _jobs(store, 5, use_time=False) == [0, 1]
    assert _jobs(store, None) == [0, 1]


def test_the_target_and_its_reverse_are_hidden_at_every_hop_of_their_own_group_only(tmp_path):
    """Member 0 applied to job 1; group 0 holds that pair, group 1 asks for the same seed."""
    world = World(
        nodes={"member": [None] * 2, "job": [None] * 2},
        edges={"member__apply__job": [Edge(0, 1), Edge(0, 0), Edge(1, 1)]},
    )
    store = world.build(tmp_path)
    exclude = Exclusion(np.asarray([0]), np.asarray([0]), np.asarray([1]), ("member__apply__job",))
    for seed_type, seed, end, keys in (
        ("member", 0, 1, ("job__rev_apply__member", "member__apply__job")),
        ("job", 1, 0, ("member__apply__job", "job__rev_apply__member")),
    ):
        subgraph, _, budget = draw(store, seed_type, [seed] * 2, [None, None], exclude=exclude)
        seeds = sampled(subgraph, budget, keys[0], 0)
        assert [end in [far for far, _ in seeds[row]] for row in (0, 1)] == [False, True]
        deeper = sampled(subgraph, budget, keys[1], 1)
        near = subgraph.nodes[keys[1].split("__")[2]].node
        ends = [
            seed in [far for far, _ in found] for row, found in deeper.items() if near[row] == end
        ]
        assert ends == [True]  # The other end is reached in group 1 only.


def test_the_target_is_hidden_between_neighbours_too(tmp_path):
    """Member 0 reaches job 1 through a skill; there the target's reverse must not show."""
    world = World(
        nodes={"member": [None] * 2, "job": [None] * 2, "skill": [None]},
        edges={
            "member__apply__job": [Edge(0, 1), Edge(1, 1)],
            "skill__of__member": [Edge(0, 0)],
            "job__needs__skill": [Edge(1, 0)],
        },
    )
    store = world.build(tmp_path)
    fanouts = dict.fromkeys(store.meta.num_edges, (4, 4, 4))
    exclude = Exclusion(np.asarray([0]), np.asarray([0]), np.asarray([1]), ("member__apply__job",))
    for hidden, expected in ((exclude, {1}), (NO_EXCLUSION, {0, 1})):
        subgraph, _, budget = draw(store, "member", [0], [None], exclude=hidden, fanouts=fanouts)
        applicants = set()
        for hop in (1, 2):
            for found in sampled(subgraph, budget, "member__apply__job", hop).values():
                applicants |= {member for member, _ in found}
        assert applicants == expected


NOW = 50


def past_and_future(rng):
    """Members and skills without times, jobs of before and after NOW; edges and texts likewise."""

    def edges(num_senders, n):
        return [
            Edge(
                int(rng.integers(num_senders)),
                int(rng.integers(30)),
                t=int(rng.integers(100)) if rng.random() < 0.7 else None,
                weight=i + 1.0,
                split=int(rng.integers(2)),
            )
            for i in range(n)
        ]

    return World(
        nodes={
            "member": [None] * 12,
            "job": [int(t) for t in rng.integers(0, 100, 30)],
            "skill": [None] * 5,
        },
        edges={"member__apply__job": edges(12, 200), "skill__in__job": edges(5, 80)},
        texts={"job": [Text(int(rng.integers(30)), int(rng.integers(100))) for _ in range(60)]},
    )


def another_future(world, rng):
    """Everything at or after NOW shuffled, retimed, and partly taken away."""
    created = world.nodes["job"]
    nodes = world.nodes | {"job": [t if t < NOW else int(rng.integers(NOW, 200)) for t in created]}
    edges = {}
    for key, old in world.edges.items():
        num_senders = len(world.nodes[key.split("__")[0]])
        new = []
        for edge in old:
            to_come = created[edge.receiver] >= NOW
            late = edge.t is not None and edge.t >= NOW
            if (to_come or late) and rng.random() < 0.3:
                continue
            if to_come or late:
                edge = dataclasses.replace(edge, sender=int(rng.integers(num_senders)))
            if late:
                receiver, t = int(rng.integers(30)), int(rng.integers(NOW, 200))
                edge = dataclasses.replace(edge, receiver=receiver, t=t)
            new.append(edge)
        edges[key] = [new[i] for i in rng.permutation(len(new))]
    texts = [
        text if text.t < NOW else Text(int(rng.integers(30)), int(rng.integers(NOW, 200)))
        for text in world.texts["job"]
    ]
    return World(nodes=nodes, edges=edges, texts={"job": texts})


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["uniform", "weighted", "top_k", "last_n", "ppr", "ppr_walks"])
def test_permuting_the_future_changes_no_byte(tmp_path, seed, kind):
    rng = np.random.default_rng(seed)
    world = past_and_future(rng)
    options = BuildOptions(memory_limit_gib=0.5, num_threads=1, age_unit=10.0)
    stores = [
        world.build(tmp_path / "a", text=True, options=options),
        another_future(world, rng).build(tmp_path / "b", text=True, options=options),
    ]
    assert stores[0].version != stores[1].version
    results, budget = [], None
    sampler = SamplerConfig(kind=kind, ppr=PprConfig(num_walks=50))
    ranked = {}
    if sampler.by_rank:
        ranked = {channel_key(name, "member"): (3, 0) for name in ("member", "job", "skill")}
    for store in stores:
        subgraph, _, budget = draw(
            store,
            "member",
            np.arange(12),
            [NOW] * 12,
            fanouts=dict.fromkeys(store.meta.num_edges, (3, 2)) | ranked,
            budget=budget,
            sampler=sampler,
            key=sampling_key(seed, 7),
        )
        results.append(subgraph)
    assert results[0].nodes["job"].mask.sum() > 5
    assert (results[0].nodes["job"].text_row >= 0).any()
    same_bytes(*results)


def traits_world():
    """A relation per trait: dated, undated, weighted, removed, of one split or of several."""
    rng = np.random.default_rng(8)

    def edges(receivers, *, dated=False, weighted=False, removed=False, splits=(0,)):
        return [
            Edge(
                int(rng.integers(6)),
                int(rng.integers(receivers)),
                t=int(rng.integers(30)) if dated else None,
                removed_t=int(rng.integers(40)) if removed and i % 2 else None,
                weight=float(rng.integers(1, 9)) if weighted else 1.0,
                split=splits[i % len(splits)],
            )
            for i in range(90)
        ]

    return World(
        nodes={"member": [None] * 6, "job": [7, None, None, 20], "town": [None, None]},
        edges={
            "member__apply__job": edges(4, dated=True, splits=(1,)),
            "member__saves__job": edges(4, dated=True, splits=(0, 1, 2, 3)),
            "member__likes__job": edges(4, removed=True, splits=(1,)),
            "member__knows__member": edges(6, weighted=True),
            "member__in__town": edges(2),
        },
    )


TRAITS = {  # Splits, a time, one of its own, removal, weight.
    "member__apply__job": 0b0010 | HAS_TIME | HAS_OWN_TIME,
    "job__rev_apply__member": 0b0010 | HAS_TIME | HAS_OWN_TIME,
    "member__saves__job": 0b1111 | HAS_TIME | HAS_OWN_TIME,
    "job__rev_saves__member": 0b1111 | HAS_TIME | HAS_OWN_TIME,
    "member__likes__job": 0b0010 | HAS_REMOVAL,
    "job__rev_likes__member": 0b0010 | HAS_REMOVAL | HAS_TIME,  # Of the jobs' creation.
    "member__knows__member": 0b0001 | HAS_WEIGHT,
    "member__rev_knows__member": 0b0001 | HAS_WEIGHT,
    "member__in__town": 0b0001,
    "town__rev_in__member": 0b0001,
}


@pytest.mark.parametrize("kind", ["uniform", "last_n", "weighted"])
def test_what_a_relation_lacks_need_not_be_looked_at(kind, tmp_path):
    """The samples are those of a store that says every relation has everything."""
    store = traits_world().build(tmp_path)
    assert store.meta.traits == TRAITS
    careful = GraphStore.open(store.folder, store.text)
    careful.meta = dataclasses.replace(store.meta, traits=dict.fromkeys(TRAITS, 0xFF))
    pairs = [(0, 1), (2, 0), (2, 3), (3, 1)]
    exclude = Exclusion(
        *np.asarray([(g, *pair) for g in (0, 2) for pair in pairs], np.int32).T,
        edge_keys=("member__apply__job", "member__likes__job"),
    )
    for time, splits, use_time, fanout in itertools.product(
        (12, None), (0b0001, 0b0011, 0b1111), (True, False), (2, 30)
    ):
        quick, slow = (
            draw(
                each,
                "member",
                [0, 2, 3],
                [time] * 3,
                fanouts=dict.fromkeys(TRAITS, (fanout, fanout)),
                exclude=exclude,
                visible_splits=splits,
                use_time=use_time,
                sampler=SamplerConfig(kind=kind),
            )[0]
            for each in (store, careful)
        )
        same_bytes(quick, slow)
