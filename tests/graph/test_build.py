import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.graph import build_edges, build_nodes
from star_jax.graph.build import BuildOptions, build
from star_jax.graph.store import NOT_REMOVED, SPLIT_BITS, TIMED_BIT
from star_jax.shapes import NO_TIME
from tests.graph.worlds import ONE_THREAD, Edge, Text, World

maybe_time = st.none() | st.integers(-5, 20)


def small():
    """A little of everything."""
    return World(
        nodes={"member": [None, 3, None], "job": [5, None]},
        edges={
            "member__apply__job": [
                Edge(0, 0, t=9, weight=2.0, split=1),
                Edge(1, 0, t=7, removed_t=8, split=2),
                Edge(1, 1),
            ],
            "member__knows__member": [Edge(0, 0, t=1, split=1), Edge(2, 1, t=4, split=1)],
        },
        texts={"member": [Text(0, 4), Text(0), Text(2, 4), Text(0, 4, kind="resume")]},
        categorical={"job": {"kind": [3, 0]}},
        dense={"member": {"age": [1.0, None, 5.0]}},
    )


@given(
    st.lists(maybe_time, min_size=3, max_size=3),
    st.lists(maybe_time, min_size=2, max_size=2),
    st.lists(
        st.builds(
            Edge,
            st.integers(0, 2),
            st.integers(0, 1),
            maybe_time,
            maybe_time,
            st.integers(1, 9).map(float),
            st.integers(0, 3),
        ),
        max_size=20,
    ),
)
@settings(
    deadline=None,
    max_examples=15,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_rows_hold_the_edges_by_relation_and_time(tmp_path_factory, members, jobs, edges):
    world = World(
        nodes={"member": members, "job": jobs},
        edges={
            "member__apply__job": edges,
            "member__knows__member": [Edge(i % 3, j % 3) for i in range(2) for j in range(3)],
        },
    )
    store = world.build(tmp_path_factory.mktemp("world"))
    assert [edge.key for edge in store.relations["member"]] == [
        "job__rev_apply__member",
        "member__knows__member",
        "member__rev_knows__member",
    ]
    rows = store.adjacency["member"]
    assert rows.bounds[0, 0] == 0
    assert rows.bounds[-1, -1] == len(rows.sender) == len(edges) + 12
    np.testing.assert_array_equal(rows.bounds[1:, 0], rows.bounds[:-1, -1])
    for node in range(3):
        begin, end = rows.bounds[node, 0], rows.bounds[node, 1]
        assert sorted(rows.time[begin:end]) == rows.time[begin:end].tolist()
        found = [
            (
                int(rows.sender[i]),
                int(rows.time[i]),
                int(rows.removed[i]) if len(rows.removed) else NOT_REMOVED,
                float(rows.weight[i]),
                int(rows.flags[i] & SPLIT_BITS),
                bool(rows.flags[i] & TIMED_BIT),
            )
            for i in range(begin, end)
        ]
        expected = [
            (
                edge.receiver,
                max(NO_TIME if t is None else t for t in (edge.t, jobs[edge.receiver])),
                NOT_REMOVED if edge.removed_t is None else edge.removed_t,
                edge.weight,
                edge.split,
                edge.t is not None,
            )
            for edge in edges
            if edge.sender == node
        ]
        assert sorted(found) == sorted(expected)


def test_features_ids_and_texts_are_kept(tmp_path):
    store = small().build(tmp_path)
    assert store.node_time["member"].tolist() == [NO_TIME, 3, NO_TIME]
    assert store.categorical["job"].tolist() == [[3], [0]]
    assert store.categorical["member"].shape == (3, 0)
    np.testing.assert_allclose(store.dense["member"], [[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert store.meta.dense_stats["member"] == {"age": (3.0, 2.0)}
    ids = pq.read_table(tmp_path / "graph" / "nodes" / "member" / "ids.parquet")
    assert ids.to_pylist() == [{"idx": i, "id": f"member-{i}"} for i in range(3)]
    versions = store.text_versions["member"]
    assert versions.bounds.tolist() == [0, 2, 2, 3]
    assert versions.text.tolist() == [1, 0, 2]  # By time; the resume is not indexed.
    assert versions.time.tolist() == [NO_TIME, 4, 4]
    assert store.meta.text_kind == {"member": "profile"}
    assert store.meta.num_texts == {"member": 4}
    assert store.meta.num_edges["job__rev_apply__member"] == 3
    assert store.meta.wide_degree["job__rev_apply__member"] == 2


def test_statistics_know_nothing_of_nodes_after_the_training_edges(tmp_path):
    """The last training edge is of time 9; the fourth job comes later, the third had no time."""
    world = World(
        nodes={"member": [None], "job": [1, 9, None, 10]},
        edges={"member__apply__job": [Edge(0, 0, t=9, split=1), Edge(0, 1, t=20, split=2)]},
        dense={"job": {"pay": [1.0, 2.0, 3.0, 1000.0], "flat": [4.0] * 4, "none": [None] * 4}},
    )
    store = world.build(tmp_path)
    mean, deviation = store.meta.dense_stats["job"]["pay"]
    assert (mean, deviation) == (2.0, pytest.approx(math.sqrt(2 / 3)))
    assert store.meta.dense_stats["job"]["flat"] == (4.0, 1.0)
    assert store.dense["job"][:, 1:3].tolist() == [[0.0, 0.0]] * 4
    assert store.dense["job"][:, 3:].tolist() == [[0.0, 0.0, 1.0]] * 4


def test_ages_are_counted_in_days_or_thousandths_of_the_training_span(tmp_path):
    world = World(
        nodes={"member": [None], "job": [None]},
        edges={
            "member__apply__job": [
                Edge(0, 0, t=5_000, split=1),
                Edge(0, 0, t=25_000, split=1),
                Edge(0, 0, t=10**9, split=3),
            ]
        },
    )
    assert world.build(tmp_path / "a").meta.age_unit == 20.0
    options = BuildOptions(memory_limit_gib=0.5, num_threads=1, age_unit=7.0)
    assert world.build(tmp_path / "b", options=options).meta.age_unit == 7.0


def test_two_builds_are_the_same_to_the_byte_and_one_weight_makes_another_version(tmp_path):
    first = small().build(tmp_path / "a")
    options = dataclasses.replace(ONE_THREAD, num_threads=2)
    second = small().build(tmp_path / "b", options=options)
    assert first.version == second.version
    files = [artefacts.read_manifest(tmp_path / x / "graph", "graph").files for x in "ab"]
    assert files[0] == files[1]
    assert artefacts.digest(tmp_path / "a" / "graph") == artefacts.digest(tmp_path / "b" / "graph")
    changed = small()
    changed.edges["member__apply__job"][0].weight = 2.5
    assert changed.build(tmp_path / "c").version != first.version
    assert list((tmp_path / "a" / "graph").rglob(".*")) == []  # No scratch is left.


def test_order_of_the_table_s_rows_does_not_matter(tmp_path):
    """Edges of one row and one time: nothing but their own columns may order them."""
    world = small()
    world.edges["member__apply__job"] = [
        Edge(i % 3, 0, t=7, weight=float(i), split=i % 2) for i in range(40)
    ]
    first = world.build(tmp_path / "a")
    world.edges["member__apply__job"].reverse()
    assert world.build(tmp_path / "b").version == first.version


def test_types_without_edges_nodes_or_features_are_built(tmp_path):
    world = World(
        nodes={"member": [None], "job": [], "town": [None, None]},
        edges={"member__apply__job": []},
        texts={"job": []},
    )
    store = world.build(tmp_path)
    assert store.adjacency["town"].bounds.tolist() == [[0], [0]]
    assert store.adjacency["member"].bounds.tolist() == [[0, 0]]
    assert store.adjacency["job"].bounds.shape == (0, 2)
    assert store.meta.wide_degree["member__apply__job"] == 0


@pytest.mark.parametrize("most", [1, 4, 300])
def test_sizes_of_a_relation_are_those_of_all_its_degrees(most, monkeypatch):
    """However few of them are looked at at once."""
    monkeypatch.setattr(build_edges, "_CHUNK_NODES", 7)
    degrees = np.random.default_rng(most).integers(0, most, 200, dtype=np.int32)
    positive = degrees[degrees > 0]
    wide = int(np.quantile(positive, 0.99, method="higher")) if len(positive) else 0
    assert build_edges._sizes(degrees) == (degrees.sum(), wide, degrees.max())


def test_bounds_of_texts_do_not_depend_on_the_chunks(tmp_path, monkeypatch):
    first = small().build(tmp_path / "a")
    monkeypatch.setattr(build_nodes, "_CHUNK_NODES", 2)
    assert small().build(tmp_path / "b").version == first.version


def test_the_kind_of_text_can_be_chosen(tmp_path):
    options = dataclasses.replace(ONE_THREAD, text_kinds={"member": "resume"})
    store = small().build(tmp_path, options=options)
    assert store.text_versions["member"].text.tolist() == [3]
    options = dataclasses.replace(ONE_THREAD, text_kinds={"member": "letter"})
    with pytest.raises(InputError, match=r"text_kinds.member is 'letter', needed one of"):
        small().build(tmp_path / "b", options=options)


def _broken(change):
    world = small()
    change(world)
    return world


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.edges["member__apply__job"].append(Edge(3, 0)), "1 edges have a sender or"),
        (lambda w: w.edges["member__apply__job"].append(Edge(0, -1)), "1 edges have a sender or"),
        (lambda w: w.edges["member__apply__job"].append(Edge(0, 0, split=4)), "a split other"),
        (
            lambda w: w.edges["member__apply__job"].append(Edge(0, 0, weight=math.nan)),
            "a weight that is no finite number",
        ),
        (lambda w: w.categorical["job"].update(kind=[10, 0]), r"cat_kind ranges over \[0, 10\]"),
        (lambda w: w.texts["member"].append(Text(3)), "1 texts belong to no node"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message) as error:
        _broken(change).build(tmp_path)
    assert ".parquet" in str(error.value)
    assert not [path for path in tmp_path.iterdir() if path.name != "tables"]


def test_nodes_out_of_order_missing_or_too_many_are_refused(tmp_path):
    world = small()
    tables = world.write(tmp_path / "tables")
    good = pq.read_table(tables.nodes["job"])
    for bad, message in (
        (good.take([1, 0]), r"idx is not 0 \.\. n - 1"),
        (good.slice(0, 1), "has 1 rows, needed 2"),
        (
            pa.concat_tables([good, good.set_column(0, "idx", pa.array([2, 3], pa.int32()))]),
            "more than the 2 rows",
        ),
        (good.drop_columns(["cat_kind"]), r"lacks the columns \['cat_kind'\]"),
    ):
        tables = world.write(tmp_path / "tables")
        pq.write_table(bad, tables.nodes["job"])
        with pytest.raises(InputError, match=message):
            _build(world, tables, tmp_path / "graph")


def _build(world, tables, folder):
    with artefacts.writing(folder, "graph") as output:
        build(output, world.schema(), tables, "ordinal", ONE_THREAD)


def test_more_edges_than_offsets_can_count_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(build_edges, "_MAX_EDGES", 4)
    with pytest.raises(InputError, match="7 edges point to nodes of type 'member', needed at most"):
        small().build(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("memory_limit_gib", 0.01), ("num_threads", 0), ("age_unit", 0.0)]
)
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}, needed"):
        BuildOptions(**{field: value})


def test_the_manifest_holds_everything_about_the_graph(tmp_path):
    store = small().build(tmp_path)
    meta = artefacts.read_manifest(tmp_path / "graph", "graph").meta
    assert meta["version"] == store.version
    assert json.loads(json.dumps(meta))["schema"]["nodes"]["job"]["categorical"] == {"kind": 10}
    artefacts.verify(tmp_path / "graph")
