"""Changed bytes are found, by their file."""

import uuid
from pathlib import Path

import fsspec
import pytest

from star_jax.config import InputError
from star_jax.embeddings.registry.registry import Registry
from tests.embeddings.registry.artefact import embeddings, serve


def test_any_flipped_byte_is_found_by_its_file(local, tmp_path):
    serve(local, tmp_path, "market@2", "market@1")
    local.attach("market@1", "ablation", {"x": [1.5]})
    files = [path for path in (tmp_path / "r").rglob("*") if path.is_file()]
    assert len(files) > 25
    for path in files:
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            flipped = bytearray(content)
            flipped[place] ^= 1
            path.write_bytes(flipped)
            assert str(path) in _problem(local), place
        path.write_bytes(content)
        if path.parent.name != "journal":  # A journal without its last event is a shorter one.
            path.unlink()
            assert str(path.parent) in _problem(local)
            path.write_bytes(content)
    assert local.verify().problems == []
    assert local.verify("market@1").num_versions == 1


def test_a_damaged_record_is_not_read(local):
    path = Path(local.url) / local.version("market@1").record.name
    path.write_bytes(path.read_bytes().replace(b"graph_embeddings", b"graph_embeddingz"))
    with pytest.raises(InputError, match=rf"{path.name} does not have the sha256 it was stored"):
        local.record("market@1")


def _problem(registry):
    try:
        return "; ".join(registry.verify().problems)
    except InputError as error:
        return str(error)


def test_files_of_nobody_are_named(local, tmp_path):
    stray = tmp_path / "r" / "objects" / "beef" / "vectors.bin"
    stray.parent.mkdir()
    stray.write_bytes(b"x")
    assert local.verify().left_over == [str(stray)]
    inside = local.folder("market@1") / "more.bin"
    inside.write_bytes(b"x")
    assert local.verify().problems == [f"{inside} is no file of the artefact"]


def test_a_damaged_copy_is_not_handed_out(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system, root = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
    registry = Registry(f"memory:/{root}")
    digest = registry.add(embeddings(tmp_path / "a"), "market").digest
    system.pipe_file(f"{root}/objects/{digest}/rows.bin", b"x rowz")
    with pytest.raises(InputError, match=r"rows\.bin does not have the sha256"):
        registry.folder("market@1")
    assert not any((tmp_path / "cache").rglob("*.bin"))
    system.pipe_file(f"{root}/objects/{digest}/rows.bin", b"x rows")
    folder = registry.folder("market@1")
    assert folder == tmp_path / "cache" / "star_jax" / "objects" / digest
    system.rm(f"{root}/objects/{digest}", recursive=True)
    assert registry.folder("market@1") == folder  # Fetched once.
