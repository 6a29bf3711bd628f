"""A graph larger than the memory that it is built in."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from star_jax import artefacts
from star_jax.graph.build import BuildOptions, build
from star_jax.graph.build_source import GraphTables
from star_jax.graph.schema import EdgeType, GraphSchema, NodeType

NUM_NODES, NUM_EDGES = 20_000, 4_000_000
APPLY = EdgeType(sender="member", relation="apply", receiver="job", kind="interaction")
SCHEMA = GraphSchema(
    nodes={name: NodeType(count=NUM_NODES, categorical={}, dense=()) for name in ("member", "job")},
    edges=(APPLY,),
)
LIMIT_MIB, BESIDE_MIB = 103, 115
IN_MEMORY_MIB = 33 * NUM_EDGES / 2**20  # Receiver to flags: one direction in whole columns.


def write_tables(folder, num_edges):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in SCHEMA.nodes:
        index = np.arange(NUM_NODES, dtype=np.int32)
        none = pa.nulls(NUM_NODES, pa.int64())
        columns = {"idx": index, "id": pa.array(index.astype(str)), "t": none}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    times = np.sort(rng.integers(0, 10**6, num_edges))
    columns = {
        "sender": rng.integers(0, NUM_NODES, num_edges, dtype=np.int32),
        "receiver": rng.integers(0, NUM_NODES, num_edges, dtype=np.int32),
        "t": times,
        "removed_t": pa.array(times + 9, mask=rng.random(num_edges) < 0.9),
        "weight": rng.random(num_edges, dtype=np.float32),
        "split": np.ones(num_edges, np.int8),
    }
    # Row groups as `star import` writes them: one is read at a time.
    pq.write_table(pa.table(columns), folder / f"{APPLY.key}.parquet", row_group_size=1 << 17)


def anonymous_mib():
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def build_version(folder, name, limit_mib):
    tables = GraphTables(
        {name: folder / f"{name}.parquet" for name in SCHEMA.nodes},
        {APPLY.key: folder / f"{APPLY.key}.parquet"},
        {},
    )
    options = BuildOptions(memory_limit_gib=limit_mib / 1024, num_threads=1)
    with artefacts.writing(folder / name, "graph") as output:
        return build(output, SCHEMA, tables, "ordinal", options).version


def build_twice(folder):
    """In a process of its own: how much more memory the second build takes, and both versions."""
    build_version(folder / "few", "warm", LIMIT_MIB)  # Kernels are compiled, packages imported.
    before, peak, done = anonymous_mib(), [0.0], threading.Event()

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    under_limit = build_version(folder / "many", "under_limit", LIMIT_MIB)
    done.set()
    watcher.join()
    without = build_version(folder / "many", "without", 4096)
    sys.stdout.write(f"{peak[0] - before} {under_limit} {without}\n")


def test_a_build_keeps_to_its_memory_and_makes_the_same_graph(tmp_path):
    """Holding the edges of one direction would break the bound."""
    write_tables(tmp_path / "few", 1000)
    write_tables(tmp_path / "many", NUM_EDGES)
    module = "tests.graph.test_build_memory"
    code = f"import pathlib, {module} as t; t.build_twice(pathlib.Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown_mib, under_limit, without = done.stdout.split()
    assert under_limit == without
    assert float(grown_mib) < LIMIT_MIB + BESIDE_MIB < LIMIT_MIB + IN_MEMORY_MIB
