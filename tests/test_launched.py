"""The launchers, not dry: what they start keeps its exit code, its signals and its words."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from star_jax import artefacts
from star_jax.pipeline.tables.schema_file import schema_json
from tests.jobs.together import free_port
from tests.machines import PYTHON, ROOT, environment, fake_bin, make_clone, write_program
from tests.pipeline.tables import mini

SMI = "echo 550.54.15"
# Says something, and saves when it is told to stop.
STAR = """trap 'echo saved; exit 143' TERM
echo "begun $*"
echo careful >&2
: >begun
while [[ $2 == endless.py ]]; do read -rt 0.1 <><(:); done
exit 7"""
XLA_FLAGS = os.environ["XLA_FLAGS"]
SSH = '[[ $1 == -o && $3 != localhost ]] && exec bash -c "$4"'


@pytest.fixture
def clone(tmp_path):
    """With an environment, into which nothing is installed."""
    root = make_clone(tmp_path)
    write_program(root / ".venv/bin/python", PYTHON)
    write_program(root / ".venv/bin/star", STAR)
    (tmp_path / "short.py").touch()
    (tmp_path / "endless.py").touch()
    return root


@pytest.fixture
def start(clone, tmp_path):
    """Starts a launcher, and ends what is left of it."""
    started = []

    def start(*args, **programs):
        programs = {"python3": PYTHON, "uv": "exit 0", "nvidia_smi": SMI} | programs
        process = subprocess.Popen(
            [str(arg) for arg in (clone / "launch/gpu_a100.sh", *args)],
            cwd=tmp_path,
            env=environment(fake_bin(tmp_path / "bin", **programs)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_exit_code_and_words(clone, start, tmp_path):
    process = start("short.py", "--workdir", "W", "--a.b", "1 2")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 7
    assert out.splitlines()[-1] == "begun run short.py --workdir W --a.b 1 2"
    assert err.splitlines()[-1] == "careful"
    log = (tmp_path / "W" / "logs" / f"{socket.gethostname()}.log").read_text()
    assert {"careful", "begun run short.py --workdir W --a.b 1 2"} < set(log.splitlines())
    assert f"== {clone}/.venv/bin/star run".replace(" clone", "\\ clone") in log


@pytest.mark.parametrize("to", [os.kill, os.killpg])
def test_a_signal_reaches_the_training(start, tmp_path, to):
    """Slurm tells all processes of a step, tee too."""
    process = start("endless.py", "--workdir", "W")
    end = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    to(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert out.splitlines()[-1] == "saved"
    log = (tmp_path / "W" / "logs" / f"{socket.gethostname()}.log").read_text()
    assert log.splitlines()[-1] == "saved"


CONFIG = """
import dataclasses
from pathlib import Path

from configs.run import tiny
from star_jax.jobs.import_tables import ImportConfig
from star_jax.train.plan import PlanConfig

PLAN = PlanConfig(num_steps=2, budget_s=None, validate_epochs=1.0)


def get_config():
    # Few relations, one task and a few steps: compiling is the cost.
    config = dataclasses.replace(tiny.get_config(), tables=ImportConfig(source=Path({source!r})))
    return dataclasses.replace(
        config,
        train_text=dataclasses.replace(config.train_text, plan=PLAN),
        train_graph=dataclasses.replace(config.train_graph, plan=PLAN),
        evaluate=dataclasses.replace(config.evaluate, strict_time=False),
    )
"""
OUTPUTS = {  # Stage -> its folder.
    "import": "tables",
    "train-text": "text",
    "export-text": "text_embeddings",
    "build-graph": "graph",
    "train-graph": "graph_model",
    "export-graph": "graph_embeddings",
    "train-graph-only": "graph_only_model",
    "export-graph-only": "graph_only_embeddings",
    "evaluate": "evaluation",
    "report": "report",
}


@pytest.mark.slow
def test_two_hosts_do_all_stages_as_one_run(clone, start, tmp_path):
    """Both are this machine: what would be ssh runs its command here."""
    data = mini.write(tmp_path / "data", mini.tables())
    (data / "schema.json").write_text(schema_json(mini.schema()), encoding="utf-8")
    (tmp_path / "whole.py").write_text(CONFIG.format(source=str(data)))
    # Ours are added to the launcher's flags, of which XLA refuses one that it does not know.
    star = [
        f'export JAX_PLATFORMS=cpu PYTHONPATH={ROOT} XLA_FLAGS="$XLA_FLAGS {XLA_FLAGS}"',
        f'exec {sys.executable} -m star_jax "$@"',
    ]
    write_program(clone / ".venv/bin/star", "\n".join(star))
    process = start(
        *("whole.py", "--workdir", "W", "--hosts", "localhost,127.0.0.1", "--port", free_port()),
        ssh=SSH,
    )
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == str(tmp_path / "W/report/metrics.json")
    first, second = (
        (tmp_path / "W/logs" / f"{host}.log").read_text() for host in ("localhost", "127.0.0.1")
    )
    assert "process 0 of 2" in first
    assert "on 2 device(s)" in first
    assert "--process-id 1" in second
    for number, (name, folder) in enumerate(OUTPUTS.items(), start=1):
        artefacts.verify(tmp_path / "W" / folder)
        assert f"[{number}/{len(OUTPUTS)}] {name}: done" in first
        assert f"{name}: done" not in second  # One speaks.
