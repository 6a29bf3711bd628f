"""Graph training that is killed goes on as if it had not been."""

import json
import os
import signal
import subprocess
import sys

import jax
import pytest

from star_jax.jobs import train_graph
from tests.jobs import graph_runs, tiny_graph


def kill(workdir, plan):
    """Trains in a process of its own that ends in the middle."""
    command = [sys.executable, "-m", "tests.jobs.tiny_graph", str(workdir), plan]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    killed = subprocess.run(command, check=False, capture_output=True, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert graph_runs.losses(workdir)[-1][0] == tiny_graph.DIE_AT


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit(market, tmp_path):
    for name in ("whole", "killed"):
        graph_runs.begin(market, tmp_path / name)
    train_graph.run(tiny_graph.config(), tmp_path / "whole")
    kill(tmp_path / "killed", "exact")
    train_graph.run(tiny_graph.config(), tmp_path / "killed")
    assert graph_runs.losses(tmp_path / "killed") == graph_runs.losses(tmp_path / "whole")
    assert graph_runs.meta(tmp_path / "killed") == graph_runs.meta(tmp_path / "whole")


def test_a_budget_is_measured_once_however_often_a_run_is_killed(market, tmp_path, monkeypatch):
    workdir = graph_runs.begin(market, tmp_path / "budgeted")
    kill(workdir, "budgeted")
    plan = workdir / "graph_model" / "plan.json"
    before = plan.read_bytes()
    settled = json.loads(before)
    assert settled["timing"]
    assert settled["num_steps"] > tiny_graph.DIE_AT

    def measure(**_):
        raise AssertionError("measured again")

    monkeypatch.setattr(train_graph, "measure", measure)
    train_graph.run(tiny_graph.budgeted(), workdir)
    assert plan.read_bytes() == before
    assert [step for step, *_ in graph_runs.losses(workdir)] == list(
        range(1, settled["num_steps"] + 1)
    )
    assert graph_runs.meta(workdir)["num_steps"] == settled["num_steps"]
