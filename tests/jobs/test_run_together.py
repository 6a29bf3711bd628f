"""Stages of a run, and commands that one process does, by two real processes."""

import json
import signal
import time

from star_jax import artefacts
from tests.jobs.together import finish, start

IMPORT = """
from pathlib import Path

from star_jax.jobs.import_tables import ImportConfig
from star_jax.pipeline.market.size import MarketConfig

def get_config():
    return ImportConfig({fields})
"""


def logs(folder):
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))


def test_one_process_does_a_stage_while_the_other_waits(begin, tmp_path):
    assert [process.wait(timeout=120) for process in begin("stages_together", tmp_path, "2.0")] == [
        0,
        0,
    ], logs(tmp_path)
    # One device prepares and scores. Two train: each of four weights is 1 + 10 + 11.
    assert json.loads((tmp_path / "scores" / "values").read_text()) == [1, 88.0, 88.0]
    records = [tmp_path / name / artefacts.STAGE for name in ("data", "model", "scores", "again")]
    before = [record.read_text() for record in records]
    assert [json.loads(text)["state"] for text in before] == ["done"] * 4
    assert [process.wait(timeout=120) for process in begin("stages_together", tmp_path, "2.0")] == [
        0,
        0,
    ], logs(tmp_path)
    assert [record.read_text() for record in records] == before  # Nothing was done again.


def test_a_signal_ends_a_process_that_waits(begin, tmp_path):
    processes = begin("stages_together", tmp_path, "300.0")
    end = time.monotonic() + 120
    while not (tmp_path / "began").exists():
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes), logs(tmp_path)
        time.sleep(0.1)
    processes[1].terminate()
    assert processes[1].wait(timeout=5) == -signal.SIGTERM


def test_a_command_of_one_process_is_done_once(tmp_path):
    said = finish(tmp_path, 2, "import", IMPORT.format(fields='market=MarketConfig(size="tiny")'))
    artefacts.verify(tmp_path / "tables")
    assert "market of 200 members" in said[0]
    assert "market of" not in said[1]


def test_what_is_wrong_for_the_first_ends_the_other(tmp_path):
    wrong = IMPORT.format(fields='source=Path("/no/such")')
    processes = start(tmp_path, 2, "import", wrong)
    codes = [process.wait(timeout=120) for process in processes]
    assert codes[0] == 2
    assert codes[1] != 0
    assert "/no/such" in (tmp_path / "0.log").read_text()
