"""Samples outside training: their sizes, and vectors made while they are drawn."""

import jax
import numpy as np
import pytest

from star_jax.parallel.rules import FSDP_RULES, shardings
from star_jax.pipeline import graph_programs
from star_jax.pipeline.graph_embedding import Embedder, Wanted, split_view
from tests.pipeline import layered_world
from tests.pipeline.layered_world import COUNTS, MANY, ONE, model_of, sampling_of


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """An embedder's model, and questions: about one node, and about all of its type."""
    store = layered_world.world(knows=True).build(tmp_path_factory.mktemp("asked"), text=True)
    sampling = sampling_of(store, 9, 9)
    model, variables = model_of(store, sampling)
    view = split_view(store, "val")

    def question(nodes):
        return Wanted.of_view(view, "sender", "member", np.asarray(nodes, np.int32))

    return lambda rows=ONE: Embedder(model, sampling, rows), variables, question


def shapes(sampled):
    return {str(jax.tree.map(np.shape, part)) for batches in sampled for part in batches.parts}


def by_neighbours(embedder, question):
    """All nodes, those with the smallest samples first."""
    edges = [
        sum(int(table.mask.sum()) for hop in batches.parts[0].hops for table in hop.values())
        for node in range(COUNTS["member"])
        for batches in embedder.prepare(question([node]))
    ]
    return np.argsort(edges)


def test_a_batch_that_does_not_fit_is_drawn_again_with_more_room(asked):
    new, variables, question = asked
    nodes = by_neighbours(new(), question)
    expected, grown = new(), new()
    prepared = expected.prepare(question(nodes))
    batches = [batch for part in (nodes[:1], nodes[1:]) for batch in grown.batches(question(part))]
    assert len(shapes(batches)) == 2  # The first had room enough.
    assert sum(sum(each.sizes) for each in batches) == COUNTS["member"]
    np.testing.assert_allclose(
        grown(variables, "sender", "member", batches).embedding,
        expected(variables, "sender", "member", prepared).embedding,
        rtol=1e-5,
        atol=1e-6,
    )


def test_what_is_prepared_has_one_shape(asked):
    new, _, question = asked
    nodes = by_neighbours(new(), question)
    mixed = question(np.concatenate([np.full(8, nodes[0]), nodes]))  # The first batch fits.
    grown, again = new(), new()
    for embedder in (grown, again):
        embedder.prepare(question(nodes[:1]))
    assert len(shapes(grown.batches(mixed))) > 1
    prepared = again.prepare(mixed)
    assert len(prepared) > 1
    assert len(shapes(prepared)) == 1


def test_vectors_made_while_samples_are_drawn_are_those_of_prepared_ones(asked):
    new, variables, question = asked
    everyone = question(np.arange(COUNTS["member"]))
    first, second = new(), new()
    expected = first(variables, "sender", "member", first.prepare(everyone))
    found = second.embed(variables, everyone)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture
def small_batches(monkeypatch):
    """Of eight seeds each."""
    monkeypatch.setattr("star_jax.pipeline.graph_embedding._MOST_SEEDS", 8)


def test_every_mesh_draws_the_same_samples_and_gives_the_same_vectors(asked, small_batches):
    """Parts of a batch go to different devices, whole as one device has them."""
    new, variables, question = asked
    nodes = question(np.arange(39) % COUNTS["member"])
    one, many = new(), new(MANY)
    expected, found = one.prepare(nodes), many.prepare(nodes)
    assert [len(batches.parts) for batches in found] == [4, 4]
    parts = [[part for batches in each for part in batches.parts] for each in (expected, found)]
    assert len(parts[0]) == 5
    for ours, theirs in zip(parts[1], parts[0], strict=False):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert not any(table.mask.any() for table in parts[1][-1].nodes.values())
    vectors = one(variables, "sender", "member", expected)
    where = shardings(variables["params"], MANY.mesh, FSDP_RULES)
    split = {**variables, "params": jax.device_put(variables["params"], where)}
    for other in (many(split, "sender", "member", found), many.embed(split, nodes)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), other, vectors)


def test_a_device_computes_its_own_rows(asked, small_batches):
    new, variables, question = asked
    of_all = new(MANY).prepare(question(np.arange(32) % 14))[0].parts
    model, flops = new()._model, []
    for rows, parts in ((ONE, of_all[:1]), (MANY, of_all)):
        program = graph_programs.program(graph_programs.embed, rows.mesh)
        arguments = (model, variables, rows._placed(parts))
        compiled = program.lower(*arguments, role="sender", node_type="member").compile()
        costs = compiled.cost_analysis()
        assert costs is not None
        flops.append(costs["flops"])
    assert flops[1] < 1.5 * flops[0]


class Beside:
    """Rows of a process beside another one, whose samples needed more room once."""

    def __init__(self, rows):
        self.rows, self.ran = rows, []
        self.count, self.own, self.groups = rows.count, rows.own, rows.groups

    def agreed(self, value):
        return max(value, 1)

    def run(self, of_part, model, variables, parts, **static):
        self.ran += parts
        return self.rows.run(of_part, model, variables, parts, **static)


def test_a_process_gives_its_batches_the_room_that_another_needs(asked, small_batches):
    new, variables, question = asked
    everyone, beside = question(np.arange(COUNTS["member"])), Beside(ONE)
    alone, embedder = new(), new(beside)
    expected = alone(variables, "sender", "member", alone.prepare(everyone))
    roomier, known = (shapes(alone.batches(everyone, room)) for room in (1, 0))
    assert roomier != known
    prepared = embedder.prepare(everyone)
    assert shapes(prepared) == roomier
    for found in (
        embedder(variables, "sender", "member", prepared),
        embedder.embed(variables, everyone),
    ):
        np.testing.assert_allclose(found.embedding, expected.embedding, atol=1e-5)
    assert len(beside.ran) == 2 * len(prepared)
    assert {str(jax.tree.map(np.shape, part)) for part in beside.ran} == roomier
