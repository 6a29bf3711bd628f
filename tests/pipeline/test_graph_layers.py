"""All nodes layer by layer: the vectors of the sampled path, and those of plain loops in numpy."""

import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.embeddings.quantise import Precision
from star_jax.graph.encoder import receiving_types
from star_jax.graph.layerwise import State, in_order
from star_jax.graph.model import seed_types_of
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.pipeline.graph_buckets import Shapes
from star_jax.pipeline.graph_embedding import Embedder, Wanted, split_view
from star_jax.pipeline.graph_layers import LayerEncoder, NodeEmbedder, WhichNeighbours
from star_jax.pipeline.graph_states import StateFiles, complete
from tests.pipeline import layered_world
from tests.pipeline.layered_world import (
    COUNTS,
    MANY,
    ONE,
    TARGETS,
    channels,
    model_of,
    sampling_of,
    visible_edges,
)

ALL = 50  # More than any degree.
ATTRIBUTES = ("skill__rev_needs__job",)
PLAIN = {
    "skip": "none",
    "dual": False,
    "batch_norm": False,
    "include_receiver": False,
    "pooling": "mean",
    "path": "jraph",
}
SMALL = Shapes(most_rows=4, most_slots=12, program_slots=60)  # Two or three buckets, many batches.


@pytest.fixture(scope="module")
def world():
    return layered_world.world(knows=True)


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    return world.build(tmp_path_factory.mktemp("layered"), text=True)


@pytest.fixture(scope="module")
def bipartite(tmp_path_factory):
    """Without a relation within a type."""
    folder = tmp_path_factory.mktemp("bipartite")
    return layered_world.world(knows=False).build(folder, text=True)


def state_files(folder, made_from, *, part_nodes=3, precision: Precision = "float32"):
    sizes = {"part_nodes": part_nodes, "size": 8}
    return StateFiles(folder, made_from, num_nodes=COUNTS, **sizes, precision=precision)


class Both:
    """One model, by layers and by samples."""

    def __init__(self, store, sampling, neighbours: WhichNeighbours = "fanout", **options):
        self.sampling = sampling
        self.model, self.variables = model_of(store, sampling, **options)
        self.view = split_view(store, "val")
        self._embedder = Embedder(self.model, sampling, ONE)
        self._neighbours: WhichNeighbours = neighbours
        self.encoder = self.encoder_on(ONE)

    def encoder_on(self, rows):
        fixed = self.model, self.variables, self.sampling, self.view, rows
        return LayerEncoder(*fixed, neighbours=self._neighbours, shapes=SMALL)

    def sampled(self, role, node_type, nodes=None):
        nodes = np.arange(COUNTS[node_type]) if nodes is None else np.asarray(nodes)
        wanted = Wanted.of_view(self.view, role, node_type, nodes.astype(np.int32))
        prepared = self._embedder.prepare(wanted)
        return self._embedder(self.variables, role, node_type, prepared).embedding

    def layered(self, folder, *targets, part_nodes=5):
        """Vectors of all nodes of each target, through files."""
        files = state_files(folder, {}, part_nodes=part_nodes)
        outputs = [self.encoder.outputs(*target) for target in targets]
        complete(self.encoder, files, [state for each in outputs for state in each])
        found = []
        for (role, node_type), states in zip(targets, outputs, strict=True):
            nodes = np.arange(COUNTS[node_type], dtype=np.int32)
            rows = [files.read(state, nodes) for state in states]
            found.append(self.encoder.vectors(role, node_type, rows))
        return found


