import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from star_jax import __version__, cli
from star_jax.commands import COMMANDS, GROUPS, READING
from star_jax.config import InputError
from star_jax.train.stopping import Stopped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobConfig:
    steps: int = 3
    inner: Inner = Inner()
    names: tuple[str, ...] = ("a", "b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeConfig:
    other: Inner = Inner()
    job: JobConfig = JobConfig()


COMPILES = """
import jax
from star_jax.jobs.evaluate import EvaluateConfig


def get_config():
    def triple(x):
        return 3 * x

    jax.jit(triple)(1.0)
    return EvaluateConfig()
"""


@pytest.fixture
def calls(monkeypatch):
    """`star evaluate` runs a job that notes its arguments; the log is put back afterwards."""
    noted = []

    def run(config: JobConfig, workdir: Path) -> None:
        noted.append((config, workdir))

    module = types.ModuleType("star_jax.jobs.evaluate")
    module.run = run  # pyright: ignore[reportAttributeAccessIssue] # a stand-in
    monkeypatch.setitem(sys.modules, "star_jax.jobs.evaluate", module)
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    monkeypatch.setattr(logging.getLogger("star_jax"), "level", logging.INFO)
    return noted


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    """Writes a config file that returns one of the configs above."""

    def write(returned="JobConfig()"):
        path = tmp_path / "mine.py"
        path.write_text(
            f"import configs_of_test as c\n\ndef get_config():\n    return c.{returned}\n",
            encoding="utf-8",
        )
        return str(path)

    monkeypatch.setitem(sys.modules, "configs_of_test", sys.modules[__name__])
    return write


def test_compiled_programs_are_kept_beside_the_artefacts(tmp_path):
    """In a process of its own: JAX reads where it keeps them when it is imported."""
    config = tmp_path / "config.py"
    config.write_text(COMPILES, encoding="utf-8")
    for number, own in enumerate([None, tmp_path / "mine"]):
        workdir = tmp_path / f"w{number}"
        environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        environment |= {} if own is None else {"JAX_COMPILATION_CACHE_DIR": str(own)}
        command = [sys.executable, "-m", "star_jax", "evaluate", config, "--workdir", workdir]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert done.returncode == 2  # There is nothing to evaluate.
        kept = workdir / "compiled" if own is None else own
        assert [path for path in kept.rglob("*") if "triple" in path.name]
        assert (workdir / "compiled").exists() == (own is None)


def test_a_command_runs_its_job(calls, config_file):
    argv = ["evaluate", config_file(), "--steps", "-7", "--workdir", "w", "--inner.rate=2"]
    assert cli.main(argv) == 0
    assert calls == [(JobConfig(steps=-7, inner=Inner(rate=2.0)), Path("w"))]


def test_a_command_takes_its_part_of_a_whole_config(calls, config_file):
    whole = config_file("WholeConfig()")
    assert cli.main(["evaluate", whole, "--workdir=w", "--job.names", "x"]) == 0
    assert calls == [(JobConfig(names=("x",)), Path("w"))]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--workdir", "w", "--step", "3"], "--step is unknown; the nearest field is steps"),
        (
            ["--workdir", "w", "--inner.rat", "3"],
            "--inner.rat is unknown; the nearest field is inn",
        ),
        (["--workdir", "w", "--steps", "x"], "--steps got 'x', needed int"),
        (["--workdir", "w", "--work", "x"], "--work is unknown; "),
        (["--steps", "3"], "--workdir is missing; see `star evaluate --help`"),
        (["--workdir"], "argument --workdir: expected one argument; see `star evaluate --help`"),
    ],
)
def test_wrong_arguments_end_in_one_line(calls, config_file, capsys, args, message):
    assert cli.main(["evaluate", config_file(), *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"star: error: {message}")
    assert err.count("\n") == 1
    assert calls == []


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=lambda v: str(v)
)
def test_a_stopped_training_says_what_it_saved(calls, config_file, capsys, signum, code):
    def run(config: JobConfig, workdir: Path) -> None:
        raise Stopped(signum, 7, workdir / "step-7")

    vars(sys.modules["star_jax.jobs.evaluate"])["run"] = run
    assert cli.main(["evaluate", config_file(), "--workdir", "w"]) == code
    assert capsys.readouterr().err == (
        f"star: stopped by {signum.name} after step 7; w/step-7 holds it; "
        "the same command goes on from there\n"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND; see `star --help`"),
        (["trian"], "argument COMMAND: invalid choice: 'trian' (choose from "),
        (["evaluate"], "the following arguments are required: CONFIG; see `star evaluate --help`"),
        (["evaluate", "no.py", "--workdir", "w"], "config no.py does not exist"),
        (
            ["registry", "list", "--registry", "r", "--nam", "x"],
            "--nam is unknown; see `star registry list --help`",
        ),
        (
            ["get", "x", "--node-type", "job", "--id", "a"],
            "--id is unknown; see `star get --help`",
        ),
    ],
)
def test_wrong_commands_end_in_one_line(capsys, argv, message):
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"star: error: {message}")
    assert err.count("\n") == 1


