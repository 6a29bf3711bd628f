"""`star train-text` and `star train-graph` stopped by SIGTERM, as a scheduler does it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from star_jax import artefacts
from tests.jobs import graph_runs
from tests.pipeline.text_market import write_tables
from tests.train import stored

ROOT = Path(__file__).parents[2]
JOBS = {"train-text": ("tiny_text", "text"), "train-graph": ("tiny_graph", "graph_model")}
NUM_STEPS = 8
CONFIG = """
from tests.jobs.{module} import config


def get_config():
    return config(num_steps={num_steps})
"""


def start(job, workdir):
    config = workdir / "config.py"
    config.write_text(CONFIG.format(module=JOBS[job][0], num_steps=NUM_STEPS), encoding="utf-8")
    command = [sys.executable, "-m", "star_jax", job, config, "--workdir", workdir]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def reported(folder):
    """Newest step that training has reported."""
    log = folder / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.is_file() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return max((row["step"] for row in whole if row["split"] == "train"), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_stopped_run_repeats_an_undisturbed_one(job, market, tmp_path):
    """Stopped after a random step: the signal comes while the next one runs."""
    output, folders = JOBS[job][1], [tmp_path / name for name in ("whole", "stopped")]
    for folder in folders:
        folder.mkdir()
        if job == "train-text":
            write_tables(folder / "tables")
        else:
            graph_runs.begin(market, folder)
    whole, stopped = folders
    at = random.SystemRandom().randrange(1, NUM_STEPS - 1)
    process = start(job, stopped)
    while reported(stopped / output) < at:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 143, said
    newest = stored.newest(stopped / output / "checkpoints")
    artefacts.verify(newest)
    step = int(newest.name.removeprefix("step-"))
    assert said.splitlines()[-1] == (
        f"star: stopped by SIGTERM after step {step}; {newest} holds it; "
        "the same command goes on from there"
    )
    assert at <= step <= NUM_STEPS
    assert not (stopped / output / artefacts.MANIFEST).exists()

    for folder in (stopped, whole):
        process = start(job, folder)
        assert "Traceback" not in process.communicate()[1]
        assert process.returncode == 0
    ends = [stored.newest(folder / output / "checkpoints") for folder in folders]
    assert [end.name for end in ends] == [f"step-{NUM_STEPS:08d}"] * 2
    assert stored.digest(ends[0]) == stored.digest(ends[1]), f"stopped after step {at}"
    losses = [graph_runs.losses(folder, output) for folder in folders]
    assert losses[0] == losses[1]
