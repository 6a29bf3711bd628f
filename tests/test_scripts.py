"""The shell scripts, without installing anything, and the requirement files they install."""

import os
import re
import tomllib

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

from tests.machines import LOCKS, PYTHON, ROOT, fake_bin, make_clone, run

SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / "tests/run.sh", ROOT / ".ci/run"])
_NO_VENV = 'case $2 in *ensure*) exit 1 ;; *-venv*) echo V ;; *) echo "$0" ;; esac'


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse_and_can_be_started(script):
    assert run("bash", "-n", script).returncode == 0
    assert os.access(script, os.X_OK) != script.name.startswith("_")


@pytest.fixture
def clone(tmp_path):
    return make_clone(tmp_path)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("gpu_a100.sh", ["JAX_PLATFORMS=cuda", "latency_hiding", "-r .*/requirements-gpu.txt"]),
        ("tpu.sh", ["JAX_PLATFORMS=tpu", "LIBTPU_INIT_ARGS=", "-r .*/requirements-tpu.txt"]),
    ],
)
def test_dry_run_prints_and_does_nothing(clone, tmp_path, script, expected):
    config = clone / "configs" / "run" / "recommended.py"
    done = run(
        *(clone / "launch" / script, config, "--dry-run", "--workdir", "my runs", "--a.b", "1 2"),
        path=fake_bin(tmp_path / "bin", python3=PYTHON),
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert all(line.startswith("launch: ") for line in done.stderr.splitlines())
    for pattern in [*expected, "--require-hashes -r .*/requirements.lock", "-m venv .*/.venv"]:
        assert re.search(pattern, done.stdout), pattern
    *_, command, plan = done.stdout.splitlines()
    assert command.startswith("exec ")  # A signal for the script is one for the run.
    assert command.endswith("recommended.py --workdir my\\ runs --a.b 1\\ 2 ")
    assert plan.endswith(" --workdir my\\ runs --a.b 1\\ 2 ")
    assert not (clone / ".venv").exists()
    assert not (tmp_path / "my runs").exists()


@pytest.mark.parametrize("uv", [{}, {"uv": "exit 0"}], ids=["pip", "uv"])
def test_installs_by_uv_where_it_is_present(clone, tmp_path, uv):
    done = run(
        *(clone / "launch/tpu.sh", clone / "configs/run/quickstart.py", "--dry-run"),
        path=fake_bin(tmp_path / "bin", python3=PYTHON, **uv),
    )
    assert ("uv pip install" in done.stdout) == bool(uv)
    assert ("-m pip install" in done.stdout) != bool(uv)


def test_the_interop_extra_comes_by_pip_under_the_locks_versions(clone, tmp_path):
    install = "DRY_RUN=true; install_beside_by_pip requirements-dev.lock -r interop.txt"
    done = run(
        *("bash", "-c", f"source '{clone}/launch/_env.sh'; {install}"),
        path=fake_bin(tmp_path / "bin", python3=PYTHON, uv="exit 0"),
    )
    *_, last = done.stdout.splitlines()
    assert re.match(r"\S*/a\\ clone/\.venv/bin/python -m pip install ", last)
    assert re.search(r"--constraint \S+\\ clone/\.venv/\.constraints\.txt -r interop\.txt $", last)
    assert "--extras interop" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        ({}, "no Python of 3.11 or newer is on the PATH; .*: apt-get install python3 python3-venv"),
        (
            {
                "python3": _NO_VENV,
            },
            r".*/python3 has no venv module; on Debian or Ubuntu: apt-get install V",
        ),
    ],
    ids=["no python", "no venv"],
)
def test_says_what_to_install_in_one_line(clone, tmp_path, programs, message):
    done = run(clone / "launch/quickstart.sh", path=fake_bin(tmp_path / "bin", **programs), cwd="/")
    assert done.returncode == 2
    assert re.fullmatch(f"(installing .*\n)?star: error: {message}\n", done.stderr)
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["launch/quickstart.sh", "no/such"], "data folder no/such does not exist"),
        (["launch/quickstart.sh", "/", "/"], "two data folders are given: / and /"),
        (["launch/quickstart.sh", "--workdir"], "--workdir needs a folder"),
        (["launch/gpu_a100.sh", "no.py"], "config no.py does not exist"),
        (["launch/tpu.sh"], "CONFIG is missing: "),
    ],
)
def test_wrong_arguments_end_before_installing(clone, args, message):
    done = run(clone / args[0], *args[1:])
    assert done.returncode == 2
    assert done.stderr.startswith(f"star: error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert not (clone / ".venv").exists()


def _lines(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith(("#", "-r"))]


def test_pyproject_needs_what_requirements_txt_lists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == _lines("requirements.txt")
    assert project["optional-dependencies"]["interop"] == _lines("requirements-interop.txt")


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_lock_holds_every_requirement_for_every_python(lock, python):
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"sys_platform": "linux", "platform_machine": "x86_64"}
    pinned = {}
    for line in (ROOT / lock).read_text(encoding="utf-8").splitlines():
        if line[:1].isalnum():
            requirement, _, marker = line.removesuffix("\\").partition(";")
            name, version = requirement.strip().split("==")
            if not marker or Marker(marker.strip()).evaluate(environment):
                assert name not in pinned, f"{name} is pinned twice"
                pinned[name] = version
    wanted = _lines("requirements.txt") + ("dev" in lock) * _lines("requirements-dev.txt")
    for requirement in map(Requirement, wanted):
        version = pinned[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(version, prereleases=True), requirement


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_hashes_and_names_no_host(lock):
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert "index-url" not in text
    blocks = re.findall(r"^[a-z0-9].*(?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+", text, re.M)
    assert len(blocks) == len(re.findall(r"^[a-z0-9]", text, re.M))