def assert_equal(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.1


@pytest.mark.parametrize(
    ("hops", "receiver_keys", "options", "targets"),
    [
        ((ALL,), None, {"skip": "residual", "unit_norm": True}, TARGETS[:1]),
        ((ALL, ALL), ATTRIBUTES, {"skip": "jumping_knowledge"}, TARGETS[1:3]),
        ((ALL, 30), None, PLAIN, TARGETS[3:]),
        ((ALL,), None, {"identity_rows": 2}, TARGETS[1:2]),
    ],
    ids=["one layer", "jumping", "plain", "hashed"],
)
def test_equals_the_sampled_path_where_the_fanouts_leave_nothing_out(
    store, tmp_path, hops, receiver_keys, options, targets
):
    both = Both(store, sampling_of(store, *hops, receiver_keys=receiver_keys), **options)
    for target, found in zip(targets, both.layered(tmp_path, *targets), strict=True):
        assert_equal(found, both.sampled(*target))


def test_a_mesh_gives_the_vectors_of_one_device(store, tmp_path):
    both = Both(store, sampling_of(store, 3, 3), skip="jumping_knowledge")
    (expected,) = both.layered(tmp_path / "one", TARGETS[0], part_nodes=14)
    one, both.encoder = both.encoder, both.encoder_on(MANY)
    (found,) = both.layered(tmp_path / "many", TARGETS[0], part_nodes=14)
    assert_equal(found, expected)
    assert both.encoder.counts == one.counts
    assert one.counts.edges > 100


@pytest.mark.parametrize(
    "sampler", [SamplerConfig(), SamplerConfig(kind="ppr")], ids=lambda sampler: sampler.kind
)
def test_equals_it_with_few_neighbours_where_no_relation_is_within_a_type(
    bipartite, tmp_path, sampler
):
    fields = {"channels": channels()} if sampler.by_rank else {}
    both = Both(bipartite, sampling_of(bipartite, 4, 2, sampler=sampler, **fields))
    (found,) = both.layered(tmp_path, ("sender", "member"))
    assert_equal(found, both.sampled("sender", "member"))


def test_a_node_has_the_neighbours_of_the_hop_where_it_is_read(store, tmp_path):
    """As around one seed alone; among other seeds, a neighbour that is one keeps the seed's."""
    both = Both(store, sampling_of(store, 3, 1))
    together = both.sampled("sender", "member")
    (found,) = both.layered(tmp_path, ("sender", "member"))
    alone = np.concatenate([both.sampled("sender", "member", [node]) for node in range(6)])
    assert_equal(found[:6], alone)
    assert np.abs(found - together).max() > 0.01


def by_loops(world, both, hidden, number):
    """All rows after one layer of the senders' encoder, edge by edge."""
    model, view = both.model, both.view
    weights = both.variables["params"]["encoder_sender"][f"layer_{number}"]
    types = receiving_types(model.keys, seed_types_of(model, "sender"), 2)[number]
    keys = [key for key in model.keys if key.split("__")[2] in types]
    after = {}
    for t, name in enumerate(types):
        rows = []
        for node, own in enumerate(hidden[name]):
            query = np.einsum("d,dhk->hk", own, weights["query_kernel"][t])
            met = [(own, len(keys) + t, 0.0, 0.0)]
            for key, sender, edge in visible_edges(world, view.splits, name, node):
                age = 0.0
                if edge.t is not None:
                    age = np.log1p((view.time - edge.t) / view.store.meta.age_unit)
                weight = np.log1p(edge.weight)
                met.append((hidden[key.split("__")[0]][sender], keys.index(key), weight, age))
            logits, values = [], []
            for row, r, weight, age in met:
                bias = weights["edge_bias"][r]
                keyed = np.einsum("d,dhk->hk", row, weights["key_kernel"][r])
                product = (query * keyed).sum(axis=1) / np.sqrt(keyed.shape[1])
                logits.append(product + bias[0] + bias[1] * weight + bias[2] * age)
                values.append(np.einsum("d,dhk->hk", row, weights["value_kernel"][r]))
            share = np.exp(logits - np.max(logits, axis=0))
            share /= share.sum(axis=0)
            message = np.einsum("mh,mhk->hk", share, values).reshape(-1)
            units = np.concatenate([own, message]) @ weights["hidden_kernel"][t]
            units += weights["hidden_bias"][t]
            units = np.where(units > 0, units, 0.2 * units)
            rows.append(own + units @ weights["output_kernel"][t] + weights["output_bias"][t])
        after[name] = np.stack(rows)
    return after


def test_all_neighbours_are_those_of_loops_over_every_edge(world, store, tmp_path):
    """However few the fanouts name; a few nodes alone have the same vectors."""
    both = Both(store, sampling_of(store, 2, 1), neighbours="all", batch_norm=False)
    (found,) = both.layered(tmp_path, ("sender", "member"))
    features = {
        name: both.encoder.rows(State(name, 0), np.arange(count, dtype=np.int32), _nothing)
        for name, count in COUNTS.items()
    }
    hidden = {name: rows.astype(np.float64) for name, rows in features.items()}
    for number in range(2):
        hidden = by_loops(world, both, hidden, number)
    assert_equal(found, hidden["member"])
    nodes = NodeEmbedder(
        both.model, both.variables, both.sampling, both.view, neighbours="all", shapes=SMALL
    )
    asked = np.array([COUNTS["member"] - 1, 0, 7, 0])
    np.testing.assert_allclose(nodes("sender", "member", asked), found[asked], atol=1e-6)


def _nothing(*_):
    raise AssertionError("features are made of no other state")


def test_hops_that_draw_alike_share_their_states(store):
    """Two layers: three states of a member if its hops differ, two if they draw all there is."""

    model, variables = model_of(store, sampling_of(store, 1, 1))
    view = split_view(store, "val")

    def states(*hops, **fields):
        sampling = sampling_of(store, *hops, **fields)
        encoder = LayerEncoder(
            model, variables, sampling, view, ONE, neighbours="fanout", shapes=SMALL
        )
        outputs = encoder.outputs("sender", "member")
        return [(s.node_type, s.layer) for s in in_order(outputs) if s.layer]

    neighbours = [("job", 1), ("member", 1)]
    assert sorted(states(ALL, 30)) == [*neighbours, ("member", 2)]
    assert sorted(states(3, 3)) == [*neighbours, ("member", 2)]
    assert sorted(states(4, 2)) == [*neighbours, ("member", 1), ("member", 2)]
    replacing = SamplerConfig(replace=True)
    assert sorted(states(ALL, 30, sampler=replacing)) == sorted(states(4, 2))


def test_ranked_neighbours_cannot_be_taken_whole(store):
    sampling = sampling_of(store, 4, sampler=SamplerConfig(kind="ppr"), channels=channels())
    model, variables = model_of(store, sampling)
    with pytest.raises(InputError, match=r"'all' .* sampler.kind is 'ppr'.* needed 'fanout'"):
        NodeEmbedder(model, variables, sampling, split_view(store, "val"), neighbours="all")


def test_a_part_that_holds_something_else_is_refused(store, tmp_path):
    both = Both(store, sampling_of(store, 2))
    state = State("skill", 0)
    files = state_files(tmp_path, {})
    complete(both.encoder, files, [state])
    assert files.of(state).to_do() == []
    other = state_files(tmp_path, {"model": "other"})
    assert other.of(state).to_do() == [0, 1]
    other = state_files(tmp_path, {}, precision="bfloat16")
    assert other.of(state).to_do() == [0, 1]
    files.of(state).write(0, np.zeros((2, 8), np.float32))
    with pytest.raises(InputError, match=r"part-000000.npy has shape \(2, 8\) .* remove it"):
        files.read(state, np.arange(3, dtype=np.int32))
