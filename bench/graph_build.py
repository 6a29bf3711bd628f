"""Building a graph larger than the memory it may take: time, memory and files of `build-graph`.

Run:
    PYTHONPATH=. python bench/graph_build.py 2 60 > bench/results/graph_build.md

The arguments are millions of edges, before their reverses. Node types and relations are those of
the paper's Tables 10 and 11, scaled; four relations have times, two of them edges that were
removed, one has weights. The tables are drawn and written piece by piece, as `star import` leaves
them, and every build is a process of its own whose anonymous memory (RssAnon: what no file backs)
is read every few milliseconds. What a process takes before it sorts anything is in the figures.
Exit code 1: two limits gave two graphs, or the peak is above the limit and what is said beside it.
"""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.drawn_graph import LEAST_NODES, RELATIONS, SPAN, TIMED, schema_of
from star_jax import artefacts
from star_jax.graph.schema import EdgeType, GraphSchema
from star_jax.pipeline.tables.read import KIND, EdgeMeta, NodeMeta, TablesMeta, TaskMeta

LIMITS_GIB = (0.25, 1.0, 8.0)
BESIDE_GIB = 0.5  # The most that a process takes beside the limit: Python, its packages, buffers.
REMOVABLE = ("apply", "save")
WEIGHTED = ("answers",)
_CHUNK = 1 << 20
_CONFIG = "configs/run/quickstart.py"


class Row(NamedTuple):
    """What one build took."""

    limit_gib: float
    wall_s: float
    cpu_s: float
    peak_bytes: int  # Of anonymous memory.
    spilled_bytes: int  # The most that lay in the scratch folder at once.
    graph_bytes: int
    version: str


def write_tables(workdir: Path, num_edges: int) -> int:
    """Draws tables in the paper's proportions and seals them; returns their bytes on disk."""
    share = num_edges / (1e6 * sum(RELATIONS.values()))
    schema = schema_of(tuple(RELATIONS), share, LEAST_NODES)
    rng = np.random.default_rng(0)
    with artefacts.writing(workdir / "tables", KIND) as folder:
        for name, node in schema.nodes.items():
            _stream(folder / "nodes" / f"{name}.parquet", _nodes(name, node.count))
        counts = {edge.key: round(1e6 * RELATIONS[edge.key] * share) for edge in schema.edges}
        for edge in schema.edges:
            rows = _edges(edge, schema, counts[edge.key], rng)
            _stream(folder / "edges" / f"{edge.key}.parquet", rows)
        artefacts.set_meta(folder, dataclasses.asdict(_meta(schema, counts)))
    return _bytes_of(workdir / "tables")


def _nodes(name: str, count: int) -> Iterator[pa.RecordBatch]:
    for first in range(0, count, _CHUNK):
        index = np.arange(first, min(first + _CHUNK, count), dtype=np.int32)
        ids = pa.array([f"{name}-{i}" for i in index], pa.string())
        none = pa.nulls(len(index), pa.int64())
        yield pa.record_batch({"idx": index, "id": ids, "t": none})


def _edges(
    edge: EdgeType, schema: GraphSchema, count: int, rng: np.random.Generator
) -> Iterator[pa.RecordBatch]:
    """In the order of their times, as `star import` writes them."""
    for first in range(0, count, _CHUNK):
        size = min(_CHUNK, count - first)
        ends = {
            end: rng.integers(0, schema.nodes[getattr(edge, end)].count, size, dtype=np.int32)
            for end in ("sender", "receiver")
        }
        times = (first + np.sort(rng.integers(0, size, size))) * SPAN // count
        timed, removable = edge.relation in TIMED, edge.relation in REMOVABLE
        weights = rng.random(size) if edge.relation in WEIGHTED else np.ones(size)
        yield pa.record_batch(
            ends
            | {
                "t": pa.array(times, mask=np.full(size, not timed)),
                "removed_t": pa.array(times + 9, mask=(rng.random(size) < 0.9) | (not removable)),
                "weight": weights.astype(np.float32),
                "split": np.full(size, int(timed), np.int8),
            }
        )


