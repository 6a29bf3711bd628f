"""Memory and time of loading a large text base.

Writes a checkpoint of random bfloat16 weights in the layout of the published Mistral embedders,
then loads it in processes of their own: as `star` does, and once the plain way (all tensors read,
stacked, then put on the device). This process watches the anonymous memory of the other one from
outside, every millisecond, so neither a long call nor Python's lock can hide a peak. Counting
begins when it has imported everything and compiled nothing: what the compiler needs, some 20 MB,
counts as well. What is freed goes back to the system at once (`MALLOC_MMAP_THRESHOLD_`), so no
peak is hidden in pages that were kept.

Run:
    PYTHONPATH=. python bench/text_loading.py            # 2.9 GB of weights, 10 GB of memory
    PYTHONPATH=. python bench/text_loading.py --small    # 50 MB
"""

import argparse
import gc
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.text import tensor_names
from star_jax.text.families import read_shape
from star_jax.text.tower import TextTower, TowerConfig, build_tower, load_params, param_shapes
from star_jax.train.checkpoints import tree_digest

BOUND = 1.2  # Of the largest tensor: peak anonymous memory beyond the arrays that are made.
NUM_SHARDS = 3
WAYS = (("star", 1), ("star", 8), ("plain", 1))  # With the devices that parameters are split over.
LARGE = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "num_hidden_layers": 6,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 14_336,
}
SMALL = {
    "vocab_size": 32_000,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 1024,
}


class Memory(NamedTuple):
    """Of one process, in bytes."""

    arrays: int
    """Made by loading."""
    load: int
    """Peak of anonymous memory while loading, beyond the start and the arrays made."""
    digest: int
    """The same while the arrays' digest is computed."""
    seconds: float
    """Of loading."""
    hash: str
    """The digest: equal if all weights are."""


def write(folder: Path, sizes: dict[str, int]) -> int:
    """Writes a checkpoint; returns the bytes of its largest tensor, all that it needs itself."""
    config = {"model_type": "mistral", "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(config | sizes), encoding="utf-8")
    shapes = _stored_shapes(folder)
    largest = max(math.prod(shape) for shape in shapes.values())
    noise = np.random.default_rng(0).standard_normal(1 << 20, np.float32) * 0.02
    noise = np.resize(noise.astype(ml_dtypes.bfloat16), largest + 8 * len(shapes))
    per_shard = sum(math.prod(shape) for shape in shapes.values()) / NUM_SHARDS
    shards, seen = [{} for _ in range(NUM_SHARDS)], 0
    for i, (name, shape) in enumerate(shapes.items()):
        size = math.prod(shape)  # Each tensor begins elsewhere in the noise.
        shards[int(seen / per_shard)][name] = noise[8 * i : 8 * i + size].reshape(shape)
        seen += size
    places = {}
    for i, tensors in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{NUM_SHARDS:05d}.safetensors"
        save_file(tensors, folder / file)
        places |= dict.fromkeys(tensors, file)
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return largest * noise.itemsize


def measure(folder: Path, way: str, fsdp: int) -> Memory:
    """Loads in another process and watches its memory."""
    command = [sys.executable, __file__, "--child", str(folder), "--way", way, "--fsdp", str(fsdp)]
    root = str(Path(__file__).parents[1])
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": root},
    )
    with child:
        _watch(child)  # Until it has imported everything.
        before = _anonymous(child.pid)
        loaded, load_peak = _watch(child)
        digested, digest_peak = _watch(child)
    arrays = loaded["arrays"]
    return Memory(
        arrays,
        load_peak - before - arrays,
        digest_peak - before - arrays,
        loaded["seconds"],
        digested["digest"],
    )


