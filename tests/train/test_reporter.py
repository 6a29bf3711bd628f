import json

import numpy as np
import pytest

from star_jax.train import reporter as reporting
from star_jax.train.reporter import Progress, Reporter, clock


@pytest.fixture
def now(monkeypatch):
    class Clock:
        value = 100.0

    monkeypatch.setattr(reporting.time, "monotonic", lambda: Clock.value)
    return Clock


def test_rate_and_remaining_time(now):
    progress = Progress("export", 100.0, "tokens")
    progress.skip(20.0)
    now.value += 10.0
    progress.advance(20.0, 5_000.0)
    assert progress.rate == 500.0
    assert progress.line("x") == "export 40 %, 500 tokens/s, ETA 0:00:30, x"


def test_a_pause_slows_the_remaining_time_but_not_the_rate(now):
    progress = Progress("train", 100.0, "tokens")
    now.value += 5.0
    with progress.pausing():
        now.value += 5.0
    progress.advance(20.0, 5_000.0)
    assert (progress.rate, progress.left_s) == (1_000.0, 40.0)


def test_speaks_at_intervals_and_at_the_end(now, caplog):
    caplog.set_level("INFO")
    progress = Progress("export", 30.0, "texts")
    for _ in range(30):
        now.value += 1.0
        progress.advance(1.0, 2.0)
    assert len(caplog.messages) == 3
    assert caplog.messages[-1] == "export 100 %, 2 texts/s, ETA 0:00:00"


def test_metrics_are_exact_and_survive_a_kill(tmp_path):
    loss = float(np.float32(0.1))
    first = Reporter(tmp_path)
    first.resume(0)
    for step in (1, 2, 3):
        first.log(step, "train", {"loss": loss})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "spl')
    second = Reporter(tmp_path)
    second.resume(2)
    second.log(3, "train", {"loss": 0.5})
    second.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, loss), (2, loss), (3, 0.5)]
    assert rows[2]["time_s"] >= rows[1]["time_s"]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_kill_while_resuming_loses_no_metric(tmp_path):
    """Who had the file open still reads all of it: the shorter one takes its place at once."""
    first = Reporter(tmp_path)
    first.resume(0)
    for step in (1, 2):
        first.log(step, "train", {"loss": 1.0})
    first.close()
    with (tmp_path / "metrics.jsonl").open() as file:
        Reporter(tmp_path).resume(1)
        assert len(file.read().splitlines()) == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_clock():
    assert [clock(59.6), clock(3661.0), clock(float("inf"))] == ["0:01:00", "1:01:01", "-"]
