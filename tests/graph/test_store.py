import pickle

import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.graph.schema import EdgeType, GraphSchema, NodeType, parse_key, reverse_key
from star_jax.graph.store import GraphStore, relation_salt
from tests.graph.test_build import small
from tests.graph.visible import draw
from tests.graph.worlds import Edge, World


def test_text_vectors_stay_where_they_are(tmp_path):
    store = small().build(tmp_path, text=True)
    assert store.text_size("member") == 3
    assert store.text_size("job") == 0
    np.testing.assert_allclose(store.text_vectors["member"][np.arange(4)][:, 0], np.arange(4))
    assert not list((tmp_path / "graph").rglob("vectors*"))
    off = GraphStore.open(tmp_path / "graph", None)
    assert off.text_size("member") == 0
    assert off.text_vectors == {}


def test_zeros_stand_where_text_vectors_would(tmp_path):
    store = small().build(tmp_path, text=True)
    zeros = GraphStore.open(store.folder, {"member": 3})
    assert zeros.text_vectors["member"].shape == store.text_vectors["member"].shape
    assert zeros.text_vectors["member"].dtype == store.text_vectors["member"].dtype
    assert not zeros.text_vectors["member"][np.arange(4)].any()
    assert pickle.loads(pickle.dumps(zeros)).text_size("member") == 3
    fanouts = dict.fromkeys(store.meta.num_edges, (4,))
    (graph, *_), (same, *_) = (
        draw(each, "member", [0, 1], [10] * 2, fanouts=fanouts) for each in (zeros, store)
    )
    np.testing.assert_array_equal(graph.nodes["member"].text_row, same.nodes["member"].text_row)


def test_vectors_of_other_tables_are_refused(tmp_path):
    store = small().build(tmp_path)
    fewer = small()
    fewer.texts["member"].pop()
    vectors = fewer.write_vectors(tmp_path / "text_embeddings")
    with pytest.raises(InputError, match="member holds 3 vectors, needed 4"):
        GraphStore.open(store.folder, vectors)
    other = small()
    other.texts = {"job": other.texts["member"]}
    with pytest.raises(InputError, match="no table of node type 'member'"):
        GraphStore.open(store.folder, other.write_vectors(tmp_path / "other"))


def test_a_missing_or_shortened_graph_is_named(tmp_path):
    with pytest.raises(InputError, match=r"graph is not a complete .*run `star build-graph`"):
        GraphStore.open(tmp_path / "graph", None)
    store = small().build(tmp_path)
    path = store.folder / "edges" / "job" / "sender.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"edges/job/sender.npy has \d+ bytes, needed"):
        GraphStore.open(store.folder, None)


def test_arrays_are_read_only_maps(tmp_path):
    store = small().build(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        store.adjacency["job"].sender[0] = 1
    assert isinstance(store.adjacency["job"].sender.base, np.memmap)


def test_worker_processes_open_the_files_anew(tmp_path):
    store = small().build(tmp_path, text=True)
    content = pickle.dumps(store)
    assert len(content) < 1000
    again = pickle.loads(content)
    assert again.version == store.version
    np.testing.assert_array_equal(again.adjacency["job"].sender, store.adjacency["job"].sender)


def test_salts_are_of_the_name_alone():
    """A fixed value: other draws after an upgrade would be another run."""
    assert relation_salt("member__apply__job") == 0x2350C822E5717726
    assert relation_salt("member__apply__job") != relation_salt("job__rev_apply__member")


def test_keys_and_reverses():
    assert parse_key("member__apply__job") == ("member", "apply", "job")
    assert reverse_key("member__apply__job") == "job__rev_apply__member"
    assert reverse_key("job__rev_apply__member") == "member__apply__job"
    with pytest.raises(ValueError, match="needed 'sender__relation__receiver'"):
        parse_key("member__job")


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([("member", "apply", "shop")], "joins 'shop', needed one of"),
        ([("member", "apply", "job")] * 2, "repeat a name"),
        ([("member", "rev_apply", "job")], "a prefix kept for reverse edges"),
        ([("member", "ap__ply", "job")], "needed one without '__'"),
    ],
)
def test_schemas_that_make_no_graph_are_refused(edges, message):
    node = NodeType(count=1, categorical={}, dense=())
    with pytest.raises(ValueError, match=message):
        GraphSchema(
            nodes={"member": node, "job": node},
            edges=tuple(
                EdgeType(sender=s, relation=r, receiver=t, kind="interaction") for s, r, t in edges
            ),
        )
    with pytest.raises(ValueError, match="needed 0 <= count < 2"):
        NodeType(count=2**31, categorical={}, dense=())


def test_seen_is_what_training_may_meet(tmp_path, monkeypatch):
    """Companies 0 and 3 have an edge that is always visible or of train; 1 and 4 later ones."""
    works = [Edge(0, 0, split=0), Edge(1, 1, t=5, split=2), Edge(1, 3, t=3, split=1)]
    works.append(Edge(0, 3, t=4, split=1))
    more = [Edge(2, 4, t=9, split=3), Edge(2, 3, t=8, split=2)]
    world = World(
        nodes={"member": [None] * 3, "company": [None] * 5},
        edges={"member__works__company": works, "member__follows__company": more},
    )
    store = world.build(tmp_path)
    monkeypatch.setattr("star_jax.graph.store._CHUNK_NODES", 2)
    assert store.seen("company").tolist() == [True, False, False, True, False]
    assert store.seen("member").tolist() == [True, True, False]
    pickled = pickle.dumps(GraphStore.open(store.folder, None, min_edges=2))
    several = pickle.loads(pickled)  # As workers get it.
    assert several.seen("company").tolist() == [False, False, False, True, False]
    assert several.seen("member").tolist() == [True, False, False]
    fanouts = dict.fromkeys(store.meta.num_edges, (4,))
    for splits in (0b0011, 0b1111):  # It does not grow with what is visible.
        subgraph, _, _ = draw(
            store, "company", [4, 3, 0], [10] * 3, fanouts=fanouts, visible_splits=splits
        )
        table = subgraph.nodes["company"]
        assert table.seen[:3].tolist() == [False, True, True]
        assert not table.seen[~table.mask].any()
