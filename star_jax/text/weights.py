"""Pretrained weights: Hugging Face safetensors folders, read piece by piece onto their devices."""

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from star_jax.config import InputError
from star_jax.parallel.pieces import PIECE_BYTES, Index, fill
from star_jax.shapes import PyTree
from star_jax.text import tensor_names
from star_jax.text.families import Shape

log = logging.getLogger(__name__)

_SHOWN = 5  # Names listed per kind of problem.


class _Tensor(NamedTuple):
    """A tensor of an open file."""

    folder: Path
    file: Any
    stored: str
    """Its whole name there."""

    def read(self, index: Index) -> np.ndarray:
        """A part of it; the rest stays on disk."""
        try:
            return self.file.get_slice(self.stored)[index]
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{self.folder}: tensor {self.stored} cannot be read: {error}"
            ) from error


def read_encoder(
    folder: Path, shape: Shape, like: PyTree, *, piece_bytes: int = PIECE_BYTES
) -> PyTree:
    """Reads an encoder's weights straight onto its devices, without a second copy on the host.

    Args:
      folder: Holds model.safetensors, or its shards and their index.
      shape: Of the base.
      like: Tree of the encoder's parameters: shape, dtype and sharding of each.
      piece_bytes: Read at a time, as in `pieces.fill`.

    Raises:
      InputError: A file is missing or corrupt, or tensors are missing, unknown or misshapen.
    """
    leaves = cast("dict[str, Any]", flatten_dict(like, sep="/"))
    targets = dict(tensor_names.targets(shape, leaves))
    with ExitStack() as stack:
        files = _open(folder, stack)
        tensors = _match(folder, files, targets, leaves)
        rows: dict[str, dict[int | None, _Tensor]] = {path: {} for path in leaves}
        for name, tensor in tensors.items():
            rows[targets[name].path][targets[name].layer] = tensor
        arrays = {path: _fill(path, leaf, rows[path], piece_bytes) for path, leaf in leaves.items()}
    log.info("weights: %d tensors from %s", len(tensors), folder)
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
) -> dict[str, _Tensor]:
    """Tensors by their names without prefix; lists everything that does not fit."""
    found: dict[str, _Tensor] = {}
    unknown, misshapen = [], []
    for file in files:
        for stored in file.keys():  # noqa: SIM118 - no mapping, it has no iterator
            name = tensor_names.bare(stored)
            if name not in targets:
                unknown += [] if tensor_names.UNUSED.fullmatch(name) else [stored]
                continue
            got = tuple(file.get_slice(stored).get_shape())
            target = targets[name]
            needed = leaves[target.path].shape[0 if target.layer is None else 1 :]
            needed = needed[::-1] if target.path.endswith("/kernel") else needed
            if got != needed:
                misshapen.append(f"{stored} {list(got)} needed {list(needed)}")
            found[name] = _Tensor(folder, file, stored)
    missing = [name for name in targets if name not in found]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)})"
        for kind, names in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise InputError(f"{folder}: tensors that do not fit config.json: {'; '.join(problems)}")
    return found


def _fill(
    path: str, like: jax.ShapeDtypeStruct, rows: dict[int | None, _Tensor], piece_bytes: int
) -> jax.Array:
    """One parameter.

    Args:
      path: Of the parameter; a kernel is stored transposed.
      like: What it becomes.
      rows: Its tensor under None, or one tensor for each row of the first dimension.
      piece_bytes: Read at a time.
    """
    kernel, stacked = path.endswith("/kernel"), None not in rows
    first = len(like.shape) - 1 if kernel else int(stacked)  # What tensors have as their rows.

    def read(index: Index) -> np.ndarray:
        layers = range(index[0].start, index[0].stop) if stacked else (None,)
        part = index[1:] if stacked else index
        piece = np.empty([i.stop - i.start for i in index], like.dtype)
        for row, layer in zip(piece if stacked else piece[None], layers, strict=True):
            row[...] = rows[layer].read(part[::-1]).T if kernel else rows[layer].read(part)
        return piece

    return fill(like, read, order=(0, first) if stacked else (first,), piece_bytes=piece_bytes)
