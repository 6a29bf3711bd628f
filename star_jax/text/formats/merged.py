"""A Hugging Face folder: the base's tensors under their published names and dtypes, trained.

Tensors are read from the base, changed and written one shard at a time; tensors that the tower
does not use (heads, poolers) are copied.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file

from star_jax.config import InputError
from star_jax.shapes import PyTree
from star_jax.text import tensor_names
from star_jax.text.families import Shape
from star_jax.text.lora import LoraConfig

Update = Callable[[np.ndarray], np.ndarray]
"""From a tensor of the base, in torch's layout, to the trained one in float32."""

_INDEX = "model.safetensors.index.json"
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}


class Stored(NamedTuple):
    """A tensor of the base's files, not read yet."""

    name: str
    file: Path
    dtype: str
    """As safetensors calls it."""
    num_bytes: int


def lora_updates(shape: Shape, adapters: PyTree, config: LoraConfig) -> dict[str, Update]:
    """Bare tensor name -> the adapter added to the kernel.

    Args:
      shape: Of the base.
      adapters: Of the encoder, on the host.
      config: Of the adapters.
    """
    leaves = cast("dict[str, Any]", flatten_dict(adapters, sep="/"))
    scale = np.float32(config.alpha / config.rank)

    def adding(path: str, layer: int | None) -> Update:
        a, b = (
            np.asarray(leaf if layer is None else leaf[layer], np.float32)
            for leaf in (leaves[f"{path}/a"], leaves[f"{path}/b"])
        )
        return lambda kernel: kernel.astype(np.float32) + (a @ (b * scale)).T

    kernels: dict[str, Any] = {
        f"{path.removesuffix('/a')}/kernel": None for path in leaves if path.endswith("/a")
    }
    return {
        name: adding(target.path.removesuffix("/kernel"), target.layer)
        for name, target in tensor_names.targets(shape, kernels)
    }


def full_updates(shape: Shape, params: PyTree) -> dict[str, Update]:
    """Bare tensor name -> the trained parameter instead of the base's."""
    leaves = cast("dict[str, Any]", flatten_dict(params, sep="/"))

    def replacing(path: str, layer: int | None) -> Update:
        def update(_: np.ndarray) -> np.ndarray:
            leaf = leaves[path] if layer is None else leaves[path][layer]
            value = np.asarray(leaf, np.float32)
            return value.T if path.endswith("/kernel") else value

        return update

    return {name: replacing(*target) for name, target in tensor_names.targets(shape, leaves)}


def published_tensors(base: Path) -> list[Stored]:
    """All tensors of a base's files, in their order; headers are read, no data.

    Raises:
      InputError: It has none.
    """
    index = base / _INDEX
    names = ["model.safetensors"]
    if not (base / names[0]).is_file() and index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    tensors = []
    for name in names:
        if not (base / name).is_file():
            raise InputError(f"{base / name} is missing, needed to export the model")
        with safe_open(base / name, framework="numpy") as file:
            for tensor in file.keys():  # noqa: SIM118 - no mapping, it has no iterator
                header = file.get_slice(tensor)
                dtype = header.get_dtype()
                size = int(np.prod(header.get_shape())) * _ITEM_BYTES[dtype]
                tensors.append(Stored(tensor, base / name, dtype, size))
    return tensors


def write_weights(
    folder: Path, base: Path, updates: Mapping[str, Update], *, shard_bytes: int
) -> set[str]:
    """Writes the base's tensors, those with an update changed by it.

    Args:
      folder: Gets model.safetensors, or shards and an index where they are larger than one.
      base: Folder of the base.
      updates: By bare name.
      shard_bytes: Largest shard, and what is held in memory; a larger tensor is its own shard.

    Returns:
      Dtypes of the changed tensors.

    Raises:
      InputError: The base lacks a tensor that has an update.
    """
    tensors = published_tensors(base)
    missing = set(updates) - {tensor_names.bare(tensor.name) for tensor in tensors}
    if missing:
        raise InputError(f"{base} lacks {len(missing)} trained tensors, such as {min(missing)}")
    shards = list(_shards(tensors, shard_bytes))
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        name = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        )
        save_file(_read(shard, updates), folder / name, {"format": "pt"})
        weight_map |= {tensor.name: name for tensor in shard}
    if len(shards) > 1:
        total = sum(tensor.num_bytes for tensor in tensors)
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / _INDEX).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return {tensor.dtype for tensor in tensors if _update_of(tensor, updates) is not None}


def write_config(folder: Path, base: Path, **changes: object) -> None:
    """The base's config.json, byte for byte where nothing changes."""
    text = (base / "config.json").read_text(encoding="utf-8")
    if changes:
        text = json.dumps(json.loads(text) | changes, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _shards(tensors: list[Stored], shard_bytes: int) -> Iterator[list[Stored]]:
    shard, size = [], 0
    for tensor in tensors:
        if shard and size + tensor.num_bytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.num_bytes
    yield shard


def _update_of(tensor: Stored, updates: Mapping[str, Update]) -> Update | None:
    name = tensor_names.bare(tensor.name)
    return updates.get(tensor_names.COPIES.get(name, name))


def _read(shard: list[Stored], updates: Mapping[str, Update]) -> dict[str, np.ndarray]:
    values = {}
    with ExitStack() as stack:
        files = {
            file: stack.enter_context(safe_open(file, framework="numpy"))
            for file in dict.fromkeys(tensor.file for tensor in shard)
        }
        for tensor in shard:
            value = files[tensor.file].get_tensor(tensor.name)
            update = _update_of(tensor, updates)
            if update is not None:
                # Rows one after the other: safetensors stores the buffer as it lies.
                value = np.ascontiguousarray(update(value).astype(value.dtype))
            values[tensor.name] = value
    return values