def _watch(child: subprocess.Popen) -> tuple[dict[str, Any], int]:
    """Lets the other process go on to its next report; what it says, and its peak until then."""
    assert child.stdin is not None
    assert child.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda out: lines.append(out.readline()), args=[child.stdout])
    reader.start()
    child.stdin.write("\n")
    child.stdin.flush()
    peak = 0
    while reader.is_alive():
        peak = max(peak, _anonymous(child.pid))
        time.sleep(0.001)
    return json.loads(lines[0]), peak


def _anonymous(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0  # It has just ended.


def _child(folder: Path, way: str, fsdp: int) -> None:
    jax.config.update("jax_num_cpu_devices", fsdp)
    config = TowerConfig(base=str(folder), param_dtype="bfloat16")
    tower, mesh = build_tower(config), make_mesh(MeshConfig(data=1, fsdp=fsdp))
    param_shapes(tower)
    gc.collect()
    _report({})
    began = time.perf_counter()
    params = load_params(config, tower, mesh) if way == "star" else _plain(folder, tower)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - began
    leaves = jax.tree.leaves(params)
    arrays = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    _report({"arrays": arrays, "seconds": seconds})
    _report({"digest": tree_digest(params)})


def _report(content: dict[str, Any]) -> None:
    sys.stdin.readline()
    sys.stdout.write(f"{json.dumps(content)}\n")
    sys.stdout.flush()


def _plain(folder: Path, tower: TextTower) -> Any:
    """Everything on the host first; written apart from the code under test."""
    stored = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored |= load_file(file)
    leaves = cast("dict[str, Any]", flatten_dict(param_shapes(tower)["encoder"], sep="/"))
    tensors: dict[str, list[np.ndarray]] = {}
    for name, target in tensor_names.targets(tower.shape, leaves):
        value = stored.pop(name)
        value = value.T if target.path.endswith("/kernel") else value
        tensors.setdefault(target.path, []).append(value)
    host = {
        path: np.stack(values) if path.startswith("layers/") else np.ascontiguousarray(values[0])
        for path, values in tensors.items()
    }
    return {"encoder": unflatten_dict(jax.tree.map(jnp.array, host), sep="/")}


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors, in the order of the layers."""
    tower = build_tower(TowerConfig(base=str(folder)))
    leaves = cast("dict[str, Any]", flatten_dict(param_shapes(tower)["encoder"], sep="/"))
    shapes = {}
    for name, target in tensor_names.targets(read_shape(folder), leaves):
        shape = leaves[target.path].shape[0 if target.layer is None else 1 :]
        shapes[name] = shape[::-1] if target.path.endswith("/kernel") else shape

    def layer(name: str) -> int:
        return int(name.split(".")[1]) if name.startswith("layers.") else -1

    return {name: shapes[name] for name in sorted(shapes, key=layer)}


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description="Memory and time of loading a large base.")
    parser.add_argument("--small", action="store_true", help="50 MB instead of 2.9 GB")
    for name in ("--child", "--way", "--fsdp"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.getLogger("jax").setLevel(logging.ERROR)
    if args.child:
        _child(Path(args.child), args.way, int(args.fsdp))
        return
    header = "way    devices  arrays MB  load beyond MB  ratio  digest beyond MB  ratio  load s"
    hashes = set()
    with tempfile.TemporaryDirectory() as name:
        largest = write(Path(name), SMALL if args.small else LARGE)
        _print(f"largest tensor {largest / 1e6:.1f} MB; bound {BOUND} of it\n\n{header}")
        for way, fsdp in WAYS:
            memory = measure(Path(name), way, fsdp)
            _print(
                f"{way:5}  {fsdp:7}  {memory.arrays / 1e6:9.1f}  {memory.load / 1e6:14.1f}"
                f"  {memory.load / largest:5.2f}  {memory.digest / 1e6:16.1f}"
                f"  {memory.digest / largest:5.2f}  {memory.seconds:6.1f}"
            )
            hashes.add(memory.hash)
    if len(hashes) != 1:
        raise SystemExit("the weights differ from those of the plain way")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
