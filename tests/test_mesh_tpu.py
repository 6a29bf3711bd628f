"""What bench/mesh_tpu.py hands to the compiler is what training would hand to it."""

import math

import jax
import numpy as np
import pytest

from bench import mesh_shapes
from star_jax.graph.engines.mesh.engine import MeshEngine
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import batch_shardings, put
from tests.graph.busy import make_world, question_of, seeds_of


def described(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)


def test_shapes_are_those_of_an_engine_and_its_requests(tmp_path):
    store = make_world().build(tmp_path, text=True)
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:4])
    engine = MeshEngine(store, mesh, text_precision="int8")
    nodes = engine.arrays.nodes
    shapes = mesh_shapes.graph_shapes(
        store.meta.schema,
        mesh,
        edges=engine.arrays.edges.sender.shape[0] // 4,
        removed=True,
        weighted=True,
        texts={name: nodes[name].text_time.shape[0] // 4 for name in store.text_vectors},
        text_width=store.text_size("job"),
    )
    assert described(shapes) == described(engine.arrays)
    batch = seeds_of(store, np.random.default_rng(0))
    question = question_of(store, [batch], (2,))
    made, _ = engine.prepare(question, batch, 0)
    request = jax.tree.map(lambda leaf: np.stack([leaf] * 4), made)
    placed = put(request, batch_shardings(request, mesh))
    assert described(mesh_shapes.request_shape(mesh, question)) == described(placed)


@pytest.mark.parametrize("mean", [0.3, 20.0])
def test_shares_of_degrees_are_poisson_s(mean):
    chance = [math.exp(-mean) * mean**i / math.factorial(i) for i in range(6)]
    expected = [1 - sum(chance[: i + 1]) for i in range(6)]
    np.testing.assert_allclose(mesh_shapes.poisson_above(mean, 6), expected, atol=1e-12)
    assert mesh_shapes.poisson_above(1e6, 3).tolist() == [1.0] * 3
