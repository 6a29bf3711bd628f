"""Adding to a graph makes what a build from all tables makes, to the byte."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from star_jax import artefacts, sorting
from star_jax.config import InputError
from star_jax.graph import append as append_module
from star_jax.graph import build_nodes
from star_jax.graph.additions import read_additions
from star_jax.graph.append import append
from star_jax.graph.store import GraphStore
from tests.graph.worlds import Edge, Text, World

LIMITS = (0.5, 1)


def add(parent, additions, output):
    """The parent with a folder of additions, opened."""
    with artefacts.writing(output, "graph") as partial:
        append(partial, parent, read_additions(additions, parent.meta), *LIMITS)
    return GraphStore.open(output, None)


def grow(whole, nodes, edges, texts, folder):
    """Builds the beginning of a world and adds the rest."""
    old = whole.begun(nodes, edges, texts)
    parent = old.build(folder / "old")
    whole.write(folder / "new", after=old)
    return parent, add(parent, folder / "new", folder / "grown")


def check_same(grown, expected):
    """Every file has the same bytes, and the manifest says the same but for where it came from."""
    files = [artefacts.read_manifest(each.folder, "graph").files for each in (grown, expected)]
    assert files[0] == files[1]
    assert grown.version == expected.version
    assert dataclasses.replace(grown.meta, lineage=()) == expected.meta


_time = st.none() | st.integers(-2, 4)  # Few of them, so that there are ties.
_SIZES = {"member": 5, "job": 4, "town": 3}


def _edges(key, weight, removed):
    sender, _, receiver = key.split("__")
    return st.lists(
        st.builds(
            Edge,
            st.integers(0, _SIZES[sender] - 1),
            st.integers(0, _SIZES[receiver] - 1),
            _time,
            removed,
            weight,
            st.integers(0, 3),
        ),
        max_size=14,
    )


def _columns(name, values):
    return st.lists(values, min_size=_SIZES[name], max_size=_SIZES[name])


@st.composite
def worlds(draw):
    """Three types and four relations, one of them inside a type; weights and removals or none."""
    weight = draw(st.sampled_from([st.just(1.0), st.integers(0, 2).map(float)]))
    removed = draw(st.sampled_from([st.none(), _time]))
    keys = ("member__apply__job", "member__save__job", "member__knows__member", "job__in__town")
    texts = st.builds(
        Text, st.integers(0, _SIZES["member"] - 1), _time, st.sampled_from(["profile", "resume"])
    )
    return World(
        nodes={name: draw(_columns(name, _time)) for name in _SIZES},
        edges={key: draw(_edges(key, weight, removed)) for key in keys},
        texts={"member": [Text(0), *draw(st.lists(texts, max_size=10))]},
        categorical={"job": {"kind": draw(_columns("job", st.integers(0, 9)))}},
        dense={
            "member": {
                "age": draw(_columns("member", st.none() | st.integers(0, 50).map(float))),
                "pay": draw(_columns("member", st.floats(-9, 9, width=32))),
            }
        },
    )


@given(worlds(), st.integers(1, 4), st.integers(0, 14), st.integers(1, 11))
@settings(
    deadline=None,
    max_examples=8,
    derandomize=True,
    phases=[Phase.generate],  # Shrinking builds for minutes.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_the_next_version_is_the_build_from_all_tables(
    tmp_path_factory, monkeypatch, whole, nodes, edges, texts
):
    monkeypatch.setattr(append_module, "_CHUNK", 3)  # Rows go on from piece to piece.
    monkeypatch.setattr(sorting, "_BATCH_ROWS", 4)
    monkeypatch.setattr(build_nodes, "_BATCH_ROWS", 2)
    folder = tmp_path_factory.mktemp("world")
    parent, grown = grow(whole, nodes, edges, texts, folder)
    check_same(grown, whole.build(folder / "whole", like=parent.meta))


def town():
    """The last rows of every list come later, in the order in which `begun` keeps them.

    The edges before them are all alike: of one weight, none removed.
    """
    return World(
        nodes={"member": [None, 3, 31, 30], "job": [5, None, 31], "town": [None]},
        edges={
            "member__apply__job": [
                Edge(0, 0, t=9, split=1),
                Edge(1, 0, t=7, split=1),
                Edge(0, 1, t=9, split=2),
                Edge(0, 2, t=33, removed_t=40, split=3),
                Edge(3, 1, t=32, split=3),
            ],
            "member__knows__member": [Edge(0, 1), Edge(1, 0), Edge(1, 1), Edge(1, 3)],
            "job__in__town": [Edge(0, 0), Edge(2, 0, weight=2.0)],
        },
        texts={"member": [Text(0, 4), Text(1), Text(0, 2), Text(0, 4, "resume"), Text(3, 30)]},
        categorical={"job": {"kind": [3, 0, 9]}},
        dense={"member": {"age": [1.0, 5.0, None, 1000.0]}},
    )


def test_a_plain_build_is_the_same_where_nothing_was_added_to_the_training_time(tmp_path):
    """The node and the edges that are new are younger than the last training edge."""
    parent, grown = grow(town(), 2, 3, 3, tmp_path)
    assert not len(parent.adjacency["job"].cumulative)
    assert not len(parent.adjacency["job"].removed)
    check_same(grown, town().build(tmp_path / "whole"))
    assert grown.meta.dense_stats["member"]["age"] == (3.0, 2.0)
    np.testing.assert_array_equal(grown.adjacency["town"].cumulative, [1.0, 3.0])
    assert grown.meta.max_degree["member__apply__job"] == 2
    assert grown.text_versions["member"].text.tolist() == [2, 0, 1, 4]  # 3 is a resume.


def test_features_keep_their_meaning_when_the_training_time_grows(tmp_path):
    whole = town()
    last = whole.edges["member__apply__job"][3]
    last.split, last.t = 1, 9_000
    parent, grown = grow(whole, 3, 3, 3, tmp_path)
    anew = whole.build(tmp_path / "whole")
    assert anew.meta.dense_stats["member"]["age"] != parent.meta.dense_stats["member"]["age"]
    assert anew.version != grown.version
    np.testing.assert_array_equal(grown.dense["member"][:3], parent.dense["member"])
    assert grown.dense["member"][3].tolist() == [(1000.0 - 3.0) / 2.0, 0.0]
    assert grown.meta.age_unit == parent.meta.age_unit != anew.meta.age_unit


def test_lineage_names_every_version_and_what_was_added(tmp_path):
    whole, first, second = town(), town().begun(2, 2, 2), town().begun(3, 4, 3)
    parent = first.build(tmp_path / "a")
    second.write(tmp_path / "more", after=first)
    middle = add(parent, tmp_path / "more", tmp_path / "b")
    whole.write(tmp_path / "rest", after=second)
    last = add(middle, tmp_path / "rest", tmp_path / "c")
    check_same(last, whole.build(tmp_path / "whole", like=parent.meta))
    assert [each.parent for each in last.meta.lineage] == [parent.version, middle.version]
    assert last.meta.lineage[0].num_nodes == {"member": 1, "job": 1, "town": 0}
    assert last.meta.lineage[0].num_texts == {"member": 1}
    assert last.meta.lineage[1].num_edges == {
        "member__apply__job": 1,
        "member__knows__member": 1,
        "job__in__town": 0,
    }
    for path, digest in last.meta.lineage[1].files.items():
        assert artefacts.file_digest(tmp_path / "rest" / path) == digest
    meta = artefacts.read_manifest(tmp_path / "c", "graph").meta
    assert json.loads(json.dumps(meta["lineage"]))[1]["parent"] == middle.version
    shutil.rmtree(tmp_path / "more" / "nodes")
    with pytest.raises(InputError, match=r"job__in__town\.parquet is in the graph already: it was"):
        add(last, tmp_path / "more", tmp_path / "d")
    assert not (tmp_path / "d").exists()
    assert list((tmp_path / "c").rglob(".*")) == []


@pytest.mark.parametrize("removed", [[None], [None, 5, 9]], ids=["none removed before", "some"])
def test_edges_that_differ_in_one_column_find_their_order(tmp_path, removed):
    """All between two nodes and of one time, so that each of the other columns decides for some."""
    rest = itertools.product([None, 5, 9], [1.0, 2.0], range(4))
    edges = [Edge(0, 0, t, *each) for each in rest for t in (3, None)]
    np.random.default_rng(0).shuffle(edges)  # pyright: ignore[reportArgumentType] # a list
    edges.sort(key=lambda edge: edge.removed_t not in removed)
    old = sum(edge.removed_t in removed for edge in edges) // 2
    whole = World({"member": [1], "job": [None]}, {"member__apply__job": edges})
    parent, grown = grow(whole, 1, old, 0, tmp_path)
    assert bool(len(parent.adjacency["job"].removed)) == (len(removed) > 1)
    check_same(grown, whole.build(tmp_path / "whole", like=parent.meta))


def test_an_old_version_is_left_as_it_was(tmp_path):
    parent, _ = grow(town(), 2, 3, 3, tmp_path)
    artefacts.verify(parent.folder)


def _swap(path, name, values):
    table = pq.read_table(path)
    field = table.schema.field(name)
    column = table.schema.get_field_index(name)
    pq.write_table(table.set_column(column, field, pa.array(values, field.type)), path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "edges/member__apply__job",
            {"receiver": [1, 3]},
            "1 edges have a sender or receiver outside its nodes; the graph has nodes 4 of type "
            "member and 3 of type job with those added",
        ),
        ("edges/member__apply__job", {"sender": [-1, 0]}, "1 edges have a sender or receiver"),
        ("edges/member__apply__job", {"weight": [1.0, -1.0]}, "1 edges have a weight that is no"),
        ("nodes/job", {"idx": [3]}, r"idx is not 2 \.\. n - 1 in order"),
        ("nodes/job", {"id": ["job-1"]}, "1 ids of job are there already, 'job-1' the first"),
        ("nodes/job", {"cat_kind": [10]}, r"cat_kind ranges over \[10, 10\], needed 0 to 9"),
        ("texts/member", {"text_id": [2, 3]}, r"text_id ranges over \[2, 3\] in 2 rows, needed"),
        ("texts/member", {"text_id": [4, 4]}, "needed every number from 3, where the graph's"),
        ("texts/member", {"entity": [3, 4]}, "1 texts belong to no node"),
    ],
)
def test_additions_that_contradict_the_graph_are_refused(tmp_path, file, change, message):
    whole, old = town(), town().begun(2, 3, 3)
    parent = old.build(tmp_path / "old")
    whole.write(tmp_path / "new", after=old)
    for name, values in change.items():
        _swap(tmp_path / "new" / f"{file}.parquet", name, values)
    with pytest.raises(InputError, match=message):
        add(parent, tmp_path / "new", tmp_path / "grown")
    assert not (tmp_path / "grown").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("edges/member__likes__job.parquet", "the graph has no edges of 'member__likes__job'"),
        ("edges/job__rev_apply__member.parquet", "the graph has no edges of 'job__rev_apply__"),
        ("nodes/planet.parquet", "the graph has no nodes of 'planet', needed one of .*'job'"),
        (
            "texts/job.parquet",
            r"the graph has no texts of 'job', needed one of \['member'\]; a new",
        ),
        ("pairs/apply.parquet", "is no table of additions, needed nodes/, edges/, texts/"),
        ("nodes/job.csv", "is no table of additions"),
        ("nodes/job.parquet", "is no Parquet file"),
    ],
)
def test_files_that_the_graph_has_no_place_for_are_refused(tmp_path, name, message):
    parent = town().build(tmp_path / "old")
    path = tmp_path / "new" / name
    path.parent.mkdir(parents=True)
    path.write_text("no table")
    with pytest.raises(InputError, match=message):
        read_additions(tmp_path / "new", parent.meta)


def test_additions_without_a_row_are_refused(tmp_path):
    parent = town().build(tmp_path / "old")
    with pytest.raises(InputError, match="new does not exist, needed a folder"):
        read_additions(tmp_path / "new", parent.meta)
    town().write(tmp_path / "new", after=town())
    with pytest.raises(InputError, match="has no rows, needed some in nodes/, edges/, texts/"):
        read_additions(tmp_path / "new", parent.meta)
