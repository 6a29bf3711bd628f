"""The rules of `star run`: skip, do anew, go on, stop. The stages are small stand-ins."""

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.jobs.run import Stage, run_stages
from star_jax.train.stopping import Stopped


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    word: str = "a"
    source: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoConfig:
    first: StageConfig = StageConfig()
    second: StageConfig = StageConfig()


class StoppedError(Exception):
    pass


class Jobs:
    """Two stages: `first` writes its folder at once, `second` in place, step by step."""

    def __init__(self):
        self.ran: list[str] = []
        self.stop_second = False

    def first(self, config: StageConfig, workdir: Path) -> None:
        self.ran.append("first")
        with artefacts.writing(workdir / "first", "first") as partial:
            (partial / "data").write_text(config.word, encoding="utf-8")

    def second(self, config: StageConfig, workdir: Path) -> None:
        folder = workdir / "second"
        going_on = (folder / "step").exists()
        self.ran.append("second goes on" if going_on else "second")
        (folder / "step").write_text(config.word, encoding="utf-8")
        if self.stop_second:
            raise StoppedError
        artefacts.seal(folder, "second", {})

    def stages(self, config: TwoConfig) -> list[Stage]:
        return [
            Stage("first", self.first, config.first, "first", "first", (), False),
            Stage("second", self.second, config.second, "second", "second", ("first",), True),
        ]

    def run(self, config: TwoConfig, workdir: Path) -> list[str]:
        """Returns what ran."""
        self.ran.clear()
        run_stages(self.stages(config), workdir)
        return list(self.ran)


@pytest.fixture
def jobs():
    return Jobs()


def test_unchanged_stages_are_skipped(jobs, tmp_path):
    assert jobs.run(TwoConfig(), tmp_path) == ["first", "second"]
    assert jobs.run(TwoConfig(), tmp_path) == []
    record = json.loads((tmp_path / "second" / artefacts.STAGE).read_text(encoding="utf-8"))
    assert record["config"] == {"word": "a", "source": None}
    assert record["inputs"] == {"first": artefacts.digest(tmp_path / "first")}
    assert record["seconds"] > 0


def test_a_changed_config_reaches_what_depends_on_it(jobs, tmp_path):
    jobs.run(TwoConfig(), tmp_path)
    other = TwoConfig(second=StageConfig(word="b"))
    assert jobs.run(other, tmp_path) == ["second"]
    changed = dataclasses.replace(other, first=StageConfig(word="c"))
    assert jobs.run(changed, tmp_path) == ["first", "second"]
    assert jobs.run(changed, tmp_path) == []


def test_files_that_a_config_names_are_inputs(jobs, tmp_path):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "table").write_text("1", encoding="utf-8")
    config, work = TwoConfig(first=StageConfig(source=source)), tmp_path / "w"
    jobs.run(config, work)
    assert jobs.run(config, work) == []
    (source / "deep" / "table").write_text("2", encoding="utf-8")
    assert jobs.run(config, work) == ["first"]  # Same output, so `second` has nothing to do.
    (source / "deep" / "table").rename(source / "table")
    assert jobs.run(config, work) == ["first"]
    with pytest.raises(InputError, match=r"source: .*/none does not exist"):
        jobs.run(TwoConfig(first=StageConfig(source=tmp_path / "none")), work)


def test_what_a_stage_reads_elsewhere_counts(jobs, tmp_path):
    elsewhere = {"older": "a"}
    first, second = jobs.stages(TwoConfig())
    first = first._replace(others=lambda: elsewhere)
    for digest, expected in (("a", ["first", "second"]), ("a", []), ("b", ["first"])):
        elsewhere["older"] = digest
        jobs.ran.clear()
        run_stages([first, second], tmp_path)
        assert jobs.ran == expected


def test_an_interrupted_stage_goes_on(jobs, tmp_path):
    jobs.stop_second = True
    with pytest.raises(StoppedError):
        jobs.run(TwoConfig(), tmp_path)
    jobs.stop_second = False
    assert jobs.run(TwoConfig(), tmp_path) == ["second goes on"]
    assert jobs.run(TwoConfig(), tmp_path) == []


