"""Splits by windows, cuts, shares or a column; the split that each edge belongs to."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest

from star_jax.config import InputError
from star_jax.pipeline.tables import read
from star_jax.pipeline.tables.schema import SplitColumn, TimeFractions, TimeWindows
from star_jax.pipeline.tables.sources import EdgeSource
from star_jax.shapes import NO_TIME
from tests.pipeline.tables import mini

DAY = mini.DAY


def _save_in(schema, split):
    """The schema that says which split `save` edges without any other sign belong to."""
    save = dataclasses.replace(schema.edges[1], visible_from=split)
    return dataclasses.replace(schema, edges=(schema.edges[0], save))


WINDOWS = TimeWindows(graph=40 * DAY, train=30 * DAY, val=10 * DAY, test=10 * DAY, end=mini.END)


def test_windows_do_not_overlap_and_the_graph_ends_before_train(tmp_path):
    tables = mini.tables()
    out, meta = mini.imported(tmp_path, tables, mini.schema(split=WINDOWS))
    windows = [10, 50, 80, 90, 100]
    bounds = [mini.START + d * DAY for d in windows]
    spans = []
    for name in read.SPLITS:
        pairs = read.read_pairs(out, "apply", name)
        spans.append((pairs.t.min(), pairs.t.max()))
    for (low, high), start, end in zip(spans, bounds[1:], bounds[2:], strict=False):
        assert start <= low <= high < end
    for name in ("member__apply__job", "member__save__job"):
        edges = read.read_edges(out, name)
        expected = np.searchsorted(bounds, edges.t, side="right") - 1
        assert np.array_equal(edges.split, expected)
        assert set(edges.split.tolist()) == {0, 1, 2, 3}
        assert edges.t[edges.split == 0].max() < bounds[1]
    excluded = meta.import_report["excluded"]
    saved = np.array(tables["save.parquet"]["t"])
    assert excluded["member__save__job edges outside the windows"] == int((saved < bounds[0]).sum())
    times = np.array(tables["events.parquet"]["time"])
    assert excluded["events.parquet events outside the windows"] == int((times < bounds[0]).sum())


def test_an_edge_without_its_split_goes_by_its_time(tmp_path):
    """Null is no split: an interaction is placed like one whose file has no such column."""
    expected, _ = mini.imported(tmp_path / "by time", mini.tables(), mini.schema(split=WINDOWS))
    tables = mini.tables()
    saved = tables["save.parquet"]
    saved["part"] = ["train", *[None] * (len(saved["t"]) - 1)]
    schema = mini.schema(split=WINDOWS)
    own = dataclasses.replace(schema.edges[1], split="part")
    out, _ = mini.imported(
        tmp_path / "own", tables, dataclasses.replace(schema, edges=(schema.edges[0], own))
    )
    by_time, got = (read.read_edges(w, "member__save__job") for w in (expected, out))
    first = (int(saved["sender"][0][1:]), int(saved["receiver"][0][1:]), saved["t"][0])
    keys = zip(got.sender.tolist(), got.receiver.tolist(), got.t.tolist(), strict=True)
    same = [key != first for key in keys]
    assert got.t.tolist() == by_time.t.tolist()
    assert len(got.t) - sum(same) == 1
    assert got.split[same].tolist() == by_time.split[same].tolist()
    assert set(got.split[same].tolist()) == {0, 1, 2, 3}
    assert got.split[np.logical_not(same)].tolist() == [read.SPLITS.index("train") + 1]


def test_attributes_are_not_visible_from_a_split():
    with pytest.raises(ValueError, match="visible_from test of the attribute job__has__skill"):
        dataclasses.replace(mini.schema().edges[0], visible_from="test")


def test_six_months_a_month_and_a_half_and_fifteen_days_in_seconds():
    split = TimeWindows(graph=180 * DAY, train=45 * DAY, val=5 * DAY, test=15 * DAY)
    assert (split.graph or 0) + split.train + split.val + split.test == 245 * DAY
    with pytest.raises(ValueError, match="windows must be longer than 0"):
        TimeWindows(graph=1, train=0, val=1, test=1)


def test_shares_of_the_events_cut_where_the_time_changes(tmp_path):
    tables = mini.tables()
    events = tables["events.parquet"]
    events["time"] = [t - t % (10 * DAY) + 10 * DAY for t in events["time"]]  # Many ties.
    schema = mini.schema(
        split=TimeFractions(val_share=0.2, test_share=0.2), allowed=("early event",)
    )
    out, _ = mini.imported(tmp_path, tables, schema)
    spans = [read.read_pairs(out, "apply", name).t for name in read.SPLITS]
    assert spans[0].max() < spans[1].min() <= spans[1].max() < spans[2].min()
    late = np.mean(np.array(events["time"]) >= spans[2].min())
    assert 0.1 < late < 0.35


def test_a_column_decides_without_any_time(tmp_path):
    tables = mini.tables()
    events = tables["events.parquet"]
    names = ["fit", "check", "exam"]
    events["part"] = [names[n % 3] for n in range(len(events["time"]))]
    del events["time"]
    schema = mini.schema(
        events=(mini.events_source(split="part", time=None),),
        split=SplitColumn(train_name="fit", val_name="check", test_name="exam"),
    )
    with pytest.raises(
        InputError, match=r"save.parquet: 35 rows, .* needed a split column, or vis"
    ):
        mini.imported(tmp_path / "refused", tables, schema)
    out, _ = mini.imported(tmp_path, tables, _save_in(schema, "train"))
    for name, own in zip(read.SPLITS, names, strict=True):
        pairs = read.read_pairs(out, "apply", name)
        wanted = [
            (int(s[1:]), int(r[1:]))
            for s, r, p, a in zip(
                events["sender"], events["receiver"], events["part"], events["action"], strict=True
            )
            if p == own and a == "APPLY"
        ]
        real = pairs.label == 1
        got = zip(pairs.sender[real].tolist(), pairs.receiver[real].tolist(), strict=True)
        assert sorted(got) == sorted(wanted)
        assert np.all(pairs.t == NO_TIME)


def test_edges_that_repeat_an_event_take_its_split(tmp_path):
    """By column the splits do not follow time, so only the event can tell."""
    tables = mini.tables()
    events = tables["events.parquet"]
    events["part"] = [read.SPLITS[n % 3] for n in range(len(events["time"]))]
    rows = [n for n, a in enumerate(events["action"]) if a == "APPLY"]
    tables["applied_by.parquet"] = {
        "sender": [events["receiver"][n] for n in rows] + ["j0"],
        "receiver": [events["sender"][n] for n in rows] + ["m0"],
        "t": [events["time"][n] for n in rows] + [mini.START - 5 * DAY],
    }
    schema = mini.schema(events=(mini.events_source(split="part"),), split=SplitColumn())
    turned = EdgeSource(
        sender="job",
        relation="applied_by",
        receiver="member",
        kind="interaction",
        file="applied_by.parquet",
        time="t",
    )
    task = mini.apply_task(edge_types=("member__apply__job", "job__applied_by__member"))
    schema = dataclasses.replace(
        schema, edges=(*_save_in(schema, "train").edges, turned), tasks=(task,)
    )
    with pytest.raises(
        InputError, match=r"unplaced interaction in applied_by.parquet: 1 rows, firs"
    ):
        mini.imported(tmp_path / "refused", tables, schema)
    turned = dataclasses.replace(turned, visible_from="val")
    schema = dataclasses.replace(schema, edges=(*schema.edges[:-1], turned))
    out, meta = mini.imported(tmp_path, tables, schema)
    edges = read.read_edges(out, "job__applied_by__member")
    codes = {
        (int(events["receiver"][n][1:]), int(events["sender"][n][1:]), events["time"][n]): 1 + n % 3
        for n in rows
    }
    got = zip(edges.sender.tolist(), edges.receiver.tolist(), edges.t.tolist(), strict=True)
    assert edges.split.tolist() == [codes.get(key, 2) for key in got]
    assert any("1 interactions have no split" in note for note in meta.import_report["notes"])


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_interactions_without_time_are_refused_unless_the_schema_places_them(tmp_path, missing):
    tables = mini.tables()
    times = [float(t) for t in tables["save.parquet"]["t"]]
    tables["save.parquet"]["t"] = [missing, missing, *times[2:]]
    with pytest.raises(
        InputError, match=r"save.parquet: 2 rows, first row 1, row 2; needed a time"
    ):
        mini.imported(tmp_path / "refused", tables, mini.schema())
    for split, code in read.SPLIT_CODES.items():
        out, meta = mini.imported(tmp_path / split, tables, _save_in(mini.schema(), split))
        edges = read.read_edges(out, "member__save__job")
        assert edges.split[edges.t == NO_TIME].tolist() == [code, code]
        unknown = meta.import_report["unknown"]
        assert unknown["times (null or NaN) in save.parquet:t"] == 2


def test_unknown_times_are_counted_wherever_they_may_be(tmp_path):
    tables = mini.tables()
    tables["member.parquet"]["t"][:3] = [None] * 3
    tables["texts_member.parquet"]["t"][0] = None
    _, usual = mini.imported(tmp_path / "usual", mini.tables(), mini.schema())
    _, meta = mini.imported(tmp_path / "bent", tables, mini.schema())
    unknown = [m.import_report.get("unknown", {}) for m in (meta, usual)]
    for where, added in (("member.parquet:t", 3), ("texts_member.parquet:t", 1)):
        name = f"times (null or NaN) in {where}"
        assert unknown[0][name] == unknown[1].get(name, 0) + added


def test_a_split_column_of_an_edge_file_wins(tmp_path):
    tables = mini.tables()
    save = tables["save.parquet"]
    save["split"] = [("train", "val", "test")[n % 3] for n in range(len(save["t"]))]
    schema = mini.schema()
    edge = dataclasses.replace(schema.edges[1], split="split")
    schema = dataclasses.replace(schema, edges=(schema.edges[0], edge))
    out, _ = mini.imported(tmp_path, tables, schema)
    edges = read.read_edges(out, "member__save__job")
    given = {t: 1 + n % 3 for n, t in enumerate(save["t"])}
    assert edges.split.tolist() == [given[t] for t in edges.t.tolist()]


def test_attributes_as_old_as_their_posting_lose_their_time(tmp_path):
    out, meta = mini.imported(tmp_path / "a", mini.tables(), mini.schema())
    edges = read.read_edges(out, "job__has__skill")
    assert np.all(edges.t == NO_TIME)
    assert np.all(edges.split == 0)
    assert not next(e for e in meta.edge_types if e.name == "job__has__skill").has_time
    tables = mini.tables()
    tables["job_skill.parquet"]["t"][0] += 1  # One that came later: then all keep their time.
    out, _ = mini.imported(tmp_path / "b", tables, mini.schema())
    assert np.all(read.read_edges(out, "job__has__skill").t != NO_TIME)


def test_attributes_of_those_who_act_keep_their_time(tmp_path):
    """A member's creation may be its first event: without time its attribute would tell of it."""
    tables = mini.tables()
    born = tables["member.parquet"]["t"]
    tables["member_skill.parquet"] = {
        "sender": tables["member.parquet"]["id"],
        "receiver": [n % mini.NUM_SKILLS for n in range(mini.NUM_MEMBERS)],
        "t": born,
    }
    schema = mini.schema()
    edge = EdgeSource(
        sender="member",
        relation="has",
        receiver="skill",
        kind="attribute",
        file="member_skill.parquet",
        time="t",
    )
    out, _ = mini.imported(tmp_path, tables, dataclasses.replace(schema, edges=(edge,)))
    assert np.array_equal(read.read_edges(out, "member__has__skill").t, born)


def test_vocabularies_number_values_by_their_first_node(tmp_path):
    out, meta = mini.imported(tmp_path, mini.tables(), mini.schema())
    nodes = pq.read_table(out / "nodes/member.parquet")
    values = pq.read_table(out / "vocab/member.city.parquet").to_pydict()
    decode = dict(zip(values["code"], values["value"], strict=True)) | {0: None}
    raw = mini.tables()["member.parquet"]
    assert [decode[code] for code in nodes["cat_city"].to_pylist()] == raw["city"]
    assert meta.node_types["member"].categorical == {"city": 5}
    assert nodes["dense_years"].to_pylist() == raw["years"]
    assert nodes["cohort_gender"].to_pylist() == raw["gender"]
    assert meta.cohorts == ["gender"]
