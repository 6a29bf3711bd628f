"""`star get` and `star publish`, on small tables of two node types."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from star_jax import artefacts
from star_jax.embeddings.columns import decode_vectors, read_meta
from star_jax.embeddings.publishing import partitions_of
from star_jax.embeddings.reader import EmbeddingReader
from star_jax.embeddings.records import decode_row, row_key
from star_jax.embeddings.transforms.files import write_transform
from star_jax.embeddings.transforms.maps import linear
from star_jax.embeddings.transforms.transform import Step, Transform
from star_jax.jobs import publish
from star_jax.serving.stores.urls import open_store
from star_jax.shapes import NO_TIME
from tests.embeddings import tables
from tests.serving.stores import servers

ROWS = tables.make_rows(120)
OTHERS = tables.make_rows(30, seed=1)
NAMES = sorted({row.id for row in ROWS})
MATRIX = np.random.default_rng(3).normal(size=(4, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tables.write(tmp_path_factory.mktemp("w") / "e", {"job": ROWS, "member": OTHERS})


@pytest.fixture(scope="module")
def mapped(folder, tmp_path_factory):
    """The folder of a map to some older version of the jobs."""
    steps = {"job": (Step(linear(MATRIX), False),)}
    path = tmp_path_factory.mktemp("maps") / "map"
    write_transform(path, Transform("ridge", artefacts.digest(folder), "0" * 64, steps), {})
    return path


def shown(time):
    return None if time == NO_TIME else time


def test_lines_of_ids(star, folder):
    done = star("get", folder, "--node-type", "job", "--ids", f"{NAMES[1]},nobody,{NAMES[0]}")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["id"] for line in lines] == [NAMES[1], "nobody", NAMES[0]]
    assert {line["version"] for line in lines} == {artefacts.digest(folder)[:16]}
    assert lines[1]["vector"] is lines[1]["event_time"] is None
    for line in (lines[0], lines[2]):
        row = tables.found(ROWS, line["id"])
        assert line["event_time"] == shown(row.t)
        np.testing.assert_array_equal(np.float32(line["vector"]), row.vector)


def test_files_of_ids_as_of_a_time(star, folder, tmp_path):
    (tmp_path / "ids.txt").write_text("\n".join([*NAMES, "nobody"]) + "\n", encoding="utf-8")
    rows = [tables.last(ROWS, name, -2) for name in [*NAMES, "nobody"]]
    expected = np.stack([np.full(4, np.nan) if row is None else row.vector for row in rows])
    found = ~np.isnan(expected[:, 0])
    given = ["get", folder, "--node-type", "job", "--ids-file", tmp_path / "ids.txt", "--as-of=-2"]
    for suffix in (".npy", ".parquet", ".array_record"):
        done = star(*given, "--output", tmp_path / f"x{suffix}")
        assert done.code == 0, done.err
        assert f"x{suffix}: {len(rows)} rows of version" in done.out
        assert f", {(~found).sum()} of them missing" in done.out
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected.astype(np.float32))
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["id"].to_pylist() == [*NAMES, "nobody"]
    vectors = decode_vectors(table["vector"].drop_null(), 4, "<f4")
    np.testing.assert_array_equal(vectors, expected[found].astype(np.float32))
    records = read_records([tmp_path / "x.array_record"])
    assert [record.vector is None for _, record in records] == [row is None for row in rows]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ids", "a", "--ids-file", "b"], "ids are missing or given twice, needed --ids A,B or"),
        ([], "ids are missing or given twice"),
        (["--ids", "a", "--output", "x.csv"], r"--output x.csv: needed a name that ends in one of"),
        (["--ids", "a", "--as-version", "old@1"], "old@1 is no folder of a transform"),
    ],
)
def test_look_ups_that_are_refused(star, folder, options, message):
    done = star("get", folder, "--node-type", "job", *options)
    assert done.code == 2
    assert len(done.errors) == 1
    assert message in done.errors[0]


def read_records(paths):
    grain = pytest.importorskip("grain")
    source = grain.sources.ArrayRecordDataSource([str(path) for path in paths])
    return [decode_row(source[i]) for i in range(len(source))]


def expected_rows(rows, time=None):
    names = sorted({row.id for row in rows})
    return [row for row in (tables.last(rows, name, time) for name in names) if row is not None]


def by_id(rows):
    return sorted(rows, key=lambda row: row[0])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parquet_by_partition_as_duckdb_reads_it(star, folder, tmp_path, dtype):
    output = tmp_path / "published"
    done = star("publish", folder, "--output", output, "--partitions", "4", "--dtype", dtype)
    assert done.code == 0, done.err
    artefacts.verify(output)
    meta = artefacts.read_manifest(output, publish.KIND).meta
    assert meta["sizes"] == {"job": 4, "member": 4}
    for node_type, rows in (("job", ROWS), ("member", OTHERS)):
        files = sorted((output / node_type).iterdir())
        assert [file.name for file in files] == [f"part-{i:05d}-of-00004.parquet" for i in range(4)]
        with duckdb.connect() as db:
            found = db.sql(
                "select id, event_time, vector, version, filename[-21:-18]::int as file, "
                "('0x' || sha256(id)[1:8])::ubigint % 4 as partition "
                f"from read_parquet('{output}/{node_type}/*.parquet', filename = true) order by id"
            ).fetchall()
        code = read_meta(files[0])["dtype"]
        assert code == {"float32": "<f4", "float16": "<f2"}[dtype]
        vectors = decode_vectors([row[2] for row in found], 4, code)
        expected = expected_rows(rows)
        assert [row[0] for row in found] == [row.id for row in expected]
        assert [row[1] for row in found] == [shown(row.t) for row in expected]
        np.testing.assert_array_equal(vectors, np.stack([r.vector for r in expected]).astype(code))
        assert {row[3] for row in found} == {meta["versions"][node_type]}
        assert [row[4] for row in found] == [row[5] for row in found]


def test_array_records_as_grain_reads_them(star, folder, tmp_path):
    output = tmp_path / "published"
    options = ("--format", "arrayrecord", "--partitions", "3", "--node-type", "job")
    assert star("publish", folder, "--output", output, *options, "--as-of", "1").code == 0
    files = sorted((output / "job").iterdir())
    assert [file.suffix for file in files] == [".array_record"] * 3
    found, expected = by_id(read_records(files)), expected_rows(ROWS, 1)
    assert [name for name, _ in found] == [row.id for row in expected]
    for (_, record), row in zip(found, expected, strict=True):
        assert record.event_time == row.t
        np.testing.assert_array_equal(record.vector, row.vector)
    for number, file in enumerate(files):
        names = [name for name, _ in read_records([file])]
        assert set(partitions_of(names, 3).tolist()) <= {number}


def test_all_times_are_all_rows(star, folder, tmp_path):
    output = tmp_path / "published"
    assert star("publish", folder, "--output", output, "--all-times").code == 0
    found = pq.read_table(output / "job")
    rows = sorted((row.id, row.t, row.vector.tobytes()) for row in ROWS)
    times = [NO_TIME if t is None else t for t in found["event_time"].to_pylist()]
    ids, vectors = found["id"].to_pylist(), found["vector"].to_pylist()
    assert sorted(zip(ids, times, vectors, strict=True)) == rows


def test_partitions_are_those_of_the_documentation():
    names = ["a", "ü/7", "", "x" * 300]
    for number in (1, 5, 16):
        expected = [
            int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % number for name in names
        ]
        assert partitions_of(names, number).tolist() == expected
    assert partitions_of([], 4).tolist() == []


def test_mapped_vectors_have_a_version_of_their_own(star, folder, mapped, tmp_path):
    given = ("--as-version", mapped, "--node-type", "job")
    assert star("publish", folder, "--output", tmp_path / "p", *given).code == 0
    table = pq.read_table(tmp_path / "p" / "job").sort_by("id")
    expected = np.stack([row.vector for row in expected_rows(ROWS)]) @ MATRIX.astype(np.float32)
    np.testing.assert_allclose(
        decode_vectors(table["vector"], 2, "<f4"), expected, rtol=1e-5, atol=1e-6
    )
    (version,) = set(table["version"].to_pylist())
    assert version.startswith(f"{artefacts.digest(folder)[:16]}>{'0' * 16}/")


KILLED = """
import json, os, signal, sys
from pathlib import Path
import pyarrow.dataset  # Slow to import: once here, not in every child.
from star_jax.jobs import publish
folder, workdir = sys.argv[1], Path(sys.argv[2])
real, found = publish.write_rows, {}

