"""Artefacts in a registry, each stored once under its digest; a manifest is written last."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.registry.files import Files

FOLDER = "objects"


def store(files: Files, folder: Path, digest: str) -> str:
    """Copies an artefact, unless its content is there.

    Returns:
      The sha256 of the manifest that is there: the first one of that content stays.

    Raises:
      InputError: A file of the artefact is not as it was written.
    """
    manifest = f"{_folder(digest)}/{artefacts.MANIFEST}"
    if manifest not in files.names(_folder(digest)):
        artefacts.verify(folder)
        for name in artefacts.read_files(folder):
            files.store(f"{_folder(digest)}/{name}", folder / name)
        with contextlib.suppress(FileExistsError):  # Another process was faster.
            files.create(manifest, (folder / artefacts.MANIFEST).read_bytes())
    return files.digest(manifest)


def fetch(files: Files, digest: str) -> Path:
    """A local folder of an artefact; a remote one is copied to the cache once, and verified.

    Raises:
      InputError: It is damaged, or not there.
    """
    local = files.local(_folder(digest))
    if local is not None:
        _check_digest(local, digest)
        return local
    target = _cache() / digest
    if not target.exists():
        partial = target.with_name(f".{digest}.{uuid.uuid4().hex}.partial")
        partial.mkdir(parents=True)
        try:
            files.fetch(f"{_folder(digest)}/{artefacts.MANIFEST}", partial / artefacts.MANIFEST)
            for name in artefacts.read_files(partial):
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                files.fetch(f"{_folder(digest)}/{name}", partial / name)
            artefacts.verify(partial)
            _check_digest(partial, digest)
            if not target.exists():  # Another process may have been faster.
                partial.rename(target)
        finally:
            if partial.exists():
                artefacts.remove(partial)
    _check_digest(target, digest)
    return target


def delete(files: Files, digest: str) -> None:
    """Deletes an artefact; without its manifest, which goes first, it is none."""
    names = files.names(_folder(digest))
    names.sort(key=lambda name: name != f"{_folder(digest)}/{artefacts.MANIFEST}")
    for name in names:
        files.delete(name)


def problems(files: Files, digest: str, manifest_sha256: str) -> Iterator[str]:
    """Reads an artefact again; yields a line for every file that is not as it was written."""
    where = f"{files.url}/{_folder(digest)}"
    manifest = f"{_folder(digest)}/{artefacts.MANIFEST}"
    there = files.names(_folder(digest))
    if manifest not in there:
        yield f"{where}/{artefacts.MANIFEST} is missing"
        return
    content = files.read(manifest)
    if artefacts.content_digest(content) != manifest_sha256:
        yield f"{where}/{artefacts.MANIFEST} does not have the sha256 it was stored with"
        return
    expected: dict[str, Any] = json.loads(content)["files"]
    for name, file in expected.items():
        if f"{_folder(digest)}/{name}" not in there:
            yield f"{where}/{name} is missing"
        elif files.digest(f"{_folder(digest)}/{name}") != file["sha256"]:
            yield f"{where}/{name} does not have the sha256 it was stored with"
    for name in there:
        inner = name.removeprefix(f"{_folder(digest)}/")
        if inner not in expected and name != manifest:
            yield f"{where}/{inner} is no file of the artefact"


def _check_digest(folder: Path, digest: str) -> None:
    found = artefacts.digest(folder)
    if found != digest:
        raise InputError(
            f"{folder / artefacts.MANIFEST} describes {found[:12]}, needed {digest[:12]}; remove "
            f"{folder} and, where that is the registry's own, restore it from a backup"
        )


def _folder(digest: str) -> str:
    return f"{FOLDER}/{digest}"


def _cache() -> Path:
    """$XDG_CACHE_HOME/star_jax/objects, by default below ~/.cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "star_jax" / FOLDER
