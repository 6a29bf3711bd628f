"""What DeepGNN draws is what an example may see, every edge of it equally likely."""

import sys
from collections import Counter

import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.graph.batches import Budget
from star_jax.graph.engines.deepgnn.engine import DeepGnnEngine
from star_jax.graph.engines.deepgnn.export import Clock, first_nodes, first_types
from star_jax.graph.engines.protocol import GraphEngine, Question
from star_jax.graph.samplers.calibrate import SeedBatch
from star_jax.graph.samplers.layout import layout_of
from star_jax.graph.samplers.sample import NO_EXCLUSION, expand
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.schema import parse_key, reverse_key
from star_jax.pipeline.graph_engines import EngineConfig
from star_jax.shapes import NO_TIME
from tests.graph.busy import APPLY, COUNTS, make_world, question_of, seeds_of
from tests.graph.worlds import Edge, World
from tests.jobs import tiny_graph

needs_deepgnn = pytest.mark.extra("deepgnn")


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    return world.build(tmp_path_factory.mktemp("world"), text=True)


@pytest.fixture(scope="module")
def engine(store, tmp_path_factory):
    return DeepGnnEngine(store, tmp_path_factory.mktemp("exported") / "deepgnn")


def expansion_of(store, engine, question, batch, key):
    layout = layout_of(question.budget)
    found = expand(
        store,
        layout,
        seed_type=question.seed_type,
        visible_splits=question.visible_splits,
        fanouts=dict(question.budget.fanout),
        key=key,
        sampler=question.sampler,
        use_time=question.use_time,
        walk=engine.walk(question),
        **batch._asdict(),
    )
    return layout, found


def edges_into(world, key):
    """(Sender, receiver, the later of the edge's and its sender's time, edge), either direction."""
    forward = key in world.edges
    sender_type = parse_key(key)[0]
    for edge in world.edges[key if forward else reverse_key(key)]:
        sender, receiver = edge.sender, edge.receiver
        if not forward:
            sender, receiver = receiver, sender
        times = [t for t in (edge.t, world.nodes[sender_type][sender]) if t is not None]
        yield sender, receiver, max(times, default=NO_TIME), edge


def allowed(world, question, batch, key, node, group):
    """What an example may see of a node, as (sender, weight, time)."""
    now, hidden = int(batch.group_time[group]), set()
    for g, s, r in zip(*batch.exclude[:3], strict=True):
        if g == group and key == APPLY:
            hidden.add((int(s), int(r)))
        if g == group and key == reverse_key(APPLY):
            hidden.add((int(r), int(s)))
    kind = world.kinds.get(key if key in world.edges else reverse_key(key), "interaction")
    for sender, receiver, time, edge in edges_into(world, key):
        timed = question.use_time and now != NO_TIME
        gone = edge.removed_t is not None and edge.removed_t <= now
        age = question.sampler.max_age if kind == "interaction" and now != NO_TIME else None
        if (
            receiver == node
            and question.visible_splits >> edge.split & 1
            and not (timed and (time >= now or gone))
            and not (age and time < now - age)
            and (sender, receiver) not in hidden
        ):
            yield sender, edge.weight, time


