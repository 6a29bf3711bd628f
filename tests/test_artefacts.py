import hashlib
import json

import pytest

from star_jax import artefacts
from star_jax.config import InputError


def _make(folder, text="content", meta=None):
    with artefacts.writing(folder, "tables") as partial:
        (partial / "nodes").mkdir()
        (partial / "nodes" / "a.txt").write_text(text, encoding="utf-8")
        (partial / "b.bin").write_bytes(b"\x00\x01")
        artefacts.set_meta(partial, meta or {"rows": 2})
    return folder


def test_writing_seals_with_digests(tmp_path):
    manifest = artefacts.read_manifest(_make(tmp_path / "w" / "tables"), "tables")
    assert manifest.meta == {"rows": 2}
    assert manifest.files["nodes/a.txt"] == {
        "bytes": 7,
        "sha256": hashlib.sha256(b"content").hexdigest(),
    }
    assert set(manifest.files) == {"nodes/a.txt", "b.bin"}
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == ["tables"]
    artefacts.verify(tmp_path / "w" / "tables")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_half_written_stays(tmp_path, error):
    folder = tmp_path / "tables"

    def fail():
        with artefacts.writing(folder, "tables") as partial:
            (partial / "a").write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []
    before = artefacts.digest(_make(folder))
    with pytest.raises(error):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["tables"]
    assert artefacts.digest(folder) == before


def test_leftovers_of_a_killed_run_are_no_obstacle(tmp_path):
    for name in (".tables.partial", ".tables.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rubbish").write_text("x", encoding="utf-8")
    folder = _make(_make(tmp_path / "tables"), "newer")
    assert (folder / "nodes" / "a.txt").read_text(encoding="utf-8") == "newer"
    assert [p.name for p in tmp_path.iterdir()] == ["tables"]


def test_readers_name_what_is_wrong(tmp_path):
    folder = tmp_path / "tables"
    with pytest.raises(
        InputError, match="tables is not a complete artefact; run `star import` first"
    ):
        artefacts.read_manifest(folder, "tables")
    _make(folder)
    with pytest.raises(InputError, match="holds tables, needed graph; run `star build-graph`"):
        artefacts.read_manifest(folder, "graph")
    (folder / "b.bin").write_bytes(b"\x00")
    with pytest.raises(InputError, match=r"b\.bin has 1 bytes, needed 2 \(as written\)"):
        artefacts.read_manifest(folder, "tables")
    (folder / "b.bin").unlink()
    with pytest.raises(InputError, match=r"b\.bin is missing"):
        artefacts.read_manifest(folder, "tables")
    (folder / artefacts.MANIFEST).write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"manifest\.json is not readable"):
        artefacts.read_manifest(folder, "tables")


def test_verify_names_a_flipped_byte(tmp_path):
    folder = _make(tmp_path / "tables")
    (folder / "b.bin").write_bytes(b"\x00\x02")
    with pytest.raises(InputError, match=r"b\.bin does not have the sha256 it was written with"):
        artefacts.verify(folder)


def test_digest_follows_content_and_meta(tmp_path):
    digests = [
        artefacts.digest(_make(tmp_path / "a")),
        artefacts.digest(_make(tmp_path / "b", text="other")),
        artefacts.digest(_make(tmp_path / "c", meta={"rows": 3})),
    ]
    assert len(set(digests)) == 3
    assert artefacts.digest(_make(tmp_path / "again")) == digests[0]
    (tmp_path / "a" / artefacts.STAGE).write_text("{}", encoding="utf-8")
    artefacts.seal(tmp_path / "a", "tables", {"rows": 2})
    assert artefacts.digest(tmp_path / "a") == digests[0]


def test_write_text_replaces_or_leaves(tmp_path):
    path = tmp_path / "x.json"
    artefacts.write_text(path, json.dumps({"a": 1}))
    artefacts.write_text(path, json.dumps({"a": 2}))
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
