import dataclasses

import jax
import numpy as np
import pytest

from star_jax import trees
from star_jax.graph.features import NodeFeatures, SliceLayer
from tests.graph.subgraphs import node_table

DIM = 8
ALL = NodeFeatures("member", 30, 6, (4, 3), 2)


def count(features, dim):
    nodes = node_table(np.random.default_rng(0), features, 5, 1)
    init = SliceLayer(features, dim, "linear").init
    return trees.count(jax.eval_shape(init, jax.random.key(0), nodes)["params"])


@pytest.mark.parametrize(
    ("without", "in_dim"),
    [
        ({"text_size": 0}, 6),
        ({"num_identities": 0}, 31),  # One of them for all that are new.
        ({"cardinalities": (4,)}, 3),
        ({"dense_size": 0}, 2),
    ],
)
def test_a_feature_has_exactly_its_width_times_dim_parameters(without, in_dim):
    fewer = dataclasses.replace(ALL, **without)
    assert count(ALL, DIM) - count(fewer, DIM) == in_dim * DIM


@pytest.mark.parametrize(("in_dim", "parameters"), [(4096, 819_200), (200, 40_000)])
def test_the_slices_that_the_paper_counts(in_dim, parameters):
    bare = NodeFeatures("member", 0, 0, (), 0)
    with_text = dataclasses.replace(bare, text_size=in_dim)
    assert count(with_text, 200) - count(bare, 200) == parameters


@pytest.mark.parametrize("activation", ["linear", "leaky_relu"])
def test_sums_the_slices_of_what_a_node_has(activation):
    nodes = node_table(np.random.default_rng(1), ALL, 30, 2)
    assert -1 in nodes.text_row
    assert set(nodes.seen.tolist()) == {True, False}
    layer = SliceLayer(ALL, DIM, activation)
    params = layer.init(jax.random.key(1), nodes)["params"]
    params = jax.tree.map(
        lambda x: np.asarray(jax.random.normal(jax.random.key(2), x.shape)), params
    )
    got = jax.jit(layer.apply)({"params": params}, nodes)
    for row in range(30):
        known = params["identity_embedding"][nodes.node[row]]
        expected = params["bias"] + (known if nodes.seen[row] else params["identity_unseen"])
        for column in range(2):
            table = params[f"categorical_{column}_embedding"]
            expected = expected + table[nodes.categorical[row, column]]
        expected = expected + nodes.dense[row] @ params["dense_kernel"]
        if nodes.text_row[row] < 0:
            expected = expected + params["missing"]
        else:
            text = nodes.texts[nodes.text_row[row]]
            expected = expected + 6**0.5 * text @ params["text_kernel"]
        if activation == "leaky_relu":
            expected = np.where(expected > 0, expected, 0.2 * expected)
        np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=1e-4)


def test_a_text_is_projected_once_however_many_nodes_show_it():
    nodes = node_table(np.random.default_rng(1), ALL, 50, 0)
    layer = SliceLayer(dataclasses.replace(ALL, dense_size=0), DIM, "linear")
    params = layer.init(jax.random.key(1), nodes)["params"]
    text = jax.jit(layer.apply).lower({"params": params}, nodes).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 1
    assert "tensor<7x6xf32>, tensor<6x8xf32>" in products[0]
