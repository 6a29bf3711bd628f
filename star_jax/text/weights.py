"""Pretrained weights: Hugging Face safetensors folders, read tensor by tensor into our tree."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from star_jax.config import InputError
from star_jax.shapes import PyTree
from star_jax.text.families import BertShape, Shape

log = logging.getLogger(__name__)

# Our linear maps within a block; a torch weight is (out, in), ours (in, out).
_MISTRAL_BLOCK = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention_in/q_proj",
    "self_attn.k_proj": "attention_in/k_proj",
    "self_attn.v_proj": "attention_in/v_proj",
    "self_attn.o_proj": "attention_out/o_proj",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "mlp_in/gate_proj",
    "mlp.up_proj": "mlp_in/up_proj",
    "mlp.down_proj": "mlp_out/down_proj",
}
_BERT_BLOCK = {
    "attention.self.query": "attention_in/q_proj",
    "attention.self.key": "attention_in/k_proj",
    "attention.self.value": "attention_in/v_proj",
    "attention.output.dense": "attention_out/o_proj",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "mlp_in/up_proj",
    "output.dense": "mlp_out/down_proj",
    "output.LayerNorm": "mlp_norm",
}
_MISTRAL_REST = {"embed_tokens": "embed", "norm": "final_norm"}
_BERT_REST = {
    "embeddings.word_embeddings": "embed",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "embed_norm",
}
# Heads that no embedding needs, and buffers that are computed here.
_UNUSED = re.compile(
    r"lm_head\..*|pooler\..*|cls\..*|embeddings\.position_ids|.*rotary_emb\.inv_freq"
)
_SHOWN = 5  # Names listed per kind of problem.


class _Target(NamedTuple):
    """Where a tensor goes."""

    path: str
    layer: int | None
    """Row of a stacked leaf; None is the whole leaf."""


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
    targets = dict(_targets(shape, leaves))
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


def _targets(shape: Shape, leaves: dict[str, Any]) -> Iterator[tuple[str, _Target]]:
    """Every tensor that must be there, by its name without prefix."""
    bert = isinstance(shape, BertShape)
    block, rest = (_BERT_BLOCK, _BERT_REST) if bert else (_MISTRAL_BLOCK, _MISTRAL_REST)
    prefix = "encoder.layer" if bert else "layers"
    suffixes = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
    for path in leaves:
        module, _, leaf = path.rpartition("/")
        for theirs, ours in rest.items():
            if module == ours:
                yield f"{theirs}.{suffixes[leaf]}", _Target(path, None)
        for theirs, ours in block.items():
            if module == f"layers/{ours}":
                for i in range(shape.num_layers):
                    yield f"{prefix}.{i}.{theirs}.{suffixes[leaf]}", _Target(path, i)


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
    folder: Path, files: list[Any], targets: dict[str, _Target], leaves: dict[str, Any]
) -> dict[str, tuple[Any, str]]:
    """Name without prefix -> its file and full name; lists everything that does not fit."""
    found: dict[str, tuple[Any, str]] = {}
    unknown, misshapen = [], []
    for file in files:
        for stored in file.keys():  # noqa: SIM118 - no mapping, it has no iterator
            name = _without_prefix(stored)
            if name not in targets:
                unknown += [] if _UNUSED.fullmatch(name) else [stored]
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
