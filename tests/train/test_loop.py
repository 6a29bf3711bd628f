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
from star_jax.train.reporter import Reporter
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


class Broken(regression.Batches):
    """Batch 3 makes the loss NaN, or leaves it finite where the gradient's norm overflows."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def __next__(self):
        batch = super().__next__()
        if self.position != 3:
            return batch
        if self.how == "loss":
            return batch._replace(y=batch.y * np.float32(np.nan))
        sign = np.sign(batch.x[:, :1])
        return batch._replace(x=batch.x + 1e6 * sign, y=np.float32(1e16) * sign[:, 0])


@pytest.mark.parametrize(
    ("how", "message"), [("loss", "loss is nan"), ("gradient", "^gradient_norm is inf")]
)
def test_divergence_stops_with_the_batch_saved_and_the_state_not(tmp_path, how, message):
    with pytest.raises(FloatingPointError, match=rf"{message}.* at step 3; its batch is in .*npz"):
        regression.run(tmp_path, regression.Job(), batches=Broken(how))
    batches = Broken(how)
    _, _, third = next(batches), next(batches), next(batches)
    saved = np.load(tmp_path / "nan" / "step-00000003.npz")
    assert set(saved) == {"x", "y", "mask"}
    for name in saved:
        np.testing.assert_array_equal(saved[name], getattr(third, name))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000000"]
    assert [step for step, _ in losses(tmp_path)] == [1, 2]


def test_the_devices_have_a_step_while_the_one_before_is_reported(tmp_path, monkeypatch):
    events, log = [], Reporter.log

    class Told(regression.Batches):
        def __next__(self):
            events.append(("batch", self.position + 1))
            return super().__next__()

    def telling(self, step, split, metrics):
        events.append((split, step))
        log(self, step, split, metrics)

    monkeypatch.setattr(Reporter, "log", telling)
    regression.run(tmp_path, regression.Job(num_steps=5), batches=Told())
    order = [("batch", 2), ("train", 1), ("batch", 3), ("train", 2), ("batch", 4), ("train", 3)]
    # A validation, and what it saves, wait for the last step to be known as finite.
    assert events == [
        *[("val", 0), ("batch", 1), *order, ("train", 4), ("val", 4)],
        *[("batch", 5), ("train", 5), ("val", 5)],
    ]


def scripted(state):
    """Best at step 8."""
    return {"score": -abs(int(state.step) - 8.0)}


class Interrupted(regression.Batches):
    def __next__(self):
        if self.position == 14:
            raise KeyboardInterrupt
        return super().__next__()


def test_patience_ends_a_run_and_a_resumed_one_alike(tmp_path):
    job = regression.Job(num_steps=40, patience=2)
    whole = regression.run(tmp_path / "whole", job, validate=scripted)
    assert [row["step"] for row in rows(tmp_path / "whole", "val")] == [0, 4, 8, 12, 16]
    assert (int(whole.state.step), whole.best.step) == (16, 8)
    with pytest.raises(KeyboardInterrupt):
        regression.run(tmp_path / "cut", job, validate=scripted, batches=Interrupted())
    resumed = regression.run(tmp_path / "cut", job, validate=scripted)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, resumed.state.trainable, whole.state.trainable)
    again = regression.run(tmp_path / "cut", job, validate=scripted)
    assert int(again.state.step) == 16


def test_no_checkpoint_is_the_best_before_it_may_be(tmp_path):
    """Scores are highest at step 8; until step 13 the newest checkpoint stands in for the best."""
    job = regression.Job(num_steps=40, patience=2, accept_from=13)
    whole = regression.run(tmp_path / "whole", job, validate=scripted)
    validated = {row["step"]: row["score"] for row in rows(tmp_path / "whole", "val")}
    accepted = {step: score for step, score in validated.items() if step >= 13}
    assert max(validated, key=validated.__getitem__) == 8
    assert whole.best == max(accepted.items(), key=lambda item: item[1])
    assert int(whole.state.step) == whole.best.step + 2 * 4
    with pytest.raises(KeyboardInterrupt):
        regression.run(tmp_path / "cut", job, validate=scripted, batches=Interrupted())
    assert regression.run(tmp_path / "cut", job, validate=scripted).best == whole.best


def test_rows_hold_the_figures(tmp_path, caplog):
    caplog.set_level("INFO")
    regression.run(tmp_path, regression.Job(num_steps=3))
    last = rows(tmp_path, "train")[-1]
    assert last["rows_per_s"] > 0
    assert 0 <= last["data_wait"] <= 1
    assert last["hfu"] == pytest.approx(2 * last["mfu"])
    assert last["peak_rss_bytes"] > 1e7
    assert last["eta_s"] == 0
    (line,) = [m for m in caplog.messages if m.startswith("regression 100 %")]
    for part in ("rows/s", "ETA", "loss", "real rows", "MFU", "HFU", "data wait", "peak RSS"):
        assert f"{part} " in line or line.count(part)