@needs_deepgnn
@pytest.mark.parametrize(
    ("fanout", "options"),
    [
        ((3, 2), {}),
        ((2, 2), {"sampler": SamplerConfig(max_age=30)}),
        ((3,), {"use_time": False}),
        ((4, 1), {"sampler": SamplerConfig(kind="last_n")}),
        ((40,), {"sampler": SamplerConfig(kind="full")}),
        ((5,), {"sampler": SamplerConfig(replace=True)}),
        ((5,), {"sampler": SamplerConfig(kind="weighted", replace=True)}),
    ],
    ids=["times", "max_age", "split rule", "last_n", "full", "replace", "weighted"],
)
def test_only_what_an_example_may_see_is_drawn_and_as_much_as_there_is(
    world, store, engine, fanout, options
):
    rng = np.random.default_rng(len(options) + fanout[0])
    batches = [seeds_of(store, rng) for _ in range(3)]
    question = question_of(store, batches, fanout, **options)
    sampler, drawn = question.sampler, 0
    for number, batch in enumerate(batches):
        layout, found = expansion_of(store, engine, question, batch, number)
        assert found.dropped.sum() == 0
        for hop, tables in enumerate(layout.hops):
            for table in tables:
                sender_type, _, receiver_type = parse_key(table.key)
                i, sender = layout.types.index(receiver_type), layout.types.index(sender_type)
                start, _ = layout.block(i, hop)
                for row in range(start, start + int(found.used[i, hop])):
                    node = int(found.rows.node[layout.base[i] + row])
                    group = int(found.rows.group[layout.base[i] + row])
                    own = table.start + (row - start) * table.width + np.arange(table.width)
                    own = own[found.slots.mask[own]]
                    senders = found.rows.node[layout.base[sender] + found.slots.row[own]]
                    weights = found.slots.weight[own]
                    got = Counter(zip(senders.tolist(), weights.tolist(), strict=True))
                    seen = list(allowed(world, question, batch, table.key, node, group))
                    may = Counter((s, w) for s, w, _ in seen)
                    if sampler.replace:
                        assert set(got) <= set(may)
                        assert got.total() == (fanout[hop] if may else 0)
                    else:
                        assert got <= may
                        assert got.total() == min(fanout[hop], may.total())
                    if sampler.kind == "last_n":
                        times = {(s, w): t for s, w, t in seen}
                        latest = sorted((t for *_, t in seen), reverse=True)[: fanout[hop]]
                        assert sorted((times[e] for e in got.elements()), reverse=True) == latest
                    drawn += got.total()
    assert drawn > 100


@needs_deepgnn
def test_one_key_is_one_sample_and_another_key_another(store, engine):
    batch = seeds_of(store, np.random.default_rng(5))
    question = question_of(store, [batch], (2,))
    first, again, other = (
        expansion_of(store, engine, question, batch, key)[1] for key in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.rows.node, again.rows.node)
    np.testing.assert_array_equal(first.slots.row, again.slots.row)
    assert (first.rows.node != other.rows.node).any()


@needs_deepgnn
@pytest.mark.parametrize(
    "sampler",
    [
        SamplerConfig(),
        SamplerConfig(replace=True),
        SamplerConfig(kind="weighted", replace=True),
    ],
    ids=["uniform", "replace", "weighted"],
)
@pytest.mark.parametrize("fanout", [1, 6])  # Of the longest row: drawn by DeepGNN, or listed.
def test_all_that_is_visible_is_drawn_as_often_as_its_share(world, store, engine, sampler, fanout):
    """Chi-square per relation, over the longest row of every relation into members and jobs."""
    draws, now = 1200, 80
    for number, (key, receiver_type) in enumerate(
        (edge.key, name) for name in ("member", "job") for edge in store.relations[name]
    ):
        column = [edge.key for edge in store.relations[receiver_type]].index(key)
        degree = np.diff(store.adjacency[receiver_type].bounds.astype(np.int64), axis=1)[:, column]
        node = int(degree.argmax())
        batch = SeedBatch(
            np.full(draws, node, np.int32),
            np.arange(draws, dtype=np.int32),
            np.full(draws, now, np.int64),
            NO_EXCLUSION,
            None,
        )
        budget = Budget(
            rows=tuple(
                (name, (draws if name == receiver_type else 0, draws * fanout))
                for name in store.num_nodes
            ),
            fanout=((key, (fanout,)),),
            texts=(),
        )
        question = Question(
            seed_type=receiver_type,
            visible_splits=0b0011,
            budget=budget,
            sampler=sampler,
            use_time=True,
            edge_keys=(),
            num_groups=draws,
            pairs_per_group=0,
        )
        _, found = expansion_of(store, engine, question, batch, number)
        seen = Counter((s, w) for s, w, _ in allowed(world, question, batch, key, node, 0))
        weights = found.slots.weight[found.slots.mask].tolist()
        got = Counter(weights)  # Weights are told apart.
        share = {w: n * (w if sampler.kind == "weighted" else 1) for (_, w), n in seen.items()}
        whole = sum(share.values())
        picks = draws * (fanout if sampler.replace else min(fanout, seen.total()))
        assert got.total() == picks
        assert set(got) <= set(share)
        expected = {w: picks * part / whole for w, part in share.items()}
        chi_square = sum((got[w] - e) ** 2 / e for w, e in expected.items())
        freedom = len(share) - 1
        # Without replacement the counts vary less.
        assert chi_square < freedom + 4 * np.sqrt(2 * freedom) + 6, key
        assert freedom > 0


