import sys
import uuid

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from star_jax.config import InputError
from star_jax.embeddings.registry.files import open_files
from star_jax.embeddings.registry.journal import begin, check_is_registry


@pytest.fixture(params=["path", "file", "memory"])
def files(request, tmp_path):
    """A place of each kind."""
    urls = {
        "path": str(tmp_path / "r"),
        "file": f"file://{tmp_path}/r",
        "memory": f"memory://{uuid.uuid4().hex}/r",
    }
    return open_files(urls[request.param])


def test_a_file_is_created_once(files):
    files.create("a/b.json", b"first")
    with pytest.raises(FileExistsError):
        files.create("a/b.json", b"second")
    assert files.read("a/b.json") == b"first"
    assert files.names("") == ["a/b.json"]
    assert files.names("a") == ["a/b.json"]
    assert files.names("c") == []
    with pytest.raises(FileNotFoundError):
        files.read("a/c.json")


def test_files_come_back_as_they_were_stored(files, tmp_path):
    source = tmp_path / "source"
    for content in (b"old", b"newer"):
        source.write_bytes(content)
        files.store("x/y", source)
    files.create("x/z", b"z")
    files.fetch("x/y", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"newer"
    assert files.read_all(["x/y", "x/z"]) == [b"newer", b"z"]
    assert files.size("x/y") == 5
    files.create("x/abc", b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2.
    assert files.digest("x/abc") == sha256
    for name in ("x/y", "x/z", "x/abc"):
        files.delete(name)
    assert files.names("") == []


def test_a_folder_that_is_empty_goes_with_its_last_file(tmp_path):
    files = open_files(str(tmp_path))
    files.create("a/b/c", b"")
    files.create("a/d", b"")
    files.delete("a/b/c")
    assert (tmp_path / "a").is_dir()
    assert not (tmp_path / "a" / "b").exists()


def test_what_a_kill_left_of_a_file_is_none(tmp_path):
    files = open_files(str(tmp_path))
    (tmp_path / ".a.0123.partial").write_bytes(b"half")
    assert files.names("") == []


def test_a_registry_begins_once_and_says_what_it_is(files):
    with pytest.raises(InputError, match=r"r is no registry; `star registry add --registry .*r`"):
        check_is_registry(files)
    begin(files)
    begin(files)
    check_is_registry(files)
    files.delete("registry.json")
    files.create("registry.json", b'{"layout": 2}\n')
    with pytest.raises(InputError, match=r"registry\.json holds .*layout\": 2"):
        begin(files)


class Plain(AbstractFileSystem):
    """Looks first and writes then, as fsspec does where a file system says nothing."""

    protocol = "plain"


class Careless(MemoryFileSystem):
    """Says that it creates exclusively, and overwrites."""

    protocol = "careless"
    store: dict = {}  # noqa: RUF012 # As its base: one for all instances.

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value, mode="overwrite")


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (Plain, "registry plain://r: Plain of fsspec does not create files exclusively, needed"),
        (Careless, r"registry careless://r: registry\.json was created twice; "),
    ],
)
def test_a_place_where_two_could_win_is_refused(system, message):
    fsspec.register_implementation(system.protocol, system, clobber=True)
    with pytest.raises(InputError, match=message):
        begin(open_files(f"{system.protocol}://r"))


def test_a_disk_without_hard_links_is_refused(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", link)
    with pytest.raises(InputError, match=r"hard link \(Operation not supported\), needed where"):
        begin(open_files(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_unknown_places_are_named(monkeypatch):
    with pytest.raises(InputError, match="registry nowhere://r: Protocol not known: nowhere"):
        open_files("nowhere://r")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(InputError, match=r"memory://r needs fsspec; .*star_jax\[stores\]"):
        open_files("memory://r")
