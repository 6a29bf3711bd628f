"""kill -9 in every stage of `star run`, then the same command: the same numbers as undisturbed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from star_jax.pipeline.tables.schema_file import schema_json
from tests.pipeline.tables import mini

ROOT = Path(__file__).parent.parent
CONFIG = """
import dataclasses
from pathlib import Path

from configs.run import tiny
from star_jax.jobs.import_tables import ImportConfig


def get_config():
    # Few relations and one task: compiling is the cost.
    return dataclasses.replace(tiny.get_config(), tables=ImportConfig(source=Path({source!r})))
"""
STAGES = (
    *("import", "train-text", "export-text", "build-graph", "train-graph", "export-graph"),
    *("train-graph-only", "export-graph-only", "evaluate", "report"),
)


def _python(cache, *arguments):
    """Every process is new; only what XLA has compiled is kept between them."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


@pytest.fixture
def config(tmp_path):
    data = mini.write(tmp_path / "data", mini.tables())
    (data / "schema.json").write_text(schema_json(mini.schema()), encoding="utf-8")
    path = tmp_path / "run.py"
    path.write_text(CONFIG.format(source=str(data)), encoding="utf-8")
    return path


def _star_run(config, workdir):
    cache = workdir.parent / "compiled"
    done = _python(cache, "-m", "star_jax", "run", config, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(workdir / "report" / "metrics.json")
    return done


def _vectors(workdir):
    return {
        path.relative_to(workdir): np.load(path)
        for path in sorted(workdir.glob("*/*/vectors-*.npy"))
    }


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_with_the_same_numbers(config, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _star_run(config, whole)
    for name in STAGES:
        script = Path(__file__).parent / "jobs/killed_run.py"
        done = _python(tmp_path / "compiled", script, config, killed, name)
        assert done.returncode == -signal.SIGKILL, f"{name}: {done.stderr}"
    resumed = _star_run(config, killed)
    assert "unchanged, skipped" in resumed.stderr

    metrics = [json.loads((w / "report/metrics.json").read_text("utf-8")) for w in (whole, killed)]
    assert metrics[0] == metrics[1]
    assert set(metrics[0]["models"]) == {"text", "graph", "text+graph"}
    expected, got = _vectors(whole), _vectors(killed)
    assert expected.keys() == got.keys()
    assert len(expected) >= 5
    for path, vectors in expected.items():
        np.testing.assert_array_equal(got[path], vectors, err_msg=str(path))
    assert not [path for path in killed.iterdir() if path.name.startswith(".")]

    again = _star_run(config, killed)
    assert again.stderr.count("unchanged, skipped") == len(STAGES)
