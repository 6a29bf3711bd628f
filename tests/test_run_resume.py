"""kill -9 in every stage of `star run`, then the same command: the same numbers as undisturbed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs/run/tiny.py"
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


def _star_run(workdir):
    done = _python(
        workdir.parent / "compiled", "-m", "star_jax", "run", CONFIG, "--workdir", workdir
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(workdir / "report" / "metrics.json")
    return done


def _vectors(workdir):
    return {
        path.relative_to(workdir): np.load(path)
        for path in sorted(workdir.glob("*/*/vectors-*.npy"))
    }


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_with_the_same_numbers(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _star_run(whole)
    for name in STAGES:
        script = Path(__file__).parent / "jobs/killed_run.py"
        done = _python(tmp_path / "compiled", script, CONFIG, killed, name)
        assert done.returncode == -signal.SIGKILL, f"{name}: {done.stderr}"
    resumed = _star_run(killed)
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

    again = _star_run(killed)
    assert again.stderr.count("unchanged, skipped") == len(STAGES)
