"""Graph training and all-node inference on CPU cores, against PyTorch Geometric.

Run (PEER is a Python with torch and torch-geometric, in an environment of its own):
    PYTHONPATH=. python bench/gnn_step.py PEER > bench/results/gnn_step.md

Equal on both sides: one graph in the paper's proportions with its 14 relations both ways; the
very nodes and edges of every batch, drawn by our sampler (in training each pair sees what its time
allows, so no pair shares rows with another), the edges counted on both sides; features (text
vectors of 384, learned identities, a bias); widths (200; 800 within a layer), 2 layers, 4 heads,
an encoder per role, residual, batch normalisation, the MLP decoder, BCE, AdamW with clipping,
float32, cores.

Not equal: how messages are made. Ours has one softmax of dot products over all relations with the
receiver among its own neighbours, and a bias from weight and age. PyG's `GATConv` has a softmax
and additive scores per relation, summed by `HeteroConv`; it runs eagerly, as its examples do, and
reads neither weight nor age. `HGTConv` and GATConv called without `HeteroConv` are timed beside it
(bench/gnn_step_torch.py), without a bar. Our rows are padded, theirs are not. Ours are dense
tables in one compiled program that aggregates before it projects where that is less.

All-node inference is measured twice. "A sample for each": batches of nodes, each from a sample of
its own, as PyG's examples do and `star export-graph` by default. "Every node once": ours layer by
layer with the states in files (`--inference layerwise`), theirs in one subgraph around all nodes,
which computes as much; it is in memory, and so are all its states.

In favour of PyG: its epoch and its inference find their batches in memory, while ours draw, read
and copy theirs meanwhile. Its own loader is not measured: it draws a neighbourhood per pair and
time with pyg-lib alone, which is not on the package index. GFLOP of ours are XLA's for the compiled
programs, padding included, of theirs the matrix products alone; of an epoch those of the first
step, times the steps. Compiling is timed apart. Exit code 1: a bar is missed.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.drawn_graph import RELATIONS
from bench.gnn_step_world import EXPORTED, Size
from bench.turns import Answer, Side

LEAST, GOAL = 2.0, 3.0  # Times the speed of PyG, of the epoch and of inference.
FULL = Size(
    relations=tuple(RELATIONS),
    num_edges=1_600_000,
    least_nodes=300,
    num_pairs=512,
    num_batches=12,
    fanouts=(24, 8),
    num_exported=1 << 30,
    num_steps=3,
    num_turns=3,
)
QUICK = FULL._replace(
    relations=("member__apply__job", "job__has__skill"),  # Fewer compile faster.
    num_edges=30_000,
    least_nodes=50,
    num_pairs=32,
    num_batches=2,
    fanouts=(8, 4),
    num_exported=1024,
    num_steps=2,
    num_turns=2,
)
ROUNDING = 1e-4  # Of the first loss of PyG's two ways to call GATConv.
LAYERS = {
    "gat": "GATConv in HeteroConv",
    "bipartite": "GATConv, receivers trimmed",
    "hgt": "HGTConv",
}
OTHERS = ("bipartite", "hgt")
TURNS = ("step", "epoch", "sampled", "export")


class Found(NamedTuple):
    """What one side said of itself, and its answers turn by turn."""

    about: Answer
    turns: dict[str, list[Answer]]

    def all(self, turn: str, *names: str) -> np.ndarray:
        """Every measurement of a turn, the sum of some phases."""
        return np.sum(
            [np.concatenate([np.ravel(a[name]) for a in self.turns[turn]]) for name in names],
            axis=0,
        )


def measure(
    folder: Path, peer: str, size: Size, num_threads: int, layers: Sequence[str]
) -> dict[str, Found]:
    """Lets all sides take turns; the others than the main peer take steps alone."""
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "bench.gnn_step_star", str(folder), json.dumps(size)]
        sides = {"star": stack.enter_context(Side("star", command))}
        found = {"star": Found(sides["star"].ask("about"), {turn: [] for turn in TURNS})}
        for layer in layers:
            arguments = [str(folder), layer, str(num_threads), str(size.num_steps)]
            command = [peer, "-m", "bench.gnn_step_torch", *arguments]
            sides[layer] = stack.enter_context(Side(layer, command))
            turns = TURNS[:1] if layer in OTHERS else TURNS
            found[layer] = Found(sides[layer].ask("about"), {turn: [] for turn in turns})
        for number in range(size.num_turns):
            for turn in TURNS:
                for name, side in sides.items():
                    if turn in found[name].turns:
                        found[name].turns[turn].append(side.ask(turn))
                        print(f"turn {number}: {name} {turn}", file=sys.stderr, flush=True)
    return found


def spread(values: np.ndarray, factor: float = 1.0) -> str:
    """Median, least and most."""
    median, least, most = (factor * each for each in (np.median(values), *_ends(values)))
    return f"{median:.3g} ({least:.3g} to {most:.3g})"


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def report(found: dict[str, Found], size: Size) -> bool:
    """Prints the tables; returns whether all bars are met."""
    star, peer = found["star"], found["gat"]
    rows = (
        ("step", "step, s", star.all("step", "compute"), _whole_step(peer), "step", 1),
        (
            "epoch",
            f"epoch of {size.num_batches} steps with its loading, s",
            star.all("epoch", "seconds"),
            peer.all("epoch", "seconds"),
            "step",
            size.num_batches,
        ),
        *(
            (
                turn,
                f"vectors of {star.about['num_exported']:,} {EXPORTED}s, {how}, s",
                star.all(turn, "seconds"),
                peer.all(turn, "seconds"),
                turn,
                1,
            )
            for turn, how in (("sampled", "a sample for each"), ("export", "every node once"))
        ),
    )
    print("| | star_jax | PyG | ratio | GFLOP | PyG GFLOP | bar (goal) |")
    print("|---|---|---|---|---|---|---|")
    missed = []
    for turn, name, ours, theirs, counted, times in rows:
        ratio = float(np.median(theirs) / np.median(ours))
        flops = [f"{times * each.about[f'{counted}_gflop']:.3g}" for each in (star, peer)]
        bar = "-" if turn == "step" else f"{LEAST} ({GOAL})"
        cells = [name, spread(ours), spread(theirs), f"{ratio:.2f}", *flops, bar]
        print(f"| {' | '.join(cells)} |")
        if turn != "step" and not ratio >= LEAST:
            missed.append(f"{turn}: {ratio:.2f} times the speed of PyG, needed {LEAST}.")
    _phases(found)
    print("\n".join(missed) if missed else "All bars are met.")
    return not missed


def same_work(found: dict[str, Found]) -> bool:
    """Whether all sides had the same edges, and PyG's two ways one result; says what differs."""
    abouts = {name: each.about for name, each in found.items()}
    wrong = [
        f"{name} got {about['edges']} edges, we {abouts['star']['edges']}"
        for name, about in abouts.items()
        if about["edges"] != abouts["star"]["edges"]
    ]
    if "bipartite" in abouts:
        losses = [abouts[name]["loss"] for name in ("gat", "bipartite")]
        if abs(losses[0] - losses[1]) > ROUNDING:
            wrong.append(f"first losses of GATConv are {losses}, needed equal ones")
    for line in wrong:
        print(line)
    return not wrong


