from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.graph.decoders import Decoder, DecoderConfig, SeedVectors
from star_jax.graph.match import MatchEncoder, MatchFeatures, MatchLayout
from star_jax.graph.schema import parse_key
from star_jax.graph.segments import hop_blocks
from tests.graph.subgraphs import COUNTS, random_subgraph

LAYOUT = MatchLayout(signatures=(("skill", COUNTS["skill"]),), width=4, text_width=6)
PARTNER = {"member": "job", "job": "member"}


def encode(params, subgraph, seed_type):
    apply = jax.jit(MatchEncoder(LAYOUT).apply, static_argnums=(2, 3))
    return np.asarray(apply({"params": params}, subgraph, seed_type, (PARTNER[seed_type],)))


@pytest.fixture(scope="module")
def params():
    subgraph = random_subgraph("member")
    return MatchEncoder(LAYOUT).init(jax.random.key(0), subgraph, "member", ("job",))["params"]


def features(layout, sender, receiver):
    found: Any = MatchFeatures(layout).apply({}, jnp.asarray(sender), jnp.asarray(receiver))
    return found


def direction(vector):
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 0 else vector


def neighbours(subgraph, seed_type, node_type, row, wanted):
    """(node table row) of every real neighbour of `wanted` type, hop block by hop block."""
    start = 0
    for hop, size in enumerate(hop_blocks(subgraph, seed_type)[node_type]):
        if start <= row < start + size:
            return [
                int(index)
                for key, table in subgraph.hops[hop].items()
                if parse_key(key)[0] == wanted and parse_key(key)[2] == node_type
                for index, real in zip(
                    table.index[row - start], table.mask[row - start], strict=True
                )
                if real
            ]
        start += size
    return []


def mean(vectors, width):
    return direction(np.mean(vectors, axis=0)) if len(vectors) else np.zeros(width)


def expected(params, subgraph, seed_type, row):
    """The definition, one seed at a time."""
    skills = np.asarray(params["signature_skill"])[subgraph.nodes["skill"].node]
    partner = PARTNER[seed_type]

    def near(node_type, node_row):
        found = neighbours(subgraph, seed_type, node_type, node_row, "skill")
        return mean([skills[index] for index in found], 4)

    def text(node_type, node_row):
        nodes = subgraph.nodes[node_type]
        if nodes.text_row[node_row] < 0 or not nodes.mask[node_row]:
            return np.zeros(6)
        return direction(np.asarray(nodes.texts)[nodes.text_row[node_row]])

    partners = neighbours(subgraph, seed_type, seed_type, row, partner)
    far = mean([near(partner, index) for index in partners], 4)
    told = mean([text(partner, index) for index in partners], 6)
    return np.concatenate([near(seed_type, row), far, text(seed_type, row), told])


@pytest.mark.parametrize("seed_type", ["member", "job"])
def test_vectors_follow_the_definition(params, seed_type):
    subgraph = random_subgraph(seed_type)
    found = encode(params, subgraph, seed_type)
    for row in np.flatnonzero(subgraph.nodes[seed_type].mask[: len(found)]):
        np.testing.assert_allclose(
            found[row], expected(params, subgraph, seed_type, row), atol=1e-6
        )


def test_signatures_learn_and_seeds_without_neighbours_have_finite_gradients(params):
    subgraph = random_subgraph("member")
    nothing = {
        key: table._replace(mask=np.zeros_like(table.mask))
        for key, table in subgraph.hops[0].items()
    }
    lonely = subgraph._replace(hops=(nothing, *subgraph.hops[1:]))

    def total(params, subgraph):
        vectors: Any = MatchEncoder(LAYOUT).apply({"params": params}, subgraph, "member", ("job",))
        return jnp.sum(vectors**3)

    learned = jax.jit(jax.grad(total))(params, subgraph)["signature_skill"]
    assert jnp.any(learned != 0)
    assert jnp.all(jax.jit(jax.grad(total))(params, lonely)["signature_skill"] == 0)
    assert not np.any(encode(params, lonely, "member")[:, :8])


def test_cosines_of_random_signatures_estimate_the_overlap_of_bags():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(40, 2000)) / np.sqrt(2000)
    a, b = rng.permutation(40)[:12], rng.permutation(40)[:12]
    overlap = len(np.intersect1d(a, b)) / 12
    layout = MatchLayout(signatures=(("skill", 40),), width=2000, text_width=0)
    u = np.concatenate([direction(table[a].mean(0)), np.zeros(2000)])[None]
    v = np.concatenate([direction(table[b].mean(0)), np.zeros(2000)])[None]
    products, columns = features(layout, u, v)
    assert products.shape == (1, 0)
    assert abs(float(columns[0, 0]) - overlap) < 0.1
    np.testing.assert_array_equal(columns[0, 1:], [0.0, 1.0, 0.0])  # far cosine; near, far there


def test_what_the_receivers_past_partners_say_changes_no_logit(params):
    sender, receiver = (
        encode(params, random_subgraph("member"), "member"),
        encode(params, random_subgraph("job"), "job"),
    )
    rows = np.arange(5)
    u = SeedVectors(np.zeros((5, 2), np.float32), sender[rows])
    parts = LAYOUT.split(jnp.asarray(receiver[rows]))
    changed = np.concatenate(
        [part + (1.0 if "far" in name else 0.0) for name, part in parts.items()], axis=1
    )
    decoder = Decoder(DecoderConfig(hidden_size=3), LAYOUT)
    vectors = [SeedVectors(np.zeros((5, 2), np.float32), x) for x in (receiver[rows], changed)]
    variables = decoder.init(jax.random.key(1), u, vectors[0], train=False)
    as_is, other = (np.asarray(decoder.apply(variables, u, v, train=False)) for v in vectors)
    np.testing.assert_array_equal(as_is, other)
    assert np.ptp(as_is) > 1e-3


def test_a_match_part_needs_the_mlp():
    with pytest.raises(ValueError, match=r"kind is dot, needed mlp where match\.enabled is true"):
        DecoderConfig(kind="dot")


def test_partners_of_a_type_without_texts_tell_nothing(params):
    subgraph = random_subgraph("member")
    bare = subgraph.nodes["job"]._replace(
        texts=np.zeros((1, 0), np.float32), text_row=np.full_like(subgraph.nodes["job"].node, -1)
    )
    found = encode(params, subgraph._replace(nodes=subgraph.nodes | {"job": bare}), "member")
    parts = LAYOUT.split(jnp.asarray(found))
    assert not jnp.any(parts["text/far"])
    assert jnp.any(parts["text/own"])
