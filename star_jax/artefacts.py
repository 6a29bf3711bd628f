"""Artefacts: the output folders of stages, complete or absent, each with a manifest of digests."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from star_jax import __version__
from star_jax.config import InputError

MANIFEST = "manifest.json"
STAGE = "stage.json"  # Written by `star run` beside the manifest; no part of the content.
_META = ".meta.json"
_CHUNK_BYTES = 1 << 20

_MADE_BY = {  # Kinds, and the names of folders in the working directory that differ from them.
    "tables": "star import",
    "text_tokens": "star train-text",
    "text_model": "star train-text",
    "text": "star train-text",
    "text_embeddings": "star export-text",
    "model_export": "star export-model",
    "hard_negatives": "star mine-negatives",
    "graph": "star build-graph",
    "graph_model": "star train-graph",
    "graph_only_model": "star run",
    "graph_embeddings": "star export-graph",
    "graph_only_embeddings": "star run",
    "evaluation": "star evaluate",
    "report": "star report",
    "contract": "star check-consumers",
    "transform": "star fit-transform",
}


class Manifest(NamedTuple):
    """What an artefact says about itself."""

    kind: str
    meta: dict[str, Any]
    files: dict[str, dict[str, Any]]  # Relative path -> {"bytes", "sha256"}.


@contextmanager
def writing(folder: Path, kind: str) -> Iterator[Path]:
    """Yields an empty folder to fill; it takes the place of `folder` only when all went well.

    Args:
      folder: Where the artefact will be. An older one stays until the new one is complete.
      kind: What it is; readers ask for it by this name.
    """
    partial = partial_of(folder)
    _remove(partial)
    made = [parent for parent in partial.parents if not parent.exists()]
    partial.mkdir(parents=True)
    try:
        yield partial
        seal(partial, kind, _take_meta(partial))
    except BaseException:  # Also on Ctrl-C: nothing half-written and no empty folder stays behind.
        _remove(partial)
        for parent in made:  # The inner ones first.
            if not any(parent.iterdir()):
                parent.rmdir()
        raise
    _set_aside(folder)
    partial.rename(folder)
    sweep(folder)


def partial_of(folder: Path) -> Path:
    """What `writing` yields, for other processes that fill it too."""
    return folder.with_name(f".{folder.name}.partial")


def remove(folder: Path) -> None:
    """Deletes a folder so that a kill amid it leaves all of it in its place, or nothing.

    What a kill leaves hidden beside it goes with the next `sweep`.
    """
    _set_aside(folder)
    sweep(folder)


def sweep(folder: Path) -> None:
    """Deletes what a killed `remove` or `writing` of `folder` left behind."""
    _remove(_old(folder))


def set_meta(partial: Path, meta: Mapping[str, object]) -> None:
    """Inside `writing`: sets the meta data that the manifest will hold."""
    write_text(partial / _META, json.dumps(meta))


def seal(folder: Path, kind: str, meta: Mapping[str, object]) -> None:
    """Writes the manifest over all files of a folder; from then on the folder is an artefact."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in (MANIFEST, STAGE, _META)
    }
    content = {"kind": kind, "star_jax": __version__, "meta": dict(meta), "files": files}
    write_text(folder / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False))


def read_manifest(folder: Path, kind: str) -> Manifest:
    """Reads the manifest and checks that every file is there in its full length.

    Raises:
      InputError: No complete artefact of that kind is here.
    """
    manifest = _read(folder)
    if manifest.kind != kind:
        raise InputError(f"{folder} holds {manifest.kind}, needed {kind}; {_remedy(kind)}")
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing; remove {folder} and make it anew")
        if path.stat().st_size != expected["bytes"]:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes, needed {expected['bytes']} "
                f"(as written); remove {folder} and make it anew"
            )
    return manifest


def read_any(folder: Path) -> Manifest:
    """As `read_manifest`, of whatever kind is there."""
    return read_manifest(folder, _read(folder).kind)


def read_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Files by the manifest alone: relative path -> {"bytes", "sha256"}."""
    return _read(folder).files


def check_meta(folder: Path, meta: Mapping[str, object], *keys: str) -> None:
    """Refuses a manifest whose meta data lack a key.

    Raises:
      InputError: One does.
    """
    missing = [key for key in keys if key not in meta]
    if missing:
        raise InputError(f"{folder / MANIFEST} says nothing of {', '.join(missing)} in its meta")


def verify(folder: Path) -> None:
    """Reads every file again and compares its digest.

    Raises:
      InputError: Naming the file whose bytes changed.
    """
    manifest = read_any(folder)
    for name, expected in manifest.files.items():
        if file_digest(folder / name) != expected["sha256"]:
            raise InputError(
                f"{folder / name} does not have the sha256 it was written with; "
                f"remove {folder} and make it anew"
            )


def digest(folder: Path) -> str:
    """Names the content of an artefact: its file digests and its meta data."""
    manifest = _read(folder)
    content = [manifest.kind, manifest.meta, {n: f["sha256"] for n, f in manifest.files.items()}]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Reads an object that a stage left behind.

    Raises:
      InputError: It is damaged, or lacks one of the keys.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is damaged ({reason}); {_anew(path)}") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{path} is damaged (it has no {', '.join(missing)}); {_anew(path)}")
    return content


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def content_digest(content: bytes) -> str:
    """The sha256 of what is in memory, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that readers see the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields where to write a file that appears under its name whole, or not at all.

    Others may write the same one meanwhile, here or on machines that share the folder: the last
    one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}-{uuid.uuid4().hex}.partial")
    yield partial
    partial.replace(path)


def _anew(path: Path) -> str:
    return f"remove {path.parent} and do its stage anew"


def _remedy(name: str) -> str:
    return f"run `{_MADE_BY[name]}` first" if name in _MADE_BY else f"{MANIFEST} is missing"


def _read(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} is not a complete artefact; {_remedy(folder.name)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {
            name: {"bytes": file["bytes"], "sha256": file["sha256"]}
            for name, file in content["files"].items()
        }
        return Manifest(content["kind"], content["meta"], files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not readable ({error}); remove {folder} and make it anew"
        ) from error


def _take_meta(partial: Path) -> dict[str, Any]:
    path = partial / _META
    if not path.is_file():
        return {}
    meta = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return meta


def _set_aside(folder: Path) -> None:
    sweep(folder)
    if folder.exists():
        folder.rename(_old(folder))


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
