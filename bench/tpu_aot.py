"""The update of e5-mistral-7b at the paper's sizes, compiled for TPU slices that are not there.

Run, with `jax[tpu]` installed on any machine:
    PYTHONPATH=. python bench/tpu_aot.py > bench/results/tpu_aot.md

LoRA of rank 8, texts as long as the limits allow (1800 / 1800 / 1024 tokens), packed rows of 2048,
splash attention, gradient cache over the whole batch: what configs/text/mistral_7b.py trains, with
the base split over all chips. Nothing is placed and nothing runs. Every compilation is a process of
its own, and what `star plan` says of it is printed as it ends. Exit code 1: one does not leave 20 %
of a chip's memory, or XLA had to copy whole arrays to split them anew (involuntary full
rematerialisation).
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench.shapes import MISTRAL_7B, hf_config
from configs.text import mistral_7b
from star_jax.jobs import plan
from star_jax.jobs.train_text import TextTrainConfig

REMATERIALISED = "Involuntary full rematerialization"
NUM_PAIRS = 4_500_000  # Of the paper.


class Case(NamedTuple):
    """One training on one slice."""

    topology: str
    chips: int
    batch_size: int
    microbatch_size: int


CASES = (
    Case("v5e:4x4", 16, 3072, 64),
    Case("v5p:4x4x4", 64, 3072, 1024),
    Case("v5e:4x4", 16, 3172, 52),  # 3172 = 4 * 13 * 61: rows are filled up by mask,
    Case("v5p:4x4x4", 64, 3172, 1586),  # to 3184 on 16 chips and to 3200 on 64.
)


def config_of(case: Case, base: Path) -> TextTrainConfig:
    """The preset, on the slice."""
    config = mistral_7b.get_config()
    return dataclasses.replace(
        config,
        tower=dataclasses.replace(config.tower, base=str(base)),
        mesh=dataclasses.replace(config.mesh, fsdp=case.chips),
        batch_size=case.batch_size,
        microbatch_size=case.microbatch_size,
    )


def compile_case(case: Case) -> bool:
    """Prints the plan, and what planning took; returns whether it fits."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        base = json.dumps(hf_config(MISTRAL_7B))  # All that a plan reads of it.
        (Path(folder) / "config.json").write_text(base, encoding="utf-8")
        config = config_of(case, Path(folder))
        fits = plan.run(config, case.topology, print, num_pairs=NUM_PAIRS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"compiled in {time.monotonic() - begun:.0f} s and {peak:.1f} GiB of this machine")
    return fits


def main() -> int:
    """All cases, one after the other; 1 when one is missed."""
    if os.environ.get("ONE_CASE"):
        return 0 if compile_case(CASES[int(os.environ["ONE_CASE"])]) else 1
    print("# The update of e5-mistral-7b, compiled for TPU slices that are not there\n")
    print("    PYTHONPATH=. python bench/tpu_aot.py > bench/results/tpu_aot.md\n", flush=True)
    wrong = 0
    for number, case in enumerate(CASES):
        environment = os.environ | {"ONE_CASE": str(number), "JAX_PLATFORMS": "cpu"}
        ran = subprocess.run(
            [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
        )
        copied = REMATERIALISED in ran.stderr
        print(f"## {case.batch_size} pairs, {case.topology}\n\n```\n{ran.stdout}```\n")
        print(f"Involuntary full rematerialisation: {'yes' if copied else 'none'}.\n", flush=True)
        if ran.returncode:
            print(ran.stderr[-2000:], file=sys.stderr)
        wrong += bool(ran.returncode or copied)
    print("Every update fits." if not wrong else f"MISSED by {wrong} of {len(CASES)}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
