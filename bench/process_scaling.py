"""What several processes tell each other in a step, as bytes that this machine's network carried.

Run, when nothing else talks over the loopback device:
    JAX_PLATFORMS=cpu PYTHONPATH=. python bench/process_scaling.py --workdir W \
        > bench/results/process_scaling.md

The tables, the text vectors and the graph of configs/run/tiny.py are made once in W. Then the text
half and, on the engine `mesh`, the graph half are trained through the command line with eight CPU
devices in all, of one process and of 2 and 4 real ones, which meet over TCP (gloo). Each training
runs for few and for more steps; the difference of what the loopback device received, over the
difference of steps, is what the processes sent each other in a step. What one of its devices sends
another does not leave a process. Exit code 1: the losses of several processes are not those of one.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs.run import tiny
from star_jax.jobs.run import run_stages, stages

DEVICES = 8
PROCESSES = (1, 2, 4)
STEPS = (4, 24)
PREPARED = ("import", "train-text", "export-text", "build-graph")
TOLERANCE = 1e-4
_STATISTICS = Path("/sys/class/net/lo/statistics/rx_bytes")


class Training(NamedTuple):
    """One row's command."""

    name: str
    command: str
    config: str
    output: str
    options: tuple[str, ...]


ALL = tuple(
    Training(f"{half}, {axis}", command, f"configs/{half}/tiny.py", output, (*options, *on))
    for half, command, output, options in (
        ("text", "train-text", "text", ()),
        ("graph", "train-graph", "graph_model", ("--engine.kind", "mesh")),
    )
    for axis, on in (
        ("data 8", ("--mesh.data", "8")),
        ("fsdp 8", ("--mesh.data", "1", "--mesh.fsdp", "8")),
    )
)


def received() -> int:
    """Bytes of the loopback device since the machine started."""
    return int(_STATISTICS.read_text("utf-8"))


def free_address() -> str:
    """Where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def train(training: Training, inputs: Path, count: int, steps: int) -> tuple[int, list[float]]:
    """Trains anew, in a folder that goes away.

    Returns:
      Bytes that were received meanwhile, and the loss of every step.

    Raises:
      RuntimeError: A process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        for path in inputs.iterdir():
            if path.name not in (training.output, "stage.json"):
                (workdir / path.name).symlink_to(path.resolve())
        arguments = [sys.executable, "-m", "star_jax", training.command, training.config]
        arguments += ["--workdir", folder, "--plan.num-steps", str(steps), *training.options]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(DEVICES // count)}
        address, before, running = free_address(), received(), []
        for index in range(count):
            own = ["--coordinator", address, "--num-processes", str(count)]
            own += ["--process-id", str(index)]
            command = arguments + (own if count > 1 else [])
            with (workdir / f"{index}.log").open("w") as log:
                running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        codes = [process.wait() for process in running]
        if any(codes):
            said = (workdir / "0.log").read_text("utf-8")
            raise RuntimeError(f"{training.name} of {count} processes failed:\n{said}")
        lines = (workdir / training.output / "metrics.jsonl").read_text("utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row["split"] == "train"]
        return received() - before, [row["loss"] for row in rows]


def measure(training: Training, inputs: Path, counts: Sequence[int]) -> bool:
    """Prints a training's rows; returns whether all report the same losses."""
    alone, same = None, True
    for count in counts:
        found = [train(training, inputs, count, steps) for steps in STEPS]
        sent = (found[1][0] - found[0][0]) / (STEPS[1] - STEPS[0])
        losses = np.asarray(found[1][1])
        alone = losses if alone is None else alone
        furthest = float(np.max(np.abs(losses - alone) / np.abs(alone)))
        same &= len(losses) == len(alone) and furthest <= TOLERANCE
        cells = [training.name, str(count), str(DEVICES // count), f"{sent / 1e6:.3f}"]
        cells += [f"{sent / count / 1e6:.3f}", f"{losses[-1]:.6f}", f"{furthest:.1e}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    return same


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Bytes between processes, a step.")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--processes", type=int, nargs="+", default=list(PROCESSES))
    options = parser.parse_args()
    config = tiny.get_config()
    prepared = [stage for stage in stages(config) if stage.name in PREPARED]
    run_stages(prepared, options.workdir)
    print(
        "# What processes send each other in a step\n\n    JAX_PLATFORMS=cpu PYTHONPATH=. ", end=""
    )
    print(f"python {' '.join(sys.argv)} > bench/results/process_scaling.md\n")
    print(
        f"Trainings of {STEPS[0]} and {STEPS[1]} steps on the tiny market, {DEVICES} CPU ", end=""
    )
    print("devices in all, batches of one size; the loopback device's own counter.\n")
    print(
        "| step | processes | devices of each | MB between processes a step | MB to a process |",
        end="",
    )
    print(f" loss of step {STEPS[1]} | furthest loss from one process's |")
    print("|---" * 7 + "|")
    same = [measure(training, options.workdir, options.processes) for training in ALL]
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