def test_a_stopped_training_ends_the_run(jobs, tmp_path):
    def train(config, workdir):
        (workdir / "model" / "step").write_text("1", encoding="utf-8")
        raise Stopped(signal.SIGTERM, 3, workdir / "model")

    first, second = jobs.stages(TwoConfig())
    model = Stage("train", train, StageConfig(), "model", "model", (), True)
    with pytest.raises(Stopped, match="stopped by SIGTERM after step 3"):
        run_stages([first, model, second], tmp_path)
    assert jobs.ran == ["first"]
    record = json.loads((tmp_path / "model" / artefacts.STAGE).read_text(encoding="utf-8"))
    assert record["state"] == "running"


def test_a_stage_that_never_began_leaves_nothing(jobs, tmp_path):
    def second(config, workdir):
        raise StoppedError

    stages = jobs.stages(TwoConfig())
    with pytest.raises(StoppedError):
        run_stages([stages[0], stages[1]._replace(run=second)], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_an_interrupted_stage_starts_again_on_other_inputs(jobs, tmp_path):
    jobs.stop_second = True
    with pytest.raises(StoppedError):
        jobs.run(TwoConfig(), tmp_path)
    jobs.stop_second = False
    changed = TwoConfig(first=StageConfig(word="b"))
    assert jobs.run(changed, tmp_path) == ["first", "second"]


DIE_CLEARING = """
import os, shutil, signal, sys
from pathlib import Path

from tests.jobs.test_run import Jobs, StageConfig, TwoConfig


def rmtree(folder):
    if sys.argv[2] != "none":
        (Path(folder) / sys.argv[2]).unlink()
    os.kill(os.getpid(), signal.SIGKILL)


shutil.rmtree = rmtree
Jobs().run(TwoConfig(second=StageConfig(word="b")), Path(sys.argv[1]))
"""


@pytest.mark.parametrize("gone", ["none", "step", artefacts.MANIFEST, artefacts.STAGE])
def test_a_run_killed_while_it_clears_a_folder_starts_that_stage_again(jobs, tmp_path, gone):
    jobs.run(TwoConfig(), tmp_path)
    command = [sys.executable, "-c", DIE_CLEARING, str(tmp_path), gone]
    killed = subprocess.run(command, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    other = TwoConfig(second=StageConfig(word="b"))
    assert jobs.run(other, tmp_path) == ["second"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    assert jobs.run(other, tmp_path) == []


def test_a_damaged_output_stops_the_run(jobs, tmp_path):
    jobs.run(TwoConfig(), tmp_path)
    (tmp_path / "first" / "data").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"first/data has 0 bytes, needed 1"):
        jobs.run(TwoConfig(), tmp_path)


@pytest.mark.parametrize("state", ["done", "running"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[: len(text) // 2], "Unterminated|Expecting|delimiter"),
        (lambda text: "", "Expecting value"),
        (lambda text: "[]", "it has no state, config, inputs, seconds"),
        (lambda text: text.replace('"inputs"', '"input"'), "it has no inputs"),
        (lambda text: "\udcff", "can't decode"),
    ],
)
def test_a_damaged_record_is_named(jobs, tmp_path, state, damage, reason):
    jobs.stop_second = state == "running"
    with contextlib.suppress(StoppedError):
        jobs.run(TwoConfig(), tmp_path)
    path = tmp_path / "second" / artefacts.STAGE
    text = path.read_text(encoding="utf-8")
    assert f'"state": "{state}"' in text
    path.write_bytes(damage(text).encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=rf"second/stage.json is damaged \(.*({reason}).*; remove"):
        jobs.run(TwoConfig(), tmp_path)


def test_a_stage_done_by_its_own_command_counts_as_changed_output(jobs, tmp_path):
    jobs.run(TwoConfig(), tmp_path)
    jobs.first(StageConfig(word="z"), tmp_path)  # Leaves no record.
    assert jobs.run(TwoConfig(), tmp_path) == ["first"]


def test_two_runs_do_not_work_in_one_folder(jobs, tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another `star run` works in"):
        jobs.run(TwoConfig(), tmp_path)
    os.close(handle)
    assert jobs.run(TwoConfig(), tmp_path) == ["first", "second"]


def test_a_failure_leaves_no_empty_folder(jobs, tmp_path):
    config = TwoConfig(first=StageConfig(source=tmp_path / "none"))
    with pytest.raises(InputError):
        jobs.run(config, tmp_path / "w")
    assert list(tmp_path.iterdir()) == []