def _whole_step(peer: Found) -> np.ndarray:
    return peer.all("step", "forward", "backward", "update")


def _phases(found: dict[str, Found]) -> None:
    star = found["star"]
    print("\nSeconds of a step, one phase after the other:\n")
    print("| | forward | backward | update | whole step | GFLOP | first loss | last loss |")
    print("|---|---|---|---|---|---|---|---|")
    forward = star.all("step", "forward")
    rest = star.all("step", "compute") - forward
    cells = [spread(forward), f"{np.median(rest):.3g}, update included", "-"]
    _step_row("star_jax", cells, star.all("step", "compute"), star)
    for layer, name in LAYERS.items():
        if layer in found:
            each = found[layer]
            cells = [spread(each.all("step", part)) for part in ("forward", "backward", "update")]
            _step_row(f"PyG, {name}", cells, _whole_step(each), each)
    print("\nOf ours, as the threads of the loader do it (share of the sum):\n")
    print("| sample | read and pad | copy to the device | compute |\n|---|---|---|---|")
    parts = [np.median(star.all("step", p)) for p in ("sample", "gather", "place", "compute")]
    cells = [f"{part:.3g} s ({part / sum(parts):.0%})" for part in parts]
    print(f"| {' | '.join(cells)} |\n")
    drawing = np.median(star.all("sampled", "sample") / star.all("sampled", "seconds"))
    print(f"Drawing and reading alone takes {drawing:.0%} of our sampled inference.")
    print(f"Compiling the training step took {star.about['compile_s']:.0f} s, once.")
    print("PyG's own loader: not measured, it needs pyg-lib.\n")


def _step_row(name: str, cells: list[str], whole: np.ndarray, side: Found) -> None:
    losses = side.all("step", "loss")
    gflop = f"{side.about['step_gflop']:.3g}"
    cells = [name, *cells, spread(whole), gflop, f"{losses[0]:.3f}", f"{losses[-1]:.3f}"]
    print(f"| {' | '.join(cells)} |")


def can_measure(peer: str) -> bool:
    """Whether the other interpreter has what it needs."""
    check = subprocess.run([peer, "-c", "import torch_geometric"], check=False, capture_output=True)
    return check.returncode == 0


def main() -> int:
    """Measures all sides in turns; 1 when a bar is missed, 2 when there is nobody to compare."""
    parser = argparse.ArgumentParser(description="Graph training and inference on CPU cores.")
    parser.add_argument("peer", help="a Python with torch and torch-geometric")
    parser.add_argument("--layers", nargs="+", choices=tuple(LAYERS), help="beside gat")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a small run; its ratios say little")
    options = parser.parse_args()
    if not can_measure(options.peer):
        print(f"{options.peer} has no torch_geometric: not measured")
        return 2
    size = QUICK if options.quick else FULL
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    others = options.layers or (() if options.quick else OTHERS)
    layers = ["gat", *(each for each in others if each != "gat")]
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), options.peer, size, options.threads, layers)
    star, peer = found["star"].about, found["gat"].about
    total = sum(star["num_nodes"].values())
    print("# Graph training and inference on CPU cores, against PyTorch Geometric\n")
    print("    PYTHONPATH=. python bench/gnn_step.py PEER > bench/results/gnn_step.md\n")
    print(f"{options.threads} threads of an x86 server, {peer['versions']}, float32.")
    print(f"{size.num_edges / 1e6:g} million edges and their reverses, {total:,} nodes;", end=" ")
    print(f"{size.num_pairs} pairs a step, {size.fanouts} neighbours,")
    print(f"{star['edges'] / size.num_batches:,.0f} edges a step. Medians of", end=" ")
    print(f"{size.num_turns} turns (least to most), of {size.num_steps} steps each.\n")
    met, equal = report(found, size), same_work(found)
    return 0 if met and equal else 1


if __name__ == "__main__":
    sys.exit(main())
