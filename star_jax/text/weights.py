"""Pretrained weights: Hugging Face safetensors folders, read tensor by tensor into our tree."""

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from star_jax.config import InputError
from star_jax.shapes import PyTree
from star_jax.text import tensor_names
from star_jax.text.families import Shape

log = logging.getLogger(__name__)

_SHOWN = 5  # Names listed per kind of problem.


def read_encoder(folder: Path, shape: Shape, shapes: PyTree, dtype: DTypeLike) -> PyTree:
    """Reads an encoder's weights as numpy arrays.

    Args:
      folder: Holds model.safetensors, or its shards and their index.
      shape: Of the base.
      shapes: Tree of the encoder's parameters, by shape.
      dtype: Of the arrays returned.

    Raises:
      InputError: A file is missing or corrupt, or tensors are missing, unknown or misshapen.
    """
    leaves = cast("dict[str, Any]", flatten_dict(shapes, sep="/"))
    targets = dict(tensor_names.targets(shape, leaves))
    arrays = {path: np.empty(leaf.shape, np.dtype(dtype)) for path, leaf in leaves.items()}
    with ExitStack() as stack:
        files = _open(folder, stack)
        names = _match(folder, files, targets, leaves)
        for name, (file, stored) in names.items():
            target = targets[name]
            value = _read(file, stored, folder)
            value = value.T if target.path.endswith("/kernel") else value
            array = arrays[target.path]
            array[... if target.layer is None else target.layer] = value.astype(array.dtype)
    log.info("weights: %d tensors from %s", len(names), folder)
    return unflatten_dict(arrays, sep="/")


def _open(folder: Path, stack: ExitStack) -> list[Any]:
    """All weight files of a folder, opened; their headers are checked, their data not read."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        paths = [single]
    elif index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index} is no index of safetensors shards: {error!r}") from error
        paths = [folder / name for name in sorted(names)]
    else:
        raise InputError(f"{folder} holds no model.safetensors, whole or in shards with an index")
    files = []
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} is missing, named in {index.name}")
        try:
            files.append(stack.enter_context(safe_open(path, framework="numpy")))
        except SafetensorError as error:
            raise InputError(f"{path} is corrupt: {error}") from error
    return files


def _match(
    folder: Path, files: list[Any], targets: dict[str, tensor_names.Target], leaves: dict[str, Any]
) -> dict[str, tuple[Any, str]]:
    """Name without prefix -> its file and full name; lists everything that does not fit."""
    found: dict[str, tuple[Any, str]] = {}
    unknown, misshapen = [], []
    for file in files:
        for stored in file.keys():  # noqa: SIM118 - no mapping, it has no iterator
            name = _without_prefix(stored)
            if name not in targets:
                unknown += [] if tensor_names.UNUSED.fullmatch(name) else [stored]
                continue
            got = tuple(file.get_slice(stored).get_shape())
            target = targets[name]
            needed = leaves[target.path].shape[0 if target.layer is None else 1 :]
            needed = needed[::-1] if target.path.endswith("/kernel") else needed
            if got != needed:
                misshapen.append(f"{stored} {list(got)} needed {list(needed)}")
            found[name] = (file, stored)
    missing = [name for name in targets if name not in found]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)})"
        for kind, names in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise InputError(f"{folder}: tensors that do not fit config.json: {'; '.join(problems)}")
    return found


def _without_prefix(name: str) -> str:
    """The tensor's name in the bare encoder, in today's spelling."""
    name = name.removeprefix("model.").removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _read(file: Any, stored: str, folder: Path) -> np.ndarray:
    try:
        return file.get_tensor(stored)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder}: tensor {stored} cannot be read: {error}") from error
