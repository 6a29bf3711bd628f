"""Graph training that is killed goes on as if it had not been, by the plan it had measured."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import pytest

from star_jax.jobs import train_graph
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
    growing = tiny_graph.config(plan=tiny_graph.BUDGETED, adaptive=tiny_graph.GROWING)
    train_graph.run(growing, killed)
    assert plan.read_bytes() == before
    unbudgeted = dataclasses.replace(tiny_graph.BUDGETED, budget_s=None)
    train_graph.run(dataclasses.replace(growing, plan=unbudgeted), whole)
    assert graph_runs.losses(killed) == graph_runs.losses(whole)
    assert len(graph_runs.losses(killed)) == settled["num_steps"]
    assert graph_runs.meta(killed) == graph_runs.meta(whole)
    sizes = [sampled_sizes(folder) for folder in (killed, whole)]
    assert sizes[0] == sizes[1] == ["score@2"] * 2 + ["score@6"] * 4
