"""The engine inside the program draws what the host draws, array by array, on any mesh."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.graph.engines.host import HostEngine
from star_jax.graph.engines.mesh.engine import MeshEngine
from star_jax.graph.engines.mesh.features import TextPrecision, place_features
from star_jax.graph.engines.mesh.topology import place_edges, spread
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.parallel.mesh import FSDP, ROW_AXES, MeshConfig, make_mesh
from tests.graph.busy import APPLY, SEEDS, make_world, question_of, seeds_of
from tests.graph.worlds import Edge, World


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    return world.build(tmp_path_factory.mktemp("world"), text=True)


def drawn_by_both(
    store, mesh, question, batches, key, *, slack=8.0, precision: TextPrecision = "float32"
):
    """Per device, the subgraph of the host, that of the program, and what was left out by each."""
    host, engine = HostEngine(store), MeshEngine(store, mesh, slack=slack, text_precision=precision)
    expected = [host.prepare(question, batch, key) for batch in batches]
    requests = [engine.prepare(question, batch, key)[0] for batch in batches]
    request = jax.tree.map(lambda *parts: np.stack(parts), *requests)
    found, num_cut = jax.jit(engine.subgraphs)(engine.arrays, request)
    for shard, (subgraph, cut) in enumerate(expected):
        mine = jax.tree.map(lambda leaf, shard=shard: np.asarray(leaf[shard]), found)
        yield subgraph, mine, cut, int(num_cut[shard])


def texts_of(nodes):
    known = (np.asarray(nodes.text_row) >= 0)[:, None]
    if not len(nodes.texts):
        return np.zeros((len(known), nodes.texts.shape[1]))
    return np.where(known, nodes.texts[np.maximum(nodes.text_row, 0)], 0.0)


def check_equal(host, mesh, text_error):
    """All arrays, in the order of their rows; texts are numbered otherwise."""
    assert set(host.nodes) == set(mesh.nodes)
    for name, nodes in host.nodes.items():
        for field in ("node", "mask", "seen", "categorical", "dense"):
            np.testing.assert_array_equal(getattr(mesh.nodes[name], field), getattr(nodes, field))
        np.testing.assert_allclose(texts_of(mesh.nodes[name]), texts_of(nodes), atol=text_error)
    assert [sorted(hop) for hop in host.hops] == [sorted(hop) for hop in mesh.hops]
    for hop, tables in enumerate(host.hops):
        for key, table in tables.items():
            for field in ("index", "mask", "weight"):
                np.testing.assert_array_equal(
                    getattr(mesh.hops[hop][key], field), getattr(table, field)
                )
            np.testing.assert_allclose(mesh.hops[hop][key].age, table.age, atol=1e-6)


@pytest.mark.parametrize(
    ("devices", "fanout", "options", "precision"),
    [
        (1, (3, 2), {"shrink": 8}, "float32"),
        (8, (6, 2), {"sampler": SamplerConfig(max_age=30)}, "float32"),
        (2, (4,), {"sampler": SamplerConfig(kind="last_n")}, "int8"),
        (2, (3, 2), {"sampler": SamplerConfig(kind="top_k")}, "float32"),
        (4, (3,), {"sampler": SamplerConfig(replace=True), "use_time": False}, "float32"),
        (4, (4,), {"sampler": SamplerConfig(kind="weighted")}, "float32"),
        (1, (3,), {"sampler": SamplerConfig(kind="weighted", replace=True, max_age=30)}, "float32"),
    ],
    ids=[
        "overflow",
        "eight devices",
        "last_n",
        "top_k",
        "split rule",
        "weighted",
        "weighted, replace",
    ],
)
def test_samples_are_the_host_s_on_any_mesh(store, devices, fanout, options, precision):
    """Entries of texts go up to 80 and differ by 1 between texts, so that int8 tells them apart."""
    rng = np.random.default_rng(devices)
    mesh = make_mesh(MeshConfig(fsdp=min(devices, 2)), jax.devices()[:devices])
    batches = [seeds_of(store, rng) for _ in range(devices)]
    question = question_of(store, batches, fanout, **options)
    neighbours = 0
    text_error = {"float32": 0.0, "int8": 80 / 254}[precision]
    drawn = drawn_by_both(store, mesh, question, batches, 3 << 60 | 5, precision=precision)
    for host, found, host_cut, cut in drawn:
        check_equal(host, found, text_error)
        assert cut == host_cut
        assert (cut > 0) == ("shrink" in options)
        neighbours += sum(int(table.mask.sum()) for hop in host.hops for table in hop.values())
    assert neighbours > 60 * devices


def test_nodes_that_nothing_points_to_have_a_hop_without_neighbours(store):
    (key,) = (key for key in store.meta.num_edges if key.startswith("skill__") and "member" in key)
    batches = [seeds_of(store, np.random.default_rng(1)) for _ in range(2)]
    question = question_of(store, batches, (3, 2), keys=(key,))
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    for host, found, host_cut, cut in drawn_by_both(store, mesh, question, batches, 3 << 60 | 5):
        check_equal(host, found, 0.0)
        assert cut == host_cut == 0
        assert [sorted(hop) for hop in found.hops] == [[key], []]
        assert found.hops[0][key].mask.sum() > 10


@pytest.fixture(scope="module")
def on_one(store):
    """Eight batches, and what one device that has all of the graph draws for each of them."""
    rng = np.random.default_rng(6)
    batches = [seeds_of(store, rng) for _ in range(8)]
    question = question_of(store, batches, (4,), sampler=SamplerConfig(max_age=30))
    engine = MeshEngine(store, make_mesh(MeshConfig(data=1)))
    draw = jax.jit(engine.subgraphs)
    found = []
    for batch in batches:
        request, _ = engine.prepare(question, batch, 3 << 60 | 5)
        found.append(draw(engine.arrays, jax.tree.map(lambda leaf: leaf[None], request)))
    return batches, question, jax.tree.map(lambda *parts: np.concatenate(parts), *found)


@pytest.mark.parametrize(
    ("shape", "axes", "num_shards"),
    [((2, 4, 1), ROW_AXES, 8), ((2, 4, 1), (FSDP,), 4), ((2, 2, 2), (FSDP,), 2)],
    ids=["all", "rows", "rows, tensor"],
)
def test_samples_do_not_depend_on_the_axes_that_the_graph_is_split_over(
    store, on_one, shape, axes, num_shards
):
    data, fsdp, tensor = shape
    batches, question, expected = on_one
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
    engine = MeshEngine(store, mesh, axes=axes, slack=8.0)
    requests = [engine.prepare(question, each, 3 << 60 | 5)[0] for each in batches[: data * fsdp]]
    request = jax.tree.map(lambda *parts: np.stack(parts), *requests)
    found = jax.jit(engine.subgraphs)(engine.arrays, request)
    jax.tree.map(
        lambda ours, one: np.testing.assert_array_equal(ours, one[: data * fsdp]), found, expected
    )
    assert sum(int(table.mask.sum()) for table in expected[0].hops[0].values()) > 100
    assert engine.num_shards == num_shards
    edges: Any = engine.arrays.edges
    senders = edges.sender.addressable_shards
    assert len({shard.index[0].start for shard in senders}) == num_shards
    assert len(senders) == 8


@pytest.mark.parametrize("types", [("member", "job"), ()], ids=["some", "none"])
def test_types_without_unequal_weights_are_drawn_evenly_by_both(world, types, tmp_path):
    """The engine keeps sums only if some type has them."""
    edges = {
        key: [
            dataclasses.replace(edge, weight=edge.weight if types and key == APPLY else 1.0)
            for edge in each
        ]
        for key, each in world.edges.items()
    }
    store = dataclasses.replace(world, edges=edges).build(tmp_path)
    assert tuple(name for name, each in store.adjacency.items() if len(each.cumulative)) == types
    rng = np.random.default_rng(4)
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    assert bool(MeshEngine(store, mesh).arrays.edges.digits.size) == bool(types)
    batches = [seeds_of(store, rng)._replace(seed_text_row=None) for _ in range(2)]
    question = question_of(store, batches, (3, 2), sampler=SamplerConfig(kind="weighted"))
    for host, found, host_cut, cut in drawn_by_both(store, mesh, question, batches, 7):
        check_equal(host, found, 0.0)
        assert cut == host_cut
        assert host.hops[1]["member__has__skill"].mask.any()


def test_what_an_exchange_has_no_room_for_is_left_out_and_counted(store):
    """All seeds live on one shard, which has room for half of the rows of a device."""
    key = "job__rev_apply__member"
    rng = np.random.default_rng(2)
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    batches = [
        batch._replace(seeds=batch.seeds // 2 * 2, seed_text_row=np.full(SEEDS, -1, np.int32))
        for batch in (seeds_of(store, rng) for _ in range(2))
    ]
    last_n = SamplerConfig(kind="last_n")
    question = question_of(store, batches, (2,), sampler=last_n, keys=(key,))

    def jobs_of(subgraph):
        table = subgraph.hops[0][key]
        return np.where(table.mask, subgraph.nodes["job"].node[table.index], -1)

    for host, found, _, cut in drawn_by_both(store, mesh, question, batches, 5, slack=1.0):
        room = len(found.nodes["member"].mask) // 2
        expected = jobs_of(host)
        assert (expected[room:] >= 0).any()
        expected[room:] = -1
        np.testing.assert_array_equal(jobs_of(found), expected)
        jobs = found.nodes["job"]
        per_shard = np.bincount(jobs.node[jobs.mask] % 2, minlength=2)
        without_features = np.maximum(per_shard - -(-len(jobs.mask) // 2), 0).sum()
        assert cut == 2 * (SEEDS - room) + without_features  # Requests, then their own features.


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 2**-8), ("int8", 1 / 254)])
def test_texts_of_a_lower_precision_are_near(store, precision, error):
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    _, places = place_edges(store, mesh, ROW_AXES, spread)
    exact, near = (
        place_features(store, mesh, places, each, spread)["job"] for each in ("float32", precision)
    )
    texts = np.asarray(near.texts, np.float32) * np.asarray(near.text_scale)[..., None]
    expected = np.asarray(exact.texts)
    largest = np.abs(expected).max(axis=-1, keepdims=True)
    assert (np.abs(texts - expected) <= error * largest + 1e-6).all()
    assert near.texts.dtype.itemsize == {"bfloat16": 2, "int8": 1}[precision]


def test_what_the_engine_cannot_do_is_named(store):
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    engine = MeshEngine(store, mesh)
    batch = seeds_of(store, np.random.default_rng(0))
    question = question_of(store, [batch], (2,))
    with pytest.raises(ValueError, match="supervised pairs, needed at most 1"):
        engine.prepare(dataclasses.replace(question, pairs_per_group=1), batch, 0)
    with pytest.raises(ValueError, match="5 groups, needed at most 4"):
        engine.prepare(dataclasses.replace(question, num_groups=4), batch, 0)
    alien = batch._replace(seed_text_row=np.full(SEEDS, 999, np.int32))
    with pytest.raises(ValueError, match="is given text 999, which is no text of it"):
        engine.prepare(question, alien, 0)
    ranked = dataclasses.replace(question, sampler=SamplerConfig(kind="ppr"))
    request, _ = engine.prepare(ranked, batch, 0)
    with pytest.raises(ValueError, match=r"sampler\.kind 'ppr' .*needed one of uniform, weighted"):
        engine.subgraphs(engine.arrays, jax.tree.map(lambda leaf: leaf[None], request))


def test_times_must_fit_32_bits(world, tmp_path):
    edges = {APPLY: [Edge(0, 0, 1), Edge(1, 0, 2**31 + 5)]}
    wide = World(nodes={"member": [None] * 2, "job": [None]}, edges=edges).build(tmp_path)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with pytest.raises(InputError, match="range from 1 to 2147483653, needed a span below"):
        MeshEngine(wide, mesh)
