"""Graph training that is killed goes on as if it had not been, by the plan it had measured."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from star_jax.embeddings.table import read_table
from star_jax.graph.model import init_model
from star_jax.jobs import export_graph, train_graph
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline.graph_model import open_trained
from tests.jobs import graph_runs, tiny_graph


def sampled_sizes(workdir):
    return [n for row in graph_runs.rows(workdir, "val") for n in row if n.startswith("score@")]


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit_and_measures_its_budget_once(
    market, tmp_path, monkeypatch
):
    whole, killed = (graph_runs.begin(market, tmp_path / name) for name in ("whole", "killed"))
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    command = [sys.executable, "-m", "tests.jobs.tiny_graph", str(killed)]
    done = subprocess.run(command, check=False, capture_output=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert graph_runs.losses(killed)[-1][0] == tiny_graph.DIE_AT
    newest = max(path.name for path in (killed / "graph_model" / "checkpoints").iterdir())
    assert 0 < int(newest.removeprefix("step-")) < tiny_graph.DIE_AT
    plan = killed / "graph_model" / "plan.json"
    before = plan.read_bytes()
    settled = json.loads(before)
    assert settled["timing"]
    assert settled["num_steps"] > tiny_graph.DIE_AT

    def measure(**_):
        raise AssertionError("measured again")

    monkeypatch.setattr(train_graph, "measure", measure)
    train_graph.run(tiny_graph.growing(), killed)
    assert plan.read_bytes() == before
    unbudgeted = dataclasses.replace(tiny_graph.BUDGETED, budget_s=None)
    train_graph.run(tiny_graph.growing(unbudgeted), whole)
    assert graph_runs.losses(killed) == graph_runs.losses(whole)
    assert len(graph_runs.losses(killed)) == settled["num_steps"]
    assert graph_runs.meta(killed) == graph_runs.meta(whole)
    sizes = [sampled_sizes(folder) for folder in (killed, whole)]
    assert sizes[0] == sizes[1] == ["score@2"] * 2 + ["score@6"] * 4
    parameters = [
        open_trained(folder, "graph_model", make_mesh(MeshConfig(data=1), jax.devices()[:1]))
        for folder in (killed, whole)
    ]
    jax.tree.map(np.testing.assert_array_equal, *(each.variables for each in parameters))
    check_skills(killed, parameters[0])


def check_skills(workdir, trained):
    """Export reads the tables; skills of too few edges share a vector."""
    export_graph.run(GraphExportConfig(mesh=MeshConfig(data=1), node_types=("skill",)), workdir)
    vectors = read_table(workdir / "graph_embeddings", "skill").vectors
    params = trained.variables["params"]
    fresh = init_model(trained.model, 0)[0]["features_skill"]
    parts = {name: np.asarray(leaf) for name, leaf in params["features_skill"].items()}
    table = parts["identity_embedding"]
    assert table.shape == (128, 8)
    moved = (table != np.asarray(fresh["identity_embedding"])).any(axis=1)
    assert moved.tolist() == [True] * 4 + [False] * 124
    shared = np.broadcast_to(parts["identity_unseen"], (4, 8))
    expected = np.concatenate([table[:4], shared]) + parts["bias"]
    np.testing.assert_allclose(vectors, expected, rtol=1e-5)
