"""The graph half at scale: time and memory of drawing, building, training and exporting a market.

Run:
    PYTHONPATH=. python bench/market_scale.py 10 runs/large > bench/results/market_scale.md

The arguments are millions of nodes (16 edges each, before their reverses) and a folder, as many
pairs of them as are wanted; `--steps N` before them trains so many steps instead of 1,000. Every
stage is a process of its own, `star draw-market` and so on with configs/market/large.py and
configs/run/large_market.py; what it takes is kept in the folder's `market_scale.json`, and a stage
that is there is not run again. Memory is read five times a second, of the process and its children:
private is what no file backs (RssAnon), resident adds the pages of mapped files, which the system
takes back when others need them. That a stage is flat shows in the peaks of its quarters. Exit code
1: a peak is above 16 GiB.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from star_jax import artefacts
from star_jax.evaluation.auc import roc_auc
from star_jax.pipeline.tables.read import read_meta, read_pairs

MEMBERS_PER_MILLION = 493_000
LIMIT_GIB = 16
STAGES = {
    "draw-market": ("configs/market/large.py", "edges"),
    "build-graph": ("configs/run/large_market.py", "edges"),
    "train-graph": ("configs/run/large_market.py", "pairs"),
    "export-graph": ("configs/run/large_market.py", "nodes"),
}
_EVERY_S = 0.2
_PARTS = 64  # Of a stage's time, whose peaks are kept.


class Sample(NamedTuple):
    """Memory of a process and its children, in bytes."""

    time_s: float
    private: int
    resident: int


def run_stage(name: str, millions: float, workdir: Path, steps: int) -> dict[str, Any]:
    """Runs one command and watches it."""
    config, _ = STAGES[name]
    command = [sys.executable, "-m", "star_jax", name, config, "--workdir", str(workdir)]
    if name == "draw-market":
        command += ["--num_members", str(round(millions * MEMBERS_PER_MILLION))]
    if name == "train-graph":
        command += ["--train_graph.plan.num_steps", str(steps)]
    with (workdir / f"{name}.log").open("w") as log:
        actions = [(os.POSIX_SPAWN_DUP2, log.fileno(), number) for number in (1, 2)]
        start = time.monotonic()
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
        samples = list(_watched(pid, start))
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}; see {log.name}")
    wall = time.monotonic() - start
    parts = [0] * _PARTS
    for each in samples:
        number = min(int(_PARTS * each.time_s / wall), _PARTS - 1)
        parts[number] = max(parts[number], each.private)
    return {
        "wall_s": wall,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "private": max(each.private for each in samples),
        "resident": max(each.resident for each in samples),
        "parts": parts,
    }


def _watched(pid: int, start: float) -> Iterator[Sample]:
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        found = [_memory(each) for each in _family(pid)]
        private, resident = (sum(column) for column in zip((0, 0), *found, strict=True))
        yield Sample(time.monotonic() - start, private, resident)
        time.sleep(_EVERY_S)


def _family(pid: int) -> Iterator[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _read(path).split():
            yield from _family(int(child))


def _memory(pid: int) -> tuple[int, int]:
    """Private and resident bytes; none of a process that has ended."""
    lines = dict(line.split(":", 1) for line in _read(Path(f"/proc/{pid}/status")).splitlines())
    sizes = {name: 1024 * int(lines.get(name, "0").split()[0]) for name in ("RssAnon", "VmRSS")}
    return sizes["RssAnon"], sizes["VmRSS"]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def measure(millions: float, workdir: Path, steps: int) -> dict[str, Any]:
    """All stages, those that are kept from an earlier run and the others."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "market_scale.json"
    kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for name in STAGES:
        if name not in kept:
            kept[name] = run_stage(name, millions, workdir, steps)
            artefacts.write_text(path, json.dumps(kept, indent=1))
            print(f"{name}: {kept[name]['wall_s']:.0f} s", file=sys.stderr)
    return kept


def report(workdir: Path, kept: dict[str, Any]) -> list[str]:
    """Prints a section; returns what is wrong."""
    meta = read_meta(workdir / "tables")
    nodes = sum(node.count for node in meta.node_types.values())
    edges = sum(edge.count for edge in meta.edge_types)
    exported = artefacts.read_manifest(workdir / "graph_embeddings", "graph_embeddings").meta
    model = artefacts.read_manifest(workdir / "graph_model", "graph_model").meta
    pairs = read_pairs(workdir / "tables", "apply", "val")
    best = roc_auc(pairs.label == 1, pairs.true_logit)
    done = {"draw-market": edges, "build-graph": 2 * edges, "train-graph": 512 * model["num_steps"]}
    done["export-graph"] = sum(exported["num_nodes"].values())
    print(f"\n## {nodes:,} nodes, {edges:,} edges and their reverses\n")
    print("| stage | wall, s | CPU, s | a second | private, GiB | by quarters | resident, GiB |")
    print("|---|---|---|---|---|---|---|")
    wrong = []
    for name, row in kept.items():
        rate = f"{done[name] / row['wall_s']:,.0f} {STAGES[name][1]}"
        size = len(row["parts"]) // 4
        quarters = ", ".join(_gib(max(row["parts"][i * size : (i + 1) * size])) for i in range(4))
        cells = [name, f"{row['wall_s']:.0f}", f"{row['cpu_s']:.0f}", rate, _gib(row["private"])]
        print(f"| {' | '.join([*cells, quarters, _gib(row['resident'])])} |")
        if row["resident"] > LIMIT_GIB * 2**30:
            wrong.append(f"{name} of {nodes:,} nodes: {_gib(row['resident'])} GiB")
    names = ("tables", "text_embeddings", "graph", "graph_model", "graph_embeddings")
    sizes = [f"{name} {_gib(_bytes_of(workdir / name))}" for name in names]
    print(f"\nOn disk, GiB: {', '.join(sizes)}.")
    print(
        f"Validation AUC after {model['num_steps']} steps, at best: {model['best_score']:.4f}; "
        f"of the planted truth, over {len(pairs.label):,} pairs: {best:.4f}."
    )
    return wrong


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f}"


def main() -> int:
    """Measures and prints all that is asked for; 1 when something is wrong."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("sizes_and_folders", nargs="+")
    given = parser.parse_args()
    sizes = [float(each) for each in given.sizes_and_folders[::2]]
    workdirs = [Path(each) for each in given.sizes_and_folders[1::2]]
    kept = [measure(*each, given.steps) for each in zip(sizes, workdirs, strict=True)]
    print("# A market at scale\n")
    print(f"    PYTHONPATH=. python bench/market_scale.py {' '.join(sys.argv[1:])} ", end="")
    print("> bench/results/market_scale.md\n")
    print(f"{os.cpu_count()} cores. Private: memory that no file backs, its peak, and the peaks in")
    print("the four quarters of the stage's time; resident: pages of mapped files with it.")
    wrong = [line for each in zip(workdirs, kept, strict=True) for line in report(*each)]
    print("\n" + ("\n".join(wrong) or f"Every peak is below {LIMIT_GIB} GiB."))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
