import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from star_jax.config import InputError
from tests.train import regression


def rows(folder, split):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def losses(folder):
    return [(row["step"], row["loss"]) for row in rows(folder, "train")]


def killed_run(folder, what):
    env = os.environ | {"PYTHONPATH": str(Path(regression.__file__).parents[2])}
    done = subprocess.run([sys.executable, regression.__file__, folder, what], env=env)
    assert done.returncode == -signal.SIGKILL


def test_learns_and_reports_every_step(tmp_path):
    trained = regression.run(tmp_path, regression.Job(num_steps=40))
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 41))
    assert losses(tmp_path)[-1][1] < 0.5 * losses(tmp_path)[0][1]
    assert [row["step"] for row in rows(tmp_path, "val")] == list(range(0, 41, 4))
    scores = {row["step"]: row["score"] for row in rows(tmp_path, "val")}
    assert trained.best == max(scores.items(), key=lambda item: item[1])
    first = rows(tmp_path, "train")[0]
    mask = regression.Batches().__next__().mask
    assert first["padding"] == 1 - mask.sum() / regression.ROWS


@pytest.mark.parametrize("what", ["7", "save"])  # While a batch is made; inside a save.
def test_a_killed_run_repeats_an_uninterrupted_one(tmp_path, what):
    whole = regression.run(tmp_path / "whole", regression.Job())
    killed_run(tmp_path / "killed", what)
    resumed = regression.run(tmp_path / "killed", regression.Job())
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert resumed.best == whole.best
    jax.tree.map(np.testing.assert_array_equal, resumed.state.trainable, whole.state.trainable)
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


def test_a_finished_run_trains_no_more(tmp_path):
    regression.run(tmp_path, regression.Job())
    before = losses(tmp_path)
    batches = regression.KillingBatches(regression.Job().num_steps)
    regression.run(tmp_path, regression.Job(), batches=batches)
    assert losses(tmp_path) == before


def test_another_config_does_not_resume(tmp_path):
    regression.run(tmp_path, regression.Job())
    with pytest.raises(InputError, match="num_steps: 12 -> 13"):
        regression.run(tmp_path, regression.Job(num_steps=13))


def test_divergence_stops_with_the_step(tmp_path):
    class Broken(regression.Batches):
        def __next__(self):
            batch = super().__next__()
            return batch._replace(y=batch.y * (np.nan if self.position == 3 else 1))

    with pytest.raises(FloatingPointError, match="nan at step 3"):
        regression.run(tmp_path, regression.Job(), batches=Broken())