def test_the_config_of_another_command_is_refused(calls, config_file, capsys):
    assert cli.main(["evaluate", config_file("Inner()"), "--workdir", "w"]) == 2
    assert "returns Inner, needed JobConfig by `star evaluate`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("table x\nlacks a column"), "table x lacks a column"),
        (OSError(28, "No space left on device", "/w/t"), "No space left on device: /w/t"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (OSError("disk write failed"), "disk write failed"),
        (FloatingPointError("loss is nan at step 3"), "loss is nan at step 3"),
    ],
)
def test_what_the_user_can_mend_ends_in_one_line(calls, config_file, capsys, error, line):
    def run(config: JobConfig, workdir: Path) -> None:
        raise error

    sys.modules["star_jax.jobs.evaluate"].run = run  # pyright: ignore[reportAttributeAccessIssue]
    assert cli.main(["evaluate", config_file(), "--workdir", "w"]) == 2
    assert capsys.readouterr().err == f"star: error: {line}\n"


def test_a_bug_shows_its_traceback(calls, config_file):
    def run(config: JobConfig, workdir: Path) -> None:
        raise ValueError("ours")

    sys.modules["star_jax.jobs.evaluate"].run = run  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="ours"):
        cli.main(["evaluate", config_file(), "--workdir", "w"])


def test_help_after_a_config_lists_its_fields(config_file, capsys):
    assert cli.main(["evaluate", config_file(), "--steps", "9", "--help"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[2:] == ["  --steps 9", "  --inner.rate 0.5", "  --names a b"]


def test_help_names_every_command_and_what_it_writes():
    run = subprocess.run(
        [sys.executable, "-m", "star_jax", "--help"], capture_output=True, text=True, check=True
    )
    assert all(f"\n  {name} " in run.stdout for name in (*COMMANDS, *GROUPS, *READING))
    assert all(len(line) <= 100 for line in run.stdout.splitlines())
    with pytest.raises(SystemExit) as stop:
        cli.main(["train-text", "--help"])
    assert stop.value.code == 0


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"star_jax {__version__}\n"


def test_results_end_with_the_path_of_the_metrics(
    tmp_path, calls, config_file, capsys, monkeypatch
):
    metrics = {
        "dataset": "toy",
        "models": {"text": {"auc_near": 0.61234}, "text+graph": {"auc_near": 0.7, "ndcg@10": 0.5}},
        "references": {"item_knn": {"auc_near": 0.5}},
    }

    def run(config: JobConfig, workdir: Path) -> None:
        (workdir / "report").mkdir()
        (workdir / "report" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        for i, name in enumerate(("import", "report")):
            record = {"state": "done", "stage": name, "seconds": 1.25, "finished": i, "config": {}}
            (workdir / f"stage{i}").mkdir()
            (workdir / f"stage{i}" / "stage.json").write_text(json.dumps(record), encoding="utf-8")

    module = sys.modules["star_jax.jobs.evaluate"]
    module.run = run  # pyright: ignore[reportAttributeAccessIssue] # a stand-in
    monkeypatch.setitem(sys.modules, "star_jax.jobs.report", module)
    assert cli.main(["report", config_file(), "--workdir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "toy, test split",
        "",
        "metric      text  text+graph  item_knn",
        "auc_near  0.6123      0.7000    0.5000",
        "ndcg@10        -      0.5000         -",
        "",
        "stage   seconds",
        "import      1.2",
        "report      1.2",
        "",
        str(tmp_path / "report" / "index.html"),
        str(tmp_path / "report" / "metrics.json"),
    ]


PLANNED = """
from tests.jobs import tiny_text

def get_config():
    return tiny_text.config()
"""


def star_plan(tmp_path, *options):
    config = tmp_path / "config.py"
    config.write_text(PLANNED)
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-m", "star_jax", "plan", str(config), *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cuda"},
    )


def test_a_plan_is_printed_on_a_machine_without_the_chips(tmp_path):
    run = star_plan(
        tmp_path,
        "--topology",
        "h200:4",
        "--num-pairs",
        "320",
        "--mesh.data",
        "2",
        *("--plan.num_steps", "None", "--plan.num_epochs", "2"),
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("train-text on h200:4 (4 chips)\n  mesh data 2 x fsdp 1")
    assert "  40 steps: " in run.stdout  # Of 16 pairs, twice over 320.
    assert "serve on h200" in run.stdout


def test_a_plan_for_chips_that_nobody_makes_is_refused(tmp_path):
    run = star_plan(tmp_path, "--topology", "v5e")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(
        "star: error: --topology 'v5e' is unknown, needed one like v5e:4x4"
    )
