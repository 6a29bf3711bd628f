"""Samples outside training: their sizes, and vectors made while they are drawn."""

import jax
import numpy as np
import pytest

from star_jax.pipeline.graph_embedding import Embedder, Wanted, split_view
from tests.pipeline import layered_world
from tests.pipeline.layered_world import COUNTS, model_of, sampling_of


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """An embedder's model, and questions: about one node, and about all of its type."""
    store = layered_world.world(knows=True).build(tmp_path_factory.mktemp("asked"), text=True)
    sampling = sampling_of(store, 9, 9)
    model, variables = model_of(store, sampling)
    view = split_view(store, "val")

    def question(nodes):
        return Wanted.of_view(view, "sender", "member", np.asarray(nodes, np.int32))

    return lambda: Embedder(model, sampling), variables, question


def shapes(batches):
    return {str(jax.tree.map(np.shape, subgraph)) for _, subgraph in batches}


def by_neighbours(embedder, question):
    """All nodes, those with the smallest samples first."""
    edges = [
        sum(int(table.mask.sum()) for hop in subgraph.hops for table in hop.values())
        for node in range(COUNTS["member"])
        for _, subgraph in embedder.prepare(question([node]))
    ]
    return np.argsort(edges)


def test_a_batch_that_does_not_fit_is_drawn_again_with_more_room(asked):
    new, variables, question = asked
    nodes = by_neighbours(new(), question)
    expected, grown = new(), new()
    prepared = expected.prepare(question(nodes))
    batches = [batch for part in (nodes[:1], nodes[1:]) for batch in grown.batches(question(part))]
    assert len(shapes(batches)) == 2  # The first had room enough.
    assert sum(size for size, _ in batches) == COUNTS["member"]
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
