"""The engine inside the program draws what the host draws, array by array, on any mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.graph.engines.host import HostEngine
from star_jax.graph.engines.mesh.engine import MeshEngine
from star_jax.graph.engines.mesh.features import place_features
from star_jax.graph.engines.mesh.topology import Clock
from star_jax.graph.engines.protocol import Question
from star_jax.graph.samplers.calibrate import SeedBatch, calibrate
from star_jax.graph.samplers.sample import Exclusion
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.shapes import NO_TIME
from tests.graph.worlds import Edge, Text, World

COUNTS = {"member": 40, "job": 30, "skill": 6}
APPLY = "member__apply__job"
SEEDS, GROUPS, PAIRS = 12, 5, 15


@pytest.fixture(scope="module")
def world():
    """Busy and idle nodes, undated and removed edges, ties, nodes and texts of several times."""
    rng = np.random.default_rng(0)

    def edges(key, number, *, dated=True):
        sender, _, receiver = key.split("__")
        return [
            Edge(
                int(COUNTS[sender] * rng.random() ** 2),
                int(rng.integers(COUNTS[receiver])),
                int(rng.integers(0, 100)) if dated and rng.random() < 0.9 else None,
                int(rng.integers(50, 120)) if rng.random() < 0.2 else None,
                float(np.float32(rng.random() + 0.1)),
                int(rng.integers(0, 4)),
            )
            for _ in range(number)
        ]

    numbers = {APPLY: 900, "member__knows__member": 100}
    attributes = {"member__has__skill": 80, "job__has__skill": 50}
    return World(
        nodes={
            name: [int(rng.integers(0, 90)) if rng.random() < 0.4 else None for _ in range(count)]
            for name, count in COUNTS.items()
        },
        edges={key: edges(key, n) for key, n in numbers.items()}
        | {key: edges(key, n, dated=False) for key, n in attributes.items()},
        kinds=dict.fromkeys(attributes, "attribute"),
        texts={
            name: [
                Text(int(rng.integers(COUNTS[name])), int(rng.integers(100)))
                for _ in range(2 * COUNTS[name])
            ]
            for name in ("member", "job")
        },
        categorical={"job": {"kind": rng.integers(0, 10, COUNTS["job"]).tolist()}},
        dense={"job": {"pay": rng.normal(size=COUNTS["job"]).tolist()}},
    )


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    return world.build(tmp_path_factory.mktemp("world"), text=True)


def seeds_of(store, rng):
    """Members in groups of several times, some of them twice, with texts that events point to."""
    seeds = rng.integers(0, COUNTS["member"], SEEDS).astype(np.int32)
    seeds[1] = seeds[0]
    groups = np.sort(rng.integers(0, GROUPS, SEEDS)).astype(np.int32)
    groups[:2] = 0
    time = rng.integers(20, 110, GROUPS)
    time[rng.integers(GROUPS)] = NO_TIME
    versions = store.text_versions["member"]
    text = np.full(SEEDS, -1, np.int32)
    for i, node in enumerate(seeds):
        own = versions.text[versions.bounds[node] : versions.bounds[node + 1]]
        text[i] = rng.choice(own) if len(own) and rng.random() < 0.8 else -1
    hidden = Exclusion(
        rng.integers(0, GROUPS, PAIRS).astype(np.int32),
        rng.choice(seeds, PAIRS).astype(np.int32),
        rng.integers(0, COUNTS["job"], PAIRS).astype(np.int32),
        (APPLY,),
    )
    return SeedBatch(seeds, groups, time.astype(np.int64), hidden, text)


def question_of(store, batches, fanout, *, sampler=None, shrink=0, use_time=True):
    options = {
        "seed_type": "member",
        "visible_splits": 0b0111,
        "sampler": sampler or SamplerConfig(),
        "use_time": use_time,
    }
    budget = calibrate(
        store,
        lambda number: batches[number],
        {key: fanout for key in store.meta.num_edges},  # noqa: C420 - for its type.
        num_seeds=SEEDS,
        num_batches=len(batches),
        **options,
    )
    rows = tuple(
        (name, (sizes[0], *(max(size - shrink, 1) if size else 0 for size in sizes[1:])))
        for name, sizes in budget.rows
    )
    return Question(
        budget=dataclasses.replace(budget, rows=rows),
        edge_keys=(APPLY,),
        num_groups=GROUPS,
        pairs_per_group=PAIRS,
        **options,
    )


def drawn_by_both(store, mesh, question, batches, key, **options):
    """Per device, the subgraph of the host, that of the program, and what was left out by each."""
    host, engine = HostEngine(store), MeshEngine(store, mesh, slack=8.0, **options)
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


def check_equal(host, mesh):
    """All arrays, in the order of their rows; texts are numbered otherwise."""
    assert set(host.nodes) == set(mesh.nodes)
    for name, nodes in host.nodes.items():
        for field in ("node", "mask", "seen", "categorical", "dense"):
            np.testing.assert_array_equal(getattr(mesh.nodes[name], field), getattr(nodes, field))
        np.testing.assert_array_equal(texts_of(mesh.nodes[name]), texts_of(nodes))
    assert [sorted(hop) for hop in host.hops] == [sorted(hop) for hop in mesh.hops]
    for hop, tables in enumerate(host.hops):
        for key, table in tables.items():
            for field in ("index", "mask", "weight"):
                np.testing.assert_array_equal(
                    getattr(mesh.hops[hop][key], field), getattr(table, field)
                )
            np.testing.assert_allclose(mesh.hops[hop][key].age, table.age, atol=1e-6)


@pytest.mark.parametrize(
    ("devices", "fanout", "options"),
    [
        (1, (3, 2), {"shrink": 8}),
        (8, (6, 2), {"sampler": SamplerConfig(max_age=30)}),
        (2, (4,), {"sampler": SamplerConfig(kind="last_n")}),
        (4, (3,), {"sampler": SamplerConfig(replace=True), "use_time": False}),
    ],
    ids=["overflow", "eight devices", "last_n", "split rule"],
)
def test_samples_are_the_host_s_on_any_mesh(store, devices, fanout, options):
    rng = np.random.default_rng(devices)
    mesh = make_mesh(MeshConfig(fsdp=min(devices, 2)), jax.devices()[:devices])
    batches = [seeds_of(store, rng) for _ in range(devices)]
    question = question_of(store, batches, fanout, **options)
    neighbours = 0
    for host, found, host_cut, cut in drawn_by_both(store, mesh, question, batches, 3 << 60 | 5):
        check_equal(host, found)
        assert cut == host_cut
        assert (cut > 0) == ("shrink" in options)
        neighbours += sum(int(table.mask.sum()) for hop in host.hops for table in hop.values())
    assert neighbours > 60 * devices


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 2**-8), ("int8", 1 / 254)])
def test_texts_of_a_lower_precision_are_near(store, precision, error):
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    exact, near = (
        place_features(store, mesh, Clock(0), each)["job"] for each in ("float32", precision)
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
    weighted = dataclasses.replace(question, sampler=SamplerConfig(kind="weighted"))
    request, _ = engine.prepare(weighted, batch, 0)
    with pytest.raises(ValueError, match=r"sampler\.kind is 'weighted'.*needed one of uniform"):
        engine.subgraphs(engine.arrays, jax.tree.map(lambda leaf: leaf[None], request))


def test_times_must_fit_32_bits(world, tmp_path):
    edges = {APPLY: [Edge(0, 0, 1), Edge(1, 0, 2**31 + 5)]}
    wide = World(nodes={"member": [None] * 2, "job": [None]}, edges=edges).build(tmp_path)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with pytest.raises(InputError, match="range from 1 to 2147483653, needed a span below"):
        MeshEngine(wide, mesh)
