"""Where a registry keeps its files: a local folder, or whatever an fsspec URL leads to.

All that a registry asks of a place is here: reading, storing whole files, and creating a file only
where there is none. On the last rests that of two changes at once one wins, so that a place which
cannot promise it is refused.
"""

import hashlib
import importlib
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from star_jax import artefacts
from star_jax.config import InputError

_CHUNK_BYTES = 1 << 20


@runtime_checkable
class Files(Protocol):
    """A place for files, named by paths relative to it."""

    @property
    def url(self) -> str:
        """What the user calls the place."""
        ...

    def names(self, folder: str) -> list[str]:
        """All files below a folder, sorted; none where there is no folder."""
        ...

    def read(self, name: str) -> bytes:
        """A small file; FileNotFoundError where there is none."""
        ...

    def read_all(self, names: list[str]) -> list[bytes]:
        """Many small files."""
        ...

    def create(self, name: str, content: bytes) -> None:
        """Writes a small file, whole or not at all; FileExistsError where there is one."""
        ...

    def store(self, name: str, path: Path) -> None:
        """Copies a local file here; whoever reads the name sees a whole file."""
        ...

    def fetch(self, name: str, path: Path) -> None:
        """Copies a file to a local path."""
        ...

    def digest(self, name: str) -> str:
        """The sha256 of a file, in hexadecimal."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file."""
        ...

    def delete(self, name: str) -> None:
        """Deletes a file."""
        ...

    def local(self, name: str) -> Path | None:
        """Where a folder is on this machine, if it is."""
        ...


class LocalFiles:
    """A local folder."""

    def __init__(self, root: Path) -> None:
        """Nothing is made before something is written."""
        self._root = root

    @property
    def url(self) -> str:
        """As `Files.url`."""
        return str(self._root)

    def names(self, folder: str) -> list[str]:
        """As `Files.names`; parts of files that a kill left behind are none."""
        return sorted(
            path.relative_to(self._root).as_posix()
            for path in (self._root / folder).rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )

    def read(self, name: str) -> bytes:
        """As `Files.read`."""
        return (self._root / name).read_bytes()

    def read_all(self, names: list[str]) -> list[bytes]:
        """As `Files.read_all`."""
        return [self.read(name) for name in names]

    def create(self, name: str, content: bytes) -> None:
        """As `Files.create`: a hard link is made in one step, and never over another file."""
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(path)
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _link(partial, path)
            _sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)

    def store(self, name: str, path: Path) -> None:
        """As `Files.store`."""
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(target)
        try:
            shutil.copyfile(path, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def fetch(self, name: str, path: Path) -> None:
        """As `Files.fetch`."""
        shutil.copyfile(self._root / name, path)

    def digest(self, name: str) -> str:
        """As `Files.digest`."""
        return artefacts.file_digest(self._root / name)

    def size(self, name: str) -> int:
        """As `Files.size`."""
        return (self._root / name).stat().st_size

    def delete(self, name: str) -> None:
        """As `Files.delete`; folders that are empty then go with it."""
        path = self._root / name
        path.unlink()
        for parent in path.relative_to(self._root).parents[:-1]:
            if any((self._root / parent).iterdir()):
                break
            (self._root / parent).rmdir()

    def local(self, name: str) -> Path | None:
        """As `Files.local`."""
        return self._root / name


class RemoteFiles:
    """A place that fsspec reaches: s3://, gs://, abfs://, memory://."""

    def __init__(self, url: str) -> None:
        """Opens it.

        Raises:
          InputError: fsspec does not know it, or it does not create files exclusively.
        """
        try:
            core = importlib.import_module("fsspec.core")
        except ModuleNotFoundError as error:
            raise InputError(
                f"registry {url} needs fsspec; install the extra: pip install 'star_jax[stores]'"
            ) from error
        try:
            self._system, self._root = core.url_to_fs(url, use_listings_cache=False)
        except (ValueError, ImportError) as error:  # An unknown protocol, or its package is absent.
            raise InputError(f"registry {url}: {error}") from error
        self._url = url.rstrip("/")
        _check_creates(self._system, url)

    @property
    def url(self) -> str:
        """As `Files.url`."""
        return self._url

    def names(self, folder: str) -> list[str]:
        """As `Files.names`."""
        found = self._system.find(self._path(folder))
        return sorted(path[len(self._root) :].lstrip("/") for path in found)

    def read(self, name: str) -> bytes:
        """As `Files.read`."""
        return self._system.cat_file(self._path(name))

    def read_all(self, names: list[str]) -> list[bytes]:
        """As `Files.read_all`, many at a time."""
        paths = [self._path(name) for name in names]
        found = self._system.cat(paths) if paths else {}
        return [found[path] for path in paths]

    def create(self, name: str, content: bytes) -> None:
        """As `Files.create`: on object stores a conditional request."""
        self._system.pipe_file(self._path(name), content, mode="create")

    def store(self, name: str, path: Path) -> None:
        """As `Files.store`: an object is there when all of it is."""
        self._system.put_file(str(path), self._path(name))

    def fetch(self, name: str, path: Path) -> None:
        """As `Files.fetch`."""
        self._system.get_file(self._path(name), str(path))

    def digest(self, name: str) -> str:
        """As `Files.digest`."""
        sha = hashlib.sha256()
        with self._system.open(self._path(name), "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                sha.update(chunk)
        return sha.hexdigest()

    def size(self, name: str) -> int:
        """As `Files.size`."""
        return self._system.size(self._path(name))

    def delete(self, name: str) -> None:
        """As `Files.delete`."""
        self._system.rm_file(self._path(name))

    def local(self, name: str) -> Path | None:
        """As `Files.local`: nothing is."""
        del name
        return None

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def open_files(url: str) -> Files:
    """The place that a path or URL names.

    Raises:
      InputError: It cannot be used.
    """
    if url.startswith("file://"):
        return LocalFiles(Path(url.removeprefix("file://")))
    return RemoteFiles(url) if "://" in url else LocalFiles(Path(url))


def _check_creates(system: Any, url: str) -> None:
    """Refuses what falls back to looking first and writing then, between which others may write."""
    spec = importlib.import_module("fsspec.spec")
    asyn = importlib.import_module("fsspec.asyn")
    inherited = (
        type(system)._pipe_file is asyn.AsyncFileSystem._pipe_file
        if system.async_impl
        else type(system).pipe_file is spec.AbstractFileSystem.pipe_file
    )
    if inherited:
        raise InputError(
            f"registry {url}: {type(system).__name__} of fsspec does not create files exclusively, "
            "needed where several may write at once; give a local path, or s3://, gs://, abfs://"
        )


def _link(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise InputError(
            f"{path} could not be made as a hard link ({error.strerror}), needed where several may "
            "write at once; give a registry on another file system"
        ) from error


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def _sync(folder: Path) -> None:
    """A new name outlives a power cut when its folder is on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
