"""Publishing and serving embeddings: files and read-back, LMDB and Redis, reads of 500 keys.

Run (with the extra `stores`; Polars, pandas and a Redis or Valkey server where they are there):
    PYTHONPATH=. python bench/store.py --rows 1000000 --store-rows 200000 > bench/results/store.md

Vectors are of width 200, drawn; the table is written piece by piece, as `star export-graph` does.
Every figure is of one call after another in this process; times of writing files include the page
cache, not the disk.
"""

import argparse
import contextlib
import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_data_source import ArrayRecordDataSource

from star_jax import artefacts
from star_jax.embeddings.columns import decode_vectors
from star_jax.embeddings.reader import EmbeddingReader
from star_jax.embeddings.records import NEVER_MS, decode_row, row_key
from star_jax.embeddings.table import EmbeddingTable, write_shard
from star_jax.jobs import publish
from star_jax.serving.stores.protocol import Store
from star_jax.serving.stores.urls import open_store
from tests.serving.stores import servers

SIZE = 200
SHARD_ROWS = 100_000
READ_KEYS = 500
NUM_READS = 400
NODE_TYPE = "member"


class Took(NamedTuple):
    """Of one piece of work."""

    wall_s: float
    cpu_s: float  # Of this process.


def timed(work: Callable[[], Any]) -> Took:
    """Does it once."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def write_table(folder: Path, num_rows: int) -> Path:
    """Draws an artefact of embeddings."""
    rng = np.random.default_rng(0)
    with artefacts.writing(folder, "graph_embeddings") as partial:
        for shard, start in enumerate(range(0, num_rows, SHARD_ROWS)):
            rows = np.arange(start, min(start + SHARD_ROWS, num_rows), dtype=np.int32)
            vectors = rng.standard_normal((len(rows), SIZE), np.float32)
            times = np.full(len(rows), 1_700_000_000, np.int64)
            table = EmbeddingTable(rows, np.full_like(rows, -1), times, vectors)
            names = [f"member-{row:08d}" for row in rows.tolist()]
            write_shard(partial / NODE_TYPE, shard, names, table)
        artefacts.set_meta(partial, {"model": "0" * 64, "graph": "0" * 64})
    return folder


def table(header: str, rows: list[list[str]]) -> None:
    """Prints Markdown."""
    print(f"\n| {header} |\n|{'---|' * len(header.split(' | '))}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def num_bytes(folder: Path) -> int:
    """Of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def export(folder: Path, workdir: Path, form: Any, dtype: Any) -> tuple[Path, list[str]]:
    """Publishes into a folder; its path and a row of figures."""
    output = workdir / f"{form}-{dtype}"
    took = timed(
        lambda: list(publish.run(str(folder), output=str(output), format=form, dtype=dtype))
    )
    size = f"{num_bytes(output) / 1e9:.2f}"
    return output, [f"`star publish`, {form}, {dtype}", *cells(took), size]


def lists(folder: Path, workdir: Path, num_rows: int) -> list[list[str]]:
    """The usual way beside ours: a column of lists, of the same rows, uncompressed as well."""
    vectors = (
        EmbeddingReader(folder, NODE_TYPE)
        .get([f"member-{row:08d}" for row in range(num_rows)])
        .vectors
    )
    path, fixed = workdir / "lists.parquet", workdir / "fixed.parquet"

    def write_lists() -> None:
        flat = pa.array(vectors.ravel())
        column = pa.ListArray.from_arrays(
            pa.array(np.arange(0, len(flat) + 1, SIZE), pa.int32()), flat
        )
        pq.write_table(pa.table({"vector": column}), path, compression="none")

    def write_fixed() -> None:
        kind = pa.binary(4 * SIZE)
        column = pa.FixedSizeBinaryArray.from_buffers(kind, num_rows, [None, pa.py_buffer(vectors)])
        pq.write_table(
            pa.table({"vector": column}), fixed, compression="none", use_dictionary=False
        )

    def read_lists() -> None:
        column = pq.read_table(path)["vector"].combine_chunks()
        assert np.array_equal(column.flatten().to_numpy().reshape(-1, SIZE), vectors)

    def read_fixed() -> None:
        column = pq.read_table(fixed)["vector"]
        assert np.array_equal(decode_vectors(column, SIZE, "<f4"), vectors)

    work = {
        "lists, write": write_lists,
        "fixed-size binary, write": write_fixed,
        "lists, read": read_lists,
        "fixed-size binary, read": read_fixed,
    }
    rows = [[name, *cells(timed(do)), ""] for name, do in work.items()]
    path.unlink()
    fixed.unlink()
    return rows


def read_back(output: Path) -> list[list[str]]:
    """All vectors and ids of published Parquet into an array, by several readers."""
    files = f"{output / NODE_TYPE}/*.parquet"
    readers: dict[str, Callable[[], Any]] = {
        "pyarrow": lambda: pq.read_table(output / NODE_TYPE)["vector"],
        "DuckDB": lambda: (
            duckdb.connect().sql(f"select id, vector from '{files}'").to_arrow_table()["vector"]
        ),
    }
    if polars := optional("polars"):
        readers["Polars"] = lambda: polars.read_parquet(files)["vector"]
    if pandas := optional("pandas"):
        readers["pandas"] = lambda: pandas.read_parquet(output / NODE_TYPE)["vector"]
    rows = []
    for name, read in readers.items():
        took = timed(lambda read=read: decode_vectors(read(), SIZE, "<f4"))
        rows.append([f"read back by {name}", *cells(took), ""])
    return rows


