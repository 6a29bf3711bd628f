"""Negatives: whose pool they come from, how many there are, and what they never are."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from star_jax.pipeline.tables import read
from star_jax.pipeline.tables.negatives import slots
from star_jax.pipeline.tables.schema import Negatives
from star_jax.shapes import NO_TIME
from tests.pipeline.tables import mini

ALL = {"uniform": 2.0, "popular": 1.0, "near": 1.0, "impressed": 1.0}


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    task = mini.apply_task(negatives=Negatives(train=ALL, evaluation=ALL, near="industry"))
    tables = mini.tables()
    folder = tmp_path_factory.mktemp("market")
    out, meta = mini.imported(folder, tables, mini.schema(tasks=(task,)))
    return tables, out, meta


def _events(tables, split, action="APPLY"):
    """(member, job, t, session) of a split, straight from the raw table."""
    low, high = {
        "train": (0, mini.VAL_FROM),
        "val": (mini.VAL_FROM, mini.TEST_FROM),
        "test": (mini.TEST_FROM, 1 << 60),
    }[split]
    e = tables["events.parquet"]
    rows = zip(e["sender"], e["receiver"], e["time"], e["session"], e["action"], strict=True)
    return [
        (int(s[1:]), int(r[1:]), t, session)
        for s, r, t, session, a in rows
        if a == action and low <= t < high
    ]


@pytest.mark.parametrize("split", read.SPLITS)
def test_negatives_come_from_the_same_splits_pool(market, split):
    tables, out, _ = market
    pool = {job for _, job, _, _ in _events(tables, split)}
    pairs = read.read_pairs(out, "apply", split)
    drawn = pairs.receiver[(pairs.label == 0) & (pairs.negative != "impressed")]
    assert len(drawn)
    assert set(drawn.tolist()) <= pool


@pytest.mark.parametrize("split", read.SPLITS)
def test_positives_are_the_events_of_the_split(market, split):
    tables, out, _ = market
    pairs = read.read_pairs(out, "apply", split)
    real = pairs.label == 1
    rows = zip(pairs.sender[real], pairs.receiver[real], pairs.t[real], strict=True)
    assert sorted((int(s), int(r), int(t)) for s, r, t in rows) == sorted(
        event[:3] for event in _events(tables, split)
    )


@pytest.mark.parametrize("split", read.SPLITS)
def test_groups_share_sender_and_time_and_start_with_their_positive(market, split):
    _, out, _ = market
    pairs = read.read_pairs(out, "apply", split)
    starts = np.flatnonzero(np.diff(pairs.group, prepend=-1))
    assert np.all(np.diff(pairs.group) >= 0)
    assert np.all(np.diff(pairs.t) >= 0)
    assert np.array_equal(starts, np.flatnonzero(pairs.label == 1))
    leader = starts[pairs.group]
    for column in (pairs.sender, pairs.t, pairs.sender_text, pairs.sender_resume):
        assert np.array_equal(column, column[leader])
    for kind in ("uniform", "popular", "near", "impressed"):
        keys = np.stack([pairs.group, pairs.receiver])[:, pairs.negative == kind]
        assert np.unique(keys, axis=1).shape == keys.shape


@pytest.mark.parametrize("split", read.SPLITS)
def test_negatives_are_no_positives_and_exist_already(market, split):
    tables, out, _ = market
    upto = read.SPLITS[: read.SPLITS.index(split) + 1]
    positives = {(s, r) for part in upto for s, r, _, _ in _events(tables, part)}
    created = np.array(tables["job.parquet"]["t"])
    pairs = read.read_pairs(out, "apply", split)
    rows = pairs.label == 0
    drawn = list(zip(pairs.sender[rows].tolist(), pairs.receiver[rows].tolist(), strict=True))
    assert not positives & set(drawn)
    assert np.all(created[pairs.receiver[rows]] <= pairs.t[rows])


@pytest.mark.parametrize("split", read.SPLITS)
def test_every_kind_keeps_its_promise(market, split):
    tables, out, meta = market
    pairs = read.read_pairs(out, "apply", split)
    starts = np.flatnonzero(pairs.label == 1)
    leader = pairs.receiver[starts[pairs.group]]
    near = pairs.negative == "near"
    assert near.any()
    assert np.array_equal(pairs.receiver[near] % 3, leader[near] % 3)  # Its industry.
    session = {(s, r): n for s, r, _, n in _events(tables, split)}
    shown = {(s, r, n): t for s, r, t, n in _events(tables, split, "SKIP")}
    for row in np.flatnonzero(pairs.negative == "impressed"):
        own = session[int(pairs.sender[row]), int(leader[row])]
        assert shown[int(pairs.sender[row]), int(pairs.receiver[row]), own] <= pairs.t[row]
    found = {kind: int((pairs.negative == kind).sum()) for kind in ALL}
    short = meta.import_report["short"]
    for kind, ratio in ALL.items():
        missing = short.get(f"apply {split}: {kind} negatives that do not exist", 0)
        assert found[kind] + missing == int(ratio * len(starts))
    assert {k: v for k, v in meta.tasks["apply"].counts[split].items() if k in ALL} == found


def test_impressed_negatives_exist_whenever_something_was_shown(market):
    tables, out, _ = market
    pairs = read.read_pairs(out, "apply", "train")
    shown = _events(tables, "train", "SKIP")
    possible = sum(
        any(a == s and n == m and t2 <= t for a, _, t2, m in shown)
        for s, _, t, n in _events(tables, "train")
    )
    assert 0 < possible == int((pairs.negative == "impressed").sum())


def test_popular_negatives_follow_the_number_of_events(tmp_path):
    tables = mini.tables()
    task = mini.apply_task(
        negatives=Negatives(train={"popular": 8.0, "uniform": 8.0}, evaluation={"uniform": 1.0})
    )
    out, _ = mini.imported(tmp_path, tables, mini.schema(tasks=(task,)))
    pairs = read.read_pairs(out, "apply", "train")
    events = np.bincount([r for _, r, _, _ in _events(tables, "train")], minlength=mini.NUM_JOBS)
    mean = {
        kind: events[pairs.receiver[pairs.negative == kind]].mean()
        for kind in ("popular", "uniform")
    }
    assert mean["popular"] > mean["uniform"]


@pytest.mark.parametrize(("ratio", "n"), [(1.0, 7), (0.5, 7), (2.5, 4), (0.1, 30), (3.0, 1)])
def test_the_ratio_is_exact(ratio, n):
    slot = slots(n, ratio)
    assert len(slot) == int(n * ratio + 1e-9)
    per_row = np.bincount(slot, minlength=n)
    assert per_row.max() - per_row.min() <= 1


def test_another_seed_draws_others_and_the_same_seed_the_same(tmp_path):
    tables, schema = mini.tables(), mini.schema()
    outs = [
        mini.imported(tmp_path / name, tables, schema, seed=seed)[0]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    contents = [(out / "pairs/apply/train.parquet").read_bytes() for out in outs]
    assert contents[0] == contents[1] != contents[2]


def test_unpaired_outcomes_are_pairs_of_their_own(tmp_path):
    tables = mini.tables()
    task = mini.apply_task(
        negatives=Negatives(
            train={"impressed": 1.0}, evaluation={"impressed": 1.0}, impressed="alone"
        ),
        class_weights=(1.0, 3.0),
    )
    out, meta = mini.imported(tmp_path, tables, mini.schema(tasks=(task,)))
    pairs = read.read_pairs(out, "apply", "train")
    assert np.array_equal(pairs.group, np.arange(len(pairs.group)))
    rows = pairs.label == 0
    got = zip(pairs.sender[rows], pairs.receiver[rows], pairs.t[rows], strict=True)
    assert sorted((int(s), int(r), int(t)) for s, r, t in got) == sorted(
        event[:3] for event in _events(tables, "train", "SKIP")
    )
    assert meta.tasks["apply"].class_weights == (1.0, 3.0)


def test_near_by_an_edge_type_shares_a_neighbour(tmp_path):
    tables = mini.tables()
    negatives = Negatives(train={"near": 1.0}, evaluation={"near": 1.0}, near="job__has__skill")
    task = mini.apply_task(negatives=negatives)
    out, _ = mini.imported(tmp_path, tables, mini.schema(tasks=(task,)))
    pairs = read.read_pairs(out, "apply", "train")
    leader = pairs.receiver[np.flatnonzero(pairs.label == 1)[pairs.group]]
    skills = [{(3 * j + k) % mini.NUM_SKILLS for k in range(2)} for j in range(mini.NUM_JOBS)]
    near = np.flatnonzero(pairs.negative == "near")
    assert len(near)
    assert all(skills[pairs.receiver[row]] & skills[leader[row]] for row in near)


def test_only_the_first_positive_of_a_pair_counts(tmp_path):
    tables = mini.tables()
    events = tables["events.parquet"]
    row = events["action"].index("APPLY")
    for column, values in events.items():
        values.append(values[row] + mini.DAY if column == "time" else values[row])
    out, meta = mini.imported(tmp_path, tables, mini.schema())
    assert meta.import_report["excluded"] == {
        "apply: repeated positives of a pair (the first counts)": 1
    }
    edges = pq.read_table(out / "edges/member__apply__job.parquet")
    assert len(edges) == events["action"].count("APPLY")  # As edges both are there.


def test_rankings_ask_warm_senders_about_the_splits_pool(market):
    tables, out, _ = market
    ranking = read.read_ranking(out, "apply", "test")
    assert ranking is not None
    earlier = _events(tables, "train") + _events(tables, "val")
    inside = _events(tables, "test")
    warm = {s for s, _, _, _ in inside} & {s for s, _, _, _ in earlier}
    assert ranking.sender.tolist() == sorted(warm)
    assert ranking.candidates.tolist() == sorted({r for _, r, _, _ in inside})
    for row, sender in enumerate(ranking.sender):
        assert ranking.relevant[row].tolist() == sorted(r for s, r, _, _ in inside if s == sender)
        assert ranking.excluded[row].tolist() == sorted(r for s, r, _, _ in earlier if s == sender)
        assert ranking.t[row] == min(t for s, _, t, _ in inside if s == sender)
    assert np.all(ranking.candidate_text >= 0)
    assert np.all(ranking.t != NO_TIME)


def test_warm_flags_tell_who_acted_in_an_earlier_split(market):
    tables, out, _ = market
    pairs = read.read_pairs(out, "apply", "val")
    earlier = _events(tables, "train")
    senders, receivers = {e[0] for e in earlier}, {e[1] for e in earlier}
    assert pairs.warm_sender.tolist() == [s in senders for s in pairs.sender.tolist()]
    assert pairs.warm_receiver.tolist() == [r in receivers for r in pairs.receiver.tolist()]
