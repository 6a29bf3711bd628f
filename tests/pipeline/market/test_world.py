"""The counts of a market, and that its planted truth is what happens in it."""

import numpy as np
import pytest

from star_jax.pipeline.market.behaviour import CONTACTED, job_events, show_jobs
from star_jax.pipeline.market.size import MarketConfig, counts
from star_jax.pipeline.market.truth import true_logit
from star_jax.pipeline.market.world import DAY_S, START, STRUCTURE, TEXT, make_world


@pytest.fixture(scope="module")
def acted():
    config = MarketConfig(size=2000, seed=3)  # Small ones run out of jobs to show.
    world = make_world(config)
    shown, weights = show_jobs(config, world)
    return config, world, shown, weights


def _logit(world, weights, rows):
    return true_logit(weights, world.members, rows.member, rows.time, world.jobs.offer, rows.job)


def test_counts_follow_the_paper_and_floors_are_named():
    got = counts(MarketConfig(size=20_000))
    # Table 10 and 11, in millions, over 376 million members.
    assert got.nodes["job"] == round(20_000 * 240 / 376)
    assert got.nodes["position"] == round(20_000 * 121 / 376)
    assert got.edges["member__apply__job"] == round(20_000 * 2722 / 376)
    assert got.floored == ("skill", "title")
    assert "recruiter" in counts(MarketConfig(size="small")).floored


def test_the_planted_logit_decides_who_applies(acted):
    _, world, shown, weights = acted
    probability = 1 / (1 + np.exp(-_logit(world, weights, shown)))
    order = np.argsort(probability)
    for part in np.array_split(order, 10):
        expected, variance = probability[part].sum(), (probability * (1 - probability))[part].sum()
        assert abs(shown.applied[part].sum() - expected) < 4 * variance**0.5 + 1


def test_open_jobs_are_shown_uniformly(acted):
    _, world, shown, weights = acted
    # Among all open jobs not shown before, neither logit nor age makes a job more visible.
    rng = np.random.default_rng(0)
    rows = rng.choice(len(shown.member), 400, replace=False)
    ranks = []
    for row, day in zip(rows, (shown.time[rows] - START) // DAY_S, strict=True):
        is_open = (world.jobs.first_day <= day) & (day <= world.jobs.last_day)
        assert is_open[shown.job[row]]
        earlier = (shown.member == shown.member[row]) & (shown.time < shown.time[row])
        is_open[shown.job[earlier]] = False
        jobs = np.flatnonzero(is_open)
        member, time = np.full(len(jobs), shown.member[row]), np.full(len(jobs), shown.time[row])
        logit = true_logit(weights, world.members, member, time, world.jobs.offer, jobs)
        chosen = jobs == shown.job[row]
        ranks.append(
            [
                (value < value[chosen]).mean() + (value == value[chosen]).mean() / 2 - 0.5
                for value in (logit, world.jobs.posted[jobs])
            ]
        )
    error = np.std(ranks, axis=0) / len(ranks) ** 0.5
    assert (np.abs(np.mean(ranks, axis=0)) < 4 * error).all()


def test_no_pair_is_shown_twice(acted):
    _, _, shown, _ = acted
    pairs = np.stack([shown.member, shown.job], 1)
    assert len(np.unique(pairs, axis=0)) == len(pairs)


def test_saving_never_comes_before_applying(acted):
    config, world, shown, weights = acted
    events, _, _ = job_events(config, world, shown, weights)
    applied = {
        (m, j): t
        for m, j, t, a in zip(events.member, events.job, events.time, events.action, strict=True)
        if a <= CONTACTED
    }
    both = [
        (t, applied[m, j])
        for m, j, t, a in zip(events.member, events.job, events.time, events.action, strict=True)
        if a > CONTACTED and (m, j) in applied
    ]
    assert both
    assert all(later > first for later, first in both)


def test_a_move_changes_the_logit_only_afterwards(acted):
    _, world, _, weights = acted
    movers = np.flatnonzero(world.members.moved < np.iinfo(np.int64).max)
    jobs = np.arange(len(movers)) % len(world.jobs.posted)
    moved = world.members.moved[movers]

    def logit(time):
        return true_logit(weights, world.members, movers, time, world.jobs.offer, jobs)

    np.testing.assert_array_equal(logit(moved), logit(moved - 50 * DAY_S))
    assert (logit(moved + 1) != logit(moved)).mean() > 0.2


def test_shares_are_as_asked():
    config = MarketConfig(size=1000, structure_share=0.2, text_share=0.1, opt_out_share=0.05)
    members = make_world(config).members
    assert (members.speaks == STRUCTURE).sum() == 200
    assert (members.speaks == TEXT).sum() == 100
    assert (~members.consent).sum() == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"size": 99},
            "market size 99: needed tiny, small, medium or a number of members from 100",
        ),
        ({"size": 200_001}, "to 200000"),
        ({"seed": -1}, "market seed -1, needed 0 or more"),
        ({"text_words": 19}, "market text_words 19, needed 20 or more"),
        ({"edit_share": 1.5}, "market edit_share 1.5, needed 0 to 1"),
        ({"structure_share": 0.3, "text_share": 0.3}, "needed at most 0.5"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MarketConfig(**options)