def _stream(path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    first = next(batches)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def _meta(schema: GraphSchema, counts: dict[str, int]) -> TablesMeta:
    nodes = {
        name: NodeMeta(count=node.count, categorical={}, dense=[], has_texts=False, has_time=False)
        for name, node in schema.nodes.items()
    }
    edges = [
        EdgeMeta(
            **dataclasses.asdict(edge),
            count=counts[edge.key],
            has_time=edge.relation in TIMED,
            has_split=edge.relation in TIMED,
        )
        for edge in schema.edges
    ]
    task = TaskMeta(
        sender="member",
        receiver="job",
        edge_types=["member__apply__job"],
        negatives=[],
        counts={},
        class_weights=(1.0, 1.0),
    )
    return TablesMeta(
        dataset="drawn",
        time_unit="ordinal",
        node_types=nodes,
        edge_types=edges,
        tasks={"apply": task},
        cohorts=[],
        reference=None,
        import_report={},
    )


def build(workdir: Path, limit_gib: float) -> Row:
    """Runs `star build-graph` and watches it."""
    limit = ["--build_graph.options.memory_limit_gib", str(limit_gib)]
    command = [sys.executable, "-m", "star_jax", "build-graph", _CONFIG]
    start = time.monotonic()
    pid = os.posix_spawn(sys.executable, [*command, "--workdir", str(workdir), *limit], os.environ)
    peak = spilled = 0
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        peak = max(peak, _anonymous_bytes(pid))
        spilled = max(spilled, *map(_bytes_of, workdir.glob(".graph.partial/.scratch-*")), 0)
        time.sleep(0.005)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")
    return Row(
        limit_gib=limit_gib,
        wall_s=time.monotonic() - start,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_bytes=peak,
        spilled_bytes=spilled,
        graph_bytes=_bytes_of(workdir / "graph"),
        version=artefacts.read_manifest(workdir / "graph", "graph").meta["version"],
    )


def _anonymous_bytes(pid: int) -> int:
    """What no file backs, now; 0 once the process has ended."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def _bytes_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # The process that writes here deletes as well.
            continue
    return total


def _sized(bytes_: float) -> str:
    return f"{bytes_ / 2**30:.2f}"


def report(num_edges: int, tables_bytes: int, rows: list[Row]) -> list[str]:
    """Prints the table of one size; returns what is wrong."""
    print(f"\n## {num_edges / 1e6:g} million edges and their reverses\n")
    print(f"Tables {_sized(tables_bytes)} GiB (zstd Parquet), graph ", end="")
    print(f"{_sized(rows[0].graph_bytes)} GiB.\n")
    print("| limit, GiB | peak, GiB | spilled, GiB | wall, s | CPU, s | graph |")
    print("|---|---|---|---|---|---|")
    wrong = []
    for row in rows:
        cells: list[Any] = [f"{row.limit_gib:g}", _sized(row.peak_bytes)]
        cells += [_sized(row.spilled_bytes), f"{row.wall_s:.0f}", f"{row.cpu_s:.0f}"]
        print(f"| {' | '.join(cells)} | {row.version[:12]} |")
        if row.peak_bytes > (row.limit_gib + BESIDE_GIB) * 2**30:
            wrong.append(f"peak {_sized(row.peak_bytes)} GiB under a limit of {row.limit_gib:g}")
        if row.version != rows[0].version:
            wrong.append(f"limit {row.limit_gib:g} gives another graph than {rows[0].limit_gib:g}")
    return wrong


def main() -> int:
    """Prints all tables; 1 when something is wrong."""
    print("# Building graphs out of core\n")
    sizes = sys.argv[1:]
    print(f"    PYTHONPATH=. python bench/graph_build.py {' '.join(sizes)} ", end="")
    print("> bench/results/graph_build.md\n")
    print(
        f"{os.cpu_count()} cores; peak: of the anonymous memory of the whole process, Python and "
    )
    print("its packages included. The last limit is larger than what the build takes.")
    wrong = []
    for millions in sizes:
        num_edges = round(1e6 * float(millions))
        with tempfile.TemporaryDirectory() as folder:
            tables_bytes = write_tables(Path(folder), num_edges)
            rows = [build(Path(folder), limit) for limit in LIMITS_GIB]
        wrong += report(num_edges, tables_bytes, rows)
    print(
        "\n" + ("\n".join(wrong) or "Every peak is within the limit and 0.5 GiB, all graphs equal.")
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
