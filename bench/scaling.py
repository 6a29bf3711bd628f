"""How the compiled steps grow: over devices, and with nodes, edges, fan-out, tokens.

Run:
    JAX_PLATFORMS=cpu PYTHONPATH=. python bench/scaling.py > bench/results/scaling.md

Nothing is placed and nothing runs: the steps of text training, of graph training with the engine
that samples inside the program, and of the encoding of texts are compiled for 1, 2, 4 and 8 virtual
devices from shapes, and the compiler's own counts are printed per device, loops counted once but
for their collectives. Weak: the batch grows with the devices. Strong: it does not. A collective's
bytes are those that one device is sent. The program of a mesh is the same whether its devices
belong to one process or to several. Exponents are slopes of least squares through logarithms.
Exit code 1: a step on one device has collectives.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # Counts are the same.

import jax
import numpy as np

from bench.mesh_shapes import mesh_step, train_config
from bench.shapes import MISTRAL_7B, hf_config
from star_jax.jobs.train_text import TextTrainConfig
from star_jax.parallel.mesh import MeshConfig, make_mesh, num_row_shards
from star_jax.pipeline.planning import text
from star_jax.pipeline.planning.programs import Program, analyse
from star_jax.text.attention_choice import this_machine
from star_jax.text.families import TokenLimits
from star_jax.text.tower import TowerConfig

DEVICES = (1, 2, 4, 8)
PAIRS, GRAPH_PAIRS = 8, 32  # Of a device.
STRONG = ("Strong scaling: one batch for all", False)
SHARE = 1e-4  # Of the paper's graph.
SMALL = dataclasses.replace(
    MISTRAL_7B,
    vocab_size=1024,
    width=256,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_width=64,
    mlp_width=1024,
)


class Row(NamedTuple):
    """One compiled step."""

    what: str
    units: int  # Of all devices.
    program: Program


def mesh_of(devices: int, kind: str) -> MeshConfig:
    """All on one axis."""
    return MeshConfig(data=1, fsdp=devices) if kind == "fsdp" else MeshConfig(data=devices)


@functools.cache
def text_step(folder: Path, devices: int, pairs: int, length: int, kind: str) -> Row:
    """The update of `train-text`, or the encoding of `export-text`.

    Args:
      folder: Holds the base's config.json.
      devices: Virtual ones.
      pairs: Of all of them.
      length: Tokens of a text.
      kind: `fsdp`, `data`, or `export`.
    """
    limits = TokenLimits(job=length, profile=length, resume=length, other=length)
    config = TextTrainConfig(
        tower=TowerConfig(base=str(folder), prompts="none", limits=limits, remat="full"),
        mesh=mesh_of(devices, kind),
        batch_size=pairs,
        microbatch_size=pairs,
        num_tables=1,
    )
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    if kind == "export":
        tokens = pairs * length // devices
        step = text.text_export(
            config.model_of(1.0), mesh, this_machine(), tokens=tokens, length=length
        )
    else:
        batch = text.longest_batch(config, num_row_shards(mesh))
        step = text.text_step(config, config.model_of(1.0), mesh, this_machine(), batch)
    return Row(f"text, {kind}", int(step.counts.units), analyse(step.lower().compile()))


@functools.cache
def graph_step(devices: int, pairs: int, share: float, total: tuple[int, ...]) -> Row:
    """The update of `train-graph` on the engine `mesh`; see bench/mesh_tpu.py.

    Args:
      devices: Virtual ones.
      pairs: Of all of them.
      share: Of the paper's graph.
      total: Fan-outs.
    """
    config = train_config(total, devices)
    step = mesh_step(config, jax.devices()[:devices], share, pairs // devices)
    return Row("graph, mesh engine", pairs, analyse(step.lower().compile()))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log(cost) over log(size), by least squares."""
    slope, _ = np.polyfit(np.log(sizes), np.log(costs), 1)
    return float(slope)