@needs_deepgnn
def test_edges_times_weights_and_features_are_the_store_s(store, engine):
    clock, nodes, types = Clock.of(store), first_nodes(store), first_types(store)
    graph, num_edges = engine.graph, 0
    for name, into in store.relations.items():
        number = nodes[name] + np.arange(store.num_nodes[name])
        adjacency = store.adjacency[name]
        bounds = adjacency.bounds.astype(np.int64)
        for j, edge in enumerate(into):
            for time in (NO_TIME, 0, 40, 200):
                asked = clock.before(np.full(len(number), time), True)
                sender, weight, _, counts, created = graph.neighbors(
                    number, types[name] + j, asked, return_edge_created_ts=True
                )
                own = [np.arange(*row) for row in bounds[:, j : j + 2]]
                if time != NO_TIME:
                    own = [row[adjacency.time[row] < time] for row in own]
                position = np.concatenate(own)
                assert counts.tolist() == [len(row) for row in own]
                np.testing.assert_array_equal(
                    sender - nodes[edge.sender], adjacency.sender[position]
                )
                # It keeps running sums of them.
                np.testing.assert_allclose(weight, adjacency.weight[position], rtol=1e-3)
                place = position - np.repeat(bounds[:, j], counts.astype(np.int64))
                np.testing.assert_array_equal(created % clock.ticks, place)
                num_edges += len(position) if time == NO_TIME else 0
        for feature, values in ((0, store.dense[name]), (1, store.categorical[name])):
            kind = np.float32 if feature == 0 else np.int32
            if width := values.shape[1]:
                found = graph.node_features(number, np.asarray([[feature, width]]), kind)
                np.testing.assert_array_equal(found, values)
    assert num_edges == sum(store.meta.num_edges.values()) == graph.meta.edge_count


@needs_deepgnn
def test_a_graph_is_exported_once_and_anew_when_it_changes(world, store, tmp_path):
    folder = tmp_path / "deepgnn"
    engine = DeepGnnEngine(store, folder)
    assert isinstance(engine, GraphEngine)
    written = (folder / "meta.json").stat().st_mtime_ns
    DeepGnnEngine(store, folder)
    assert (folder / "meta.json").stat().st_mtime_ns == written
    other = World(nodes=world.nodes, edges={APPLY: [Edge(0, 0, 1)]}).build(tmp_path / "other")
    assert DeepGnnEngine(other, folder).graph.meta.edge_count == 2
    counts = DeepGnnEngine(other, folder).graph.meta.node_count_per_type
    assert counts == list(COUNTS.values())


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (SamplerConfig(kind="top_k"), r"kind 'top_k' with engine\.kind=deepgnn, needed one of uni"),
        (SamplerConfig(kind="ppr"), r"sampler\.kind 'ppr' with engine\.kind=deepgnn"),
        (SamplerConfig(kind="weighted"), r"needed sampler\.replace=true, or engine\.kind=host"),
    ],
)
def test_what_deepgnn_cannot_draw_is_refused_at_once(sampler, message):
    with pytest.raises(ValueError, match=message):
        tiny_graph.config(engine=EngineConfig(kind="deepgnn"), sampler=sampler)


def test_without_the_package_an_error_says_what_to_install(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepgnn", None)
    for name in [name for name in sys.modules if name.startswith("deepgnn.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"needs deepgnn.*`pip install 'star_jax\[deepgnn\]'`"):
        DeepGnnEngine(store, tmp_path / "deepgnn")
    assert not list(tmp_path.iterdir())


def test_times_and_degrees_must_fit_a_timestamp(tmp_path):
    edges = {APPLY: [Edge(0, 0, 1), Edge(0, 0, 1 << 61)]}
    wide = World(nodes={"member": [None], "job": [None]}, edges=edges).build(tmp_path)
    with pytest.raises(InputError, match=r"degrees to 2, needed a product below 2\^62"):
        Clock.of(wide)
