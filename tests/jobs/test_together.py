"""One training by several real processes, which meet over this machine's own network."""

import json
import shutil
import time

import numpy as np
import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.parallel.processes import Joined
from tests.jobs.together import EXPORT, finish, start, training
from tests.pipeline.text_market import write_tables

PLAN = "num_steps=8, validate_epochs=0.4"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """As one process trains."""
    folder = tmp_path_factory.mktemp("alone")
    write_tables(folder / "tables")
    finish(folder, 1, "train-text", training(plan=PLAN))
    return folder


@pytest.fixture
def folder(tmp_path):
    """The same tables."""
    write_tables(tmp_path / "tables")
    return tmp_path


@pytest.fixture
def started():
    """Starts processes, and ends what is left of them."""
    running = []

    def begin(*arguments):
        running.extend(start(*arguments))
        return running

    yield begin
    for process in running:
        process.kill()
        process.wait()


def reported(folder):
    """Step, split, and what is the same on every machine."""
    rows = map(json.loads, (folder / "text" / "metrics.jsonl").read_text().splitlines())
    names = ("step", "loss", "gradient_norm", "bce", "score")
    return [[row[name] for name in names if name in row] for row in rows]


def check_equal(folder, alone):
    expected = reported(alone)
    assert len(expected) == 13
    for found, row in zip(reported(folder), expected, strict=True):
        np.testing.assert_allclose(found, row, rtol=1e-4)
    artefacts.verify(folder / "text")


def wait_for_steps(folder, processes):
    """Until the third is reported, after a checkpoint at the second."""
    path = folder / "text" / "metrics.jsonl"
    end = time.monotonic() + 240
    while time.monotonic() < end:
        logs = [log.read_text() for log in folder.glob("*.log")]
        assert all(process.poll() is None for process in processes), logs
        if path.is_file() and path.read_text().count('"train"') >= 3:
            return
        time.sleep(0.1)
    raise AssertionError("no step was reported")


def test_four_processes_train_as_one_does(alone, folder):
    logs = finish(folder, 4, "train-text", training(fsdp=2, plan=PLAN))
    check_equal(folder, alone)
    assert "train-text 100 %" in logs[0]
    assert not any("train-text" in log for log in logs[1:])  # One log.


def test_one_process_goes_on_where_two_were_killed(alone, folder, started):
    processes = started(folder, 2, "train-text", training(fsdp=2, plan=PLAN))
    wait_for_steps(folder, processes)
    for process in processes:
        process.kill()
        process.wait()
    (log,) = finish(folder, 1, "train-text", training(plan=PLAN))
    assert "restored" in log
    check_equal(folder, alone)


def test_two_processes_export_what_one_does(alone, tmp_path):
    digests = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        for name in ("tables", "text", "text_tokens"):
            shutil.copytree(alone / name, folder / name)
        finish(folder, count, "export-text", EXPORT)
        digests.append(artefacts.digest(folder / "text_embeddings"))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_ends_the_others_and_is_named(folder, started, victim):
    endless = training(plan="num_steps=100_000, validate_epochs=1000.0")
    processes = started(folder, 2, "train-text", endless)
    wait_for_steps(folder, processes)
    processes[victim].kill()
    killed = time.monotonic()
    code = processes[1 - victim].wait(timeout=90)
    assert time.monotonic() - killed < 60
    assert code != 0
    log = (folder / f"{1 - victim}.log").read_text()
    assert ("heartbeats):\n1\n" if victim else "leader task") in log, log


def test_a_signal_to_one_process_stops_all_at_one_checkpoint(folder, started):
    endless = training(plan="num_steps=100_000, validate_epochs=1000.0")
    processes = started(folder, 2, "train-text", endless)
    wait_for_steps(folder, processes)
    processes[1].terminate()
    assert [process.wait(timeout=120) for process in processes] == [143, 143]
    steps = [path.name for path in (folder / "text" / "checkpoints").iterdir()]
    for index in range(2):
        log = (folder / f"{index}.log").read_text()
        assert f"{max(steps)} holds it; the same command goes on from there" in log
    assert int(max(steps).removeprefix("step-")) % 10 == 0


def test_what_is_wrong_ends_all_processes_at_once(folder, started):
    """Each says what it is, unless it is ended for want of the first one before."""
    (folder / "text").mkdir()
    (folder / "text" / "job.json").write_text("{}")
    processes = started(folder, 2, "train-text", training(plan=PLAN))
    codes = [process.wait(timeout=120) for process in processes]
    assert codes[0] == 2
    assert codes[1] != 0
    assert "job.json is damaged" in (folder / "0.log").read_text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coordinator": "localhost:1"}, "--num-processes and --process-id"),
        ({"coordinator": "auto", "num_processes": 2}, "both or none"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "from 0 on"),
    ],
)
def test_what_is_missing_is_named(fields, message):
    with pytest.raises(InputError, match=message):
        Joined(**fields)
