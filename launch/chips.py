"""Says what chips a run has; called by the launchers, with nothing but Python's own library.

python launch/chips.py cuda                        12 or 13: what the NVIDIA driver carries
python launch/chips.py gpu|tpu --num-hosts N       the run's --topology for `star plan`
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping

from hosts import HostsError, metadata  # Beside this file.

_DRIVERS = ((580, "13"), (525, "12"))  # Oldest driver that carries each CUDA.
_GPUS = (("H200", "h200"), ("H100", "h100"), ("A100", "a100"))
_LARGE_MIB = 60_000  # Of the two A100, 40 and 80 GB, the larger one.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_DEEP = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
# Accelerator type: the name in a topology, chips for each of what it counts, and shapes.
_TPUS = {"v5litepod": ("v5e", 1, _FLAT), "v6e": ("v6e", 1, _FLAT), "v5p": ("v5p", 2, _DEEP)}


def cuda() -> str:
    """Which CUDA the driver carries."""
    driver = _smi("driver_version")[0][0]
    major = driver.split(".")[0]
    for oldest, version in _DRIVERS:
        if major.isdigit() and int(major) >= oldest:
            return version
    raise HostsError(f"NVIDIA driver {driver} is older than 525, which CUDA 12 needs: update it")


def gpus(num_hosts: int, environ: Mapping[str, str]) -> str:
    """As a100-80:8, of all hosts together, which are taken to be alike."""
    rows = _smi("name,memory.total")
    names = sorted({name for name, _ in rows})
    if len(names) > 1:
        raise HostsError(f"the GPUs of this host differ, {' and '.join(names)}: give --topology")
    name, mib = rows[0]
    kind = next((kind for word, kind in _GPUS if word in name), None)
    if kind is None:
        raise HostsError(f"`star plan` knows no GPU {name}: give --topology")
    if kind == "a100":
        kind = "a100-80" if int(mib) > _LARGE_MIB else "a100-40"
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    count = len(rows) if visible is None else len([each for each in visible.split(",") if each])
    return f"{kind}:{count * num_hosts}"


def tpus(environ: Mapping[str, str]) -> str:
    """As v5e:4x4, of the whole slice."""
    given = environ.get("TPU_ACCELERATOR_TYPE")
    accelerator = given or metadata("accelerator-type", environ, "give --topology")
    kind, _, size = accelerator.partition("-")
    if kind not in _TPUS or not size.isdigit():
        raise HostsError(f"`star plan` knows no accelerator type {accelerator}: give --topology")
    name, cores, shapes = _TPUS[kind]
    shape = shapes.get(int(size) // cores)
    if shape is None:
        raise HostsError(f"accelerator type {accelerator} has no known shape: give --topology")
    return f"{name}:{shape}"


def _smi(fields: str) -> list[list[str]]:
    """One row for each GPU of this host."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise HostsError("nvidia-smi is not on the PATH: install the NVIDIA driver") from error
    except subprocess.CalledProcessError as error:
        raise HostsError(f"nvidia-smi fails: {error.stdout or error.stderr}") from error
    rows = [[field.strip() for field in line.split(",")] for line in said.splitlines() if line]
    if not rows:
        raise HostsError("nvidia-smi lists no GPU: is one given to this job?")
    return rows


def main() -> int:
    """Prints the answer to one question."""
    options = argparse.ArgumentParser(allow_abbrev=False)
    options.add_argument("question", choices=("cuda", "gpu", "tpu"))
    options.add_argument("--num-hosts", type=int, default=1)
    args = options.parse_args()
    try:
        if args.question == "cuda":
            answer = cuda()
        else:
            gpu = args.question == "gpu"
            answer = gpus(args.num_hosts, os.environ) if gpu else tpus(os.environ)
    except HostsError as error:
        sys.stderr.write(f"star: error: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(f"{answer}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