def print_devices(title: str, rows: list[tuple[int, Row]]) -> list[str]:
    """A table over devices; returns what is wrong."""
    print(f"\n## {title}\n")
    print("| step | devices | units | GFLOP a device | GB of memory traffic a device | ", end="")
    print("collectives | MB to a device | MiB at the peak |\n|---|---|---|---|---|---|---|---|")
    wrong = []
    for devices, (what, units, program) in rows:
        number = sum(each.number for each in program.collectives.values())
        cells = [what, str(devices), f"{units:,}", f"{program.flops / 1e9:.3f}"]
        cells += [f"{program.memory_traffic / 1e9:.3f}", str(number)]
        cells += [f"{program.link_bytes / 1e6:.2f}", f"{program.peak_bytes / 2**20:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
        if devices == 1 and program.link_bytes:
            wrong.append(f"{what} on one device sends {program.link_bytes} bytes")
    return wrong


def print_growth(name: str, sizes: Sequence[float], rows: list[Row]) -> None:
    """Costs by size, and their exponents."""
    flops = [row.program.flops for row in rows]
    traffic = [row.program.memory_traffic for row in rows]
    peak = [float(row.program.peak_bytes) for row in rows]
    cells = [rows[0].what, name, ", ".join(f"{size:,g}" for size in sizes)]
    cells += [f"{exponent(sizes, each):.2f}" for each in (flops, traffic, peak)]
    print(f"| {' | '.join(cells)} |", flush=True)


def base_folder(folder: str) -> Path:
    """A folder with what a plan reads of a base."""
    path = Path(folder)
    (path / "config.json").write_text(json.dumps(hf_config(SMALL)), encoding="utf-8")
    return path


def over_devices(folder: Path, counts: Sequence[int]) -> list[str]:
    """Both tables over devices."""
    wrong = []
    for title, weak in (("Weak scaling: the batch grows with the devices", True), STRONG):
        rows = []
        for kind in ("fsdp", "data", "export", "graph"):
            for devices in counts:
                many = devices if weak else max(counts)
                if kind == "graph":
                    made = graph_step(devices, GRAPH_PAIRS * many, SHARE, (10,))
                else:
                    made = text_step(folder, devices, PAIRS * many, 128, kind)
                print(title, made, file=sys.stderr, flush=True)
                rows.append((devices, made))
        wrong += print_devices(title, rows)
    return wrong


def growth(folder: Path) -> None:
    """The table of exponents, on one device."""
    print("\n## What one device's step costs, as a power of what grows\n")
    print("| step | what grows | sizes | FLOPs | memory traffic | peak memory |")
    print("|---|---|---|---|---|---|")
    grown: dict[str, tuple[Sequence[float], Callable[[float], Row]]] = {
        "tokens of a text": (
            (128, 256, 512),
            lambda n: text_step(folder, 1, PAIRS, int(n), "data"),
        ),
        "texts": ((8, 16, 32), lambda n: text_step(folder, 1, int(n), 128, "data")),
        "nodes and edges": (
            (1e-4, 4e-4, 16e-4),
            lambda n: graph_step(1, GRAPH_PAIRS, n, (10,)),
        ),
        "fan-out": ((10, 20, 40), lambda n: graph_step(1, GRAPH_PAIRS, SHARE, (int(n),))),
        "pairs": ((32, 64, 128), lambda n: graph_step(1, int(n), SHARE, (10,))),
    }
    for name, (sizes, make) in grown.items():
        print_growth(name, sizes, [make(size) for size in sizes])


def main() -> int:
    """Prints all tables."""
    parser = argparse.ArgumentParser(description="How the compiled steps grow.")
    parser.add_argument("--devices", type=int, nargs="+", default=list(DEVICES))
    parser.add_argument("--only", choices=("devices", "growth"), help="one half of the tables")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(options.devices))
    begun = time.process_time()
    print("# How the compiled steps grow\n\n    JAX_PLATFORMS=cpu PYTHONPATH=. python ", end="")
    print(f"{' '.join(sys.argv)} > bench/results/scaling.md\n")
    print(f"jax {jax.__version__}, compiled for virtual CPU devices. Text: a Mistral of ", end="")
    print(f"{SMALL.num_layers} blocks of {SMALL.width}, float32, LoRA, texts of 128 tokens. ")
    print(f"Graph: {SHARE:g} of the paper's, 14 relations both ways, 10 neighbours.")
    with tempfile.TemporaryDirectory() as folder:
        base = base_folder(folder)
        wrong = [] if options.only == "growth" else over_devices(base, options.devices)
        if options.only != "devices":
            growth(base)
    print(f"\n{math.ceil(time.process_time() - begun)} s of processor time.")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