def optional(library: str) -> Any:
    """A library, where it is there."""
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.import_module(library)
    return None


def read_records(output: Path) -> list[str]:
    """Ten thousand records in a drawn order, as a training would."""
    paths = sorted(str(path) for path in (output / NODE_TYPE).iterdir())
    source = ArrayRecordDataSource(paths)
    chosen = np.random.default_rng(1).integers(0, len(source), 10_000).tolist()
    took = timed(lambda: [decode_row(content) for content in source.__getitems__(chosen)])
    return ["10 000 ArrayRecords in a drawn order", *cells(took), ""]


def look_ups(folder: Path, num_rows: int) -> list[list[str]]:
    """`EmbeddingReader`: opening, the first look-up, which sorts the ids, and others."""
    found: list[EmbeddingReader] = []
    opened = timed(lambda: found.append(EmbeddingReader(folder, NODE_TYPE)))
    first = timed(lambda: found[0].get(["nobody"]))
    p50, p99 = percentiles(lambda names: found[0].get(names), drawn_names(num_rows))
    return [
        ["open a reader", *cells(opened), ""],
        ["its first look-up", *cells(first), ""],
        [f"{READ_KEYS} ids, p50 {p50:.2f} ms, p99 {p99:.2f} ms", "", "", ""],
    ]


def drawn_names(num_rows: int) -> Iterator[list[str]]:
    """The ids of each read."""
    rng = np.random.default_rng(2)
    for _ in range(NUM_READS):
        yield [f"member-{row:08d}" for row in rng.integers(0, num_rows, READ_KEYS).tolist()]


def percentiles(read: Callable[[Any], Any], asked: Iterator[Any]) -> tuple[float, float]:
    """Median and 99th percentile of a read, in milliseconds."""
    times = [1000 * timed(lambda keys=keys: read(keys)).wall_s for keys in asked]
    return float(np.percentile(times, 50)), float(np.percentile(times, 99))


def in_store(url: str, folder: Path, dtype: Any, num_rows: int) -> list[str]:
    """Loads a store by `star publish`, then reads batches of keys."""
    took = timed(lambda: list(publish.run(str(folder), output=url, dtype=dtype)))
    again = timed(lambda: list(publish.run(str(folder), output=url, dtype=dtype)))
    store, version = open_store(url), EmbeddingReader(folder, NODE_TYPE).version
    keys = (
        [row_key(version, NODE_TYPE, name) for name in names] for names in drawn_names(num_rows)
    )
    p50, p99 = percentiles(lambda asked: check(store, asked), keys)
    store.close()
    rates = [f"{num_rows / each:,.0f}".replace(",", " ") for each in (took.wall_s, again.wall_s)]
    return [url.partition(":")[0], dtype, *rates, f"{p50:.2f}", f"{p99:.2f}"]


def check(store: Store, keys: list[bytes]) -> None:
    """Reads keys that are all there."""
    assert all(one is not None and one.expires_ms == NEVER_MS for one in store.get_many(keys))


def stores(workdir: Path, num_rows: int) -> list[list[str]]:
    """Figures of every store and type of number."""
    folder = write_table(workdir / "small", num_rows)
    rows = []
    for dtype in ("float32", "float16"):
        rows.append(in_store(f"lmdb:{workdir / dtype}", folder, dtype, num_rows))
        shutil.rmtree(workdir / dtype)
        if servers.PROGRAM is not None:
            (workdir / "server").mkdir()
            with servers.running(workdir / "server") as url:
                rows.append(in_store(url, folder, dtype, num_rows))
            shutil.rmtree(workdir / "server")
    return rows


def cells(took: Took) -> list[str]:
    """Of a table."""
    return [f"{took.wall_s:.1f}", f"{took.cpu_s:.1f}"]


def main(num_rows: int, store_rows: int, workdir: Path) -> None:
    """Prints the page."""
    print("# Publishing and serving embeddings\n")
    print(
        f"    PYTHONPATH=. python bench/store.py --rows {num_rows} --store-rows {store_rows} "
        "> bench/results/store.md"
    )
    print(f"\n{os.cpu_count()} cores, vectors of width {SIZE}.")
    print(f"\n## {num_rows} rows in files")
    folder = write_table(workdir / "table", num_rows)
    rows = look_ups(folder, num_rows)
    parquet, figures = export(folder, workdir, "parquet", "float32")
    rows += [figures, *read_back(parquet)]
    shutil.rmtree(parquet)
    for form, dtype in (("parquet", "float16"), ("arrayrecord", "float32")):
        output, figures = export(folder, workdir, form, dtype)
        rows.append(figures)
        if form == "arrayrecord":
            rows.append(read_records(output))
        shutil.rmtree(output)
    table("work | wall, s | CPU, s | GB", rows)
    compared = min(num_rows, 200_000)
    print(f"\n## {compared} vectors as lists of numbers, and as fixed-size binary")
    table("work | wall, s | CPU, s | ", lists(folder, workdir, compared))
    shutil.rmtree(folder)
    print(f"\n## {store_rows} rows in stores, by `star publish`; reads of {READ_KEYS} drawn keys")
    header = "store | numbers | rows/s | rows/s, once more | read p50, ms | read p99, ms"
    table(header, stores(workdir, store_rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--store-rows", type=int, default=200_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        main(given.rows, given.store_rows, Path(name))