def run(form, left, when):
    left = [left]
    def write_rows(path, *args):
        left[0] -= 1
        if not left[0]:
            path.write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, *args)
    publish.write_rows = write_rows
    if when == "seal":
        publish.artefacts.seal = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    list(publish.run(folder, output=str(workdir / form), format=form, partitions=3))

for form in ("parquet", "arrayrecord"):
    for left, when in ((9, "seal"), (2, "amid"), (4, "amid")):
        if not (child := os.fork()):
            run(form, left, when)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        parts = len([*(workdir / f".{form}.parts").glob("*/part-*[!l]")])  # No .partial.
        found.setdefault(form, []).append([code, parts, (workdir / form).exists()])
print(json.dumps(found))
"""


def test_a_killed_publication_goes_on_to_the_same_bytes(star, folder, tmp_path):
    """Killed when all were moved, amid the second file of six, and amid the fifth."""
    run = subprocess.run(
        [sys.executable, "-c", KILLED, folder, tmp_path],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        capture_output=True,
        text=True,
    )
    kill = -signal.SIGKILL
    for form, seen in json.loads(run.stdout).items():
        assert seen == [[kill, 0, False], [kill, 1, False], [kill, 4, False]]
        output, whole = tmp_path / form, tmp_path / f"whole-{form}"
        for path in (output, whole):
            done = star("publish", folder, "--output", path, "--format", form, "--partitions", "3")
            assert done.code == 0, done.err
        assert artefacts.digest(output) == artefacts.digest(whole)
        artefacts.verify(output)
    assert len(list(tmp_path.iterdir())) == 4


def test_what_an_interrupted_publication_left_is_used_once(star, folder, tmp_path, monkeypatch):
    """By the same publication; another one begins anew."""
    real, left = publish.write_rows, [5]

    def failing(*args):
        left[0] -= 1
        if not left[0]:
            raise OSError("the disk is full")
        return real(*args)

    monkeypatch.setattr(publish, "write_rows", failing)
    options = ("--output", tmp_path / "p", "--partitions", "3")
    assert star("publish", folder, *options).code == 2
    assert left == [0]
    assert star("publish", folder, *options, "--dtype", "float16").code == 0
    assert left == [-6]
    left[0] = 3
    assert star("publish", folder, *options).code == 2
    again = star("publish", folder, *options)
    assert left == [-4]
    assert "in 3 files, 2 of them were there" in again.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "x", "--ttl-s", "5"], "--ttl-s 5 for x: needed at least 1, and a store"),
        (["--output", "lmdb:x", "--ttl-s", "0"], "--ttl-s 0 for lmdb:x"),
        (["--output", "lmdb:x", "--all-times"], "--all-times is for folders, and not beside"),
        (["--output", "x", "--partitions", "0"], "--partitions 0, needed at least 1"),
        (["--output", "x", "--node-type", "skill"], "has no table of node type 'skill'"),
    ],
)
def test_publications_that_are_refused(star, folder, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    done = star("publish", folder, *options)
    assert done.code == 2
    assert len(done.errors) == 1
    assert message in done.errors[0]
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_a_publication_is_replaced(star, folder, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("all of it", encoding="utf-8")
    for output in (mine, mine / "thesis.tex", folder):
        done = star("publish", folder, "--output", output)
        assert done.errors[0].endswith(
            f"{output} is there and holds no {publish.KIND}; give another folder"
        )
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.tex"]
    for dtype in ("float32", "float16"):
        assert star("publish", folder, "--output", tmp_path / "p", "--dtype", dtype).code == 0
    assert artefacts.read_manifest(tmp_path / "p", publish.KIND).meta["dtype"] == "<f2"


@pytest.fixture
def url(request, tmp_path):
    """Of an empty store."""
    if request.param == "lmdb":
        yield f"lmdb:{tmp_path / 'store'}"
        return
    if servers.PROGRAM is None:
        pytest.skip("neither redis-server nor valkey-server is on the PATH")
    with servers.running(tmp_path) as url:
        yield url


@pytest.mark.extra("stores")
@pytest.mark.parametrize(
    ("url", "as_of"), [("lmdb", None), ("lmdb", 0), ("redis", None)], indirect=["url"]
)
def test_a_store_holds_what_the_reader_reads(star, folder, mapped, url, as_of):
    given = () if as_of is None else ("--as-of", as_of)
    done = star("publish", folder, "--output", url, *given)
    assert done.code == 0, done.err
    again = star("publish", folder, "--output", url, *given)
    number = len(expected_rows(ROWS, as_of))
    assert f": 0 rows of job of version {artefacts.digest(folder)[:16]}, {number} " in again.out
    options = ("--as-version", mapped, "--node-type", "job", "--dtype", "float16")
    assert star("publish", folder, "--output", url, *options, *given).code == 0
    store, reader = open_store(url), EmbeddingReader(folder, "job")
    rows = reader.get(NAMES, as_of)
    found = store.get_many([row_key(reader.version, "job", name) for name in NAMES])
    for record, time, vector, there in zip(
        found, rows.event_time, rows.vectors, rows.found, strict=True
    ):
        assert (record is not None) == there
        if record is not None:
            assert (record.version, record.event_time) == (reader.version, time)
            np.testing.assert_array_equal(record.vector, vector)
    widths = [record.vector.shape for _, record in store.scan(b"e") if record.vector is not None]
    assert sorted(set(widths)) == [(2,), (4,)]
    store.close()
