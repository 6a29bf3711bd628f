import dataclasses

import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.graph.samplers.calibrate import SeedBatch, calibrate
from star_jax.graph.samplers.fanouts import FanoutConfig, resolve
from star_jax.graph.samplers.sample import NO_EXCLUSION, sample, sampling_key
from star_jax.graph.samplers.sampler import SamplerConfig
from tests.graph.visible import ALL
from tests.graph.worlds import Edge, World


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Jobs have one town each, many applicants and up to five skills."""
    rng = np.random.default_rng(1)
    world = World(
        nodes={
            "member": [None] * 200,
            "job": [None] * 100,
            "town": [None] * 4,
            "skill": [None] * 9,
        },
        edges={
            "member__apply__job": [
                Edge(int(rng.integers(200)), int(rng.integers(100))) for _ in range(4000)
            ],
            "job__in__town": [Edge(i, i % 4) for i in range(100)],
            "job__needs__skill": [Edge(i, (i + j) % 9) for i in range(100) for j in range(5)],
        },
    )
    return world.build(tmp_path_factory.mktemp("store"))


def _batch(number):
    seeds = np.random.default_rng(number).integers(0, 200, 20)
    groups = np.arange(20, dtype=np.int32)
    return SeedBatch(seeds, groups, np.full(20, 10**6), NO_EXCLUSION, None)


def _budget(store, fanouts, **options):
    return calibrate(
        store,
        _batch,
        fanouts,
        seed_type="member",
        num_seeds=20,
        visible_splits=ALL,
        sampler=SamplerConfig(),
        **options,
    )


def _drawn(store, fanouts, budget, number, key):
    """What sampling a batch within the budget says of it."""
    batch = _batch(number)
    return sample(
        store,
        seed_type="member",
        seeds=batch.seeds,
        groups=batch.groups,
        group_time=batch.group_time,
        exclude=NO_EXCLUSION,
        visible_splits=ALL,
        fanouts=fanouts,
        budget=budget,
        key=key,
        seed_text_row=None,
        sampler=SamplerConfig(),
    )[1]


def test_calibrated_sizes_hold_for_other_batches(store):
    fanouts = resolve(FanoutConfig(total=(6, 4)), store.meta)
    budget = _budget(store, fanouts)
    sizes = dict(budget.rows)
    assert sizes["member"][0] == 24  # 20 seeds, rounded up to a multiple of 8.
    assert all(size % 8 == 0 for rows in sizes.values() for size in rows)
    assert sizes["town"] == (0, 0, sizes["town"][2])
    drawn = [_drawn(store, fanouts, budget, n, sampling_key(0, n)) for n in range(100, 120)]
    assert sum(stats.num_dropped for stats in drawn) == 0
    assert min(stats.fill for stats in drawn) > 0.7  # The headroom is a tenth, not a worst case.


def test_the_draws_that_were_looked_at_need_no_headroom(store):
    fanouts = resolve(FanoutConfig(total=(6, 4)), store.meta)
    exact = _budget(store, fanouts, num_batches=6, key=3, headroom=1.0)
    assert all(_drawn(store, fanouts, exact, n, 3).num_dropped == 0 for n in range(6))
    seeds, *hops = dict(exact.rows)["member"]
    rows = {name: tuple(max(size - 8, 0) for size in sizes) for name, sizes in exact.rows}
    rows["member"] = (seeds, *(max(size - 8, 0) for size in hops))
    smaller = dataclasses.replace(exact, rows=tuple(rows.items()))
    assert any(_drawn(store, fanouts, smaller, n, 3).num_dropped for n in range(6))
    assert any(_drawn(store, fanouts, exact, n, n).num_dropped for n in range(100))


def test_a_total_is_shared_by_what_relations_can_use(store):
    fanouts = resolve(FanoutConfig(total=(10, 2)), store.meta)
    into_job = {key: n for key, n in fanouts.items() if key.endswith("__job")}
    assert into_job == {
        "member__apply__job": (5, 1),
        "town__rev_in__job": (1, 1),  # A job has one town: the rest goes to the others.
        "skill__rev_needs__job": (4, 1),
    }
    assert fanouts["job__rev_apply__member"] == (10, 2)


def test_fanouts_per_relation_leave_out_the_others(store):
    config = FanoutConfig(total=(), per_relation={"job__rev_apply__member": (7, 3)})
    fanouts = resolve(config, store.meta)
    assert fanouts["job__rev_apply__member"] == (7, 3)
    assert {n for key, n in fanouts.items() if key != "job__rev_apply__member"} == {(0, 0)}
    budget = _budget(store, fanouts)
    assert [name for name, _ in budget.rows] == ["job", "member"]
    assert config.num_hops == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"per_relation": {"a__b__c": (1,)}}, "needed one of them"),
        ({"total": ()}, "needed one of them"),
        ({"total": (5, 0)}, "at least 1 at every hop"),
        ({"total": (), "per_relation": {"a__b__c": (1,), "d__e__f": (1, 2)}}, "hops, needed one"),
        ({"total": (), "per_relation": {"a__b__c": (-1,)}}, "negative"),
    ],
)
def test_contradictions_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        FanoutConfig(**values)


def test_an_unknown_relation_is_named(store):
    config = FanoutConfig(total=(), per_relation={"job__likes__town": (1,)})
    with pytest.raises(InputError, match="names 'job__likes__town', needed one of"):
        resolve(config, store.meta)


def test_a_budget_without_rows_for_a_sender_is_refused(store):
    fanouts = resolve(FanoutConfig(total=(3,)), store.meta)
    budget = _budget(store, fanouts)
    broken = dataclasses.replace(
        budget, rows=tuple((name, rows) for name, rows in budget.rows if name != "job")
    )
    with pytest.raises(ValueError, match="job__rev_apply__member but has no rows for 'job'"):
        sample(
            store,
            seed_type="member",
            seeds=np.arange(3),
            groups=np.arange(3, dtype=np.int32),
            group_time=np.full(3, 10),
            exclude=NO_EXCLUSION,
            visible_splits=ALL,
            fanouts=fanouts,
            budget=broken,
            key=1,
            seed_text_row=None,
            sampler=SamplerConfig(),
        )
