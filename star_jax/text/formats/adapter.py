"""A PEFT adapter folder: adapter_config.json and adapter_model.safetensors."""

import json
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from star_jax.config import InputError
from star_jax.shapes import PyTree
from star_jax.text import tensor_names
from star_jax.text.families import MistralShape, Shape
from star_jax.text.formats.merged import published_tensors
from star_jax.text.lora import LoraConfig

Form = Literal["encoder", "causal_lm"]
"""What the adapter is loaded on. One form on the other model fails, or silently does nothing."""

_PREFIX = {"encoder": "base_model.model.", "causal_lm": "base_model.model.model."}
_TASK = {"encoder": "FEATURE_EXTRACTION", "causal_lm": "CAUSAL_LM"}


def write_adapter(
    folder: Path,
    *,
    shape: Shape,
    adapters: PyTree,
    config: LoraConfig,
    base: Path,
    base_name: str,
    form: Form,
) -> None:
    """Writes the adapters in float32, as trained.

    Args:
      folder: Where.
      shape: Of the base.
      adapters: Of the encoder, on the host.
      config: Of the adapters.
      base: Folder of the base.
      base_name: What others load as the base: a hub id or a folder.
      form: Model class that the adapter is for.

    Raises:
      InputError: There is no such class for the base.
    """
    if form == "causal_lm" and not isinstance(shape, MistralShape):
        raise InputError(
            f"adapter_form causal_lm does not fit {base_name}, an encoder: needed encoder"
        )
    tensors, modules = {}, []
    leaves = cast("dict[str, Any]", flatten_dict(adapters, sep="/"))
    for name, target in tensor_names.targets(shape, _kernels(leaves)):
        module, path = name.removesuffix(".weight"), target.path.removesuffix("/kernel")
        modules.append(module)
        for theirs, ours in (("lora_A", "a"), ("lora_B", "b")):
            leaf = leaves[f"{path}/{ours}"]
            value = np.asarray(leaf if target.layer is None else leaf[target.layer], np.float32)
            tensors[f"{_PREFIX[form]}{module}.{theirs}.weight"] = np.ascontiguousarray(value.T)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    others = {tensor_names.bare(t.name).removesuffix(".weight") for t in published_tensors(base)}
    alpha = int(config.alpha) if config.alpha == int(config.alpha) else config.alpha
    content = {
        "peft_type": "LORA",
        "task_type": _TASK[form],
        "base_model_name_or_path": base_name,
        "r": config.rank,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "target_modules": target_modules(modules, others | _UNPUBLISHED),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }
    text = json.dumps(content, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


# Modules that transformers adds to models whose files may lack them.
_UNPUBLISHED = {"pooler.dense", "lm_head"}


def target_modules(adapted: list[str], all_modules: set[str]) -> list[str]:
    """The shortest endings of module names that stand for the adapted ones and for no others."""
    others = all_modules - set(adapted)
    endings = set()
    for module in adapted:
        words = module.split(".")
        candidates = [".".join(words[-n:]) for n in range(1, len(words) + 1)]
        endings.add(
            next(
                ending
                for ending in candidates
                if not any(o == ending or o.endswith(f".{ending}") for o in others)
            )
        )
    return sorted(endings)


def read_adapter(folder: Path, shape: Shape, adapters: PyTree) -> tuple[PyTree, LoraConfig]:
    """Reads a folder back: adapters as a tree like the one given, and what the config says.

    Args:
      folder: As `write_adapter` leaves it.
      shape: Of the base.
      adapters: Tree of the same structure and shapes.

    Raises:
      InputError: A tensor is missing or one too many.
    """
    stored = load_file(folder / "adapter_model.safetensors")
    content = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    form: Form = "causal_lm" if content["task_type"] == _TASK["causal_lm"] else "encoder"
    like = cast("dict[str, Any]", flatten_dict(adapters, sep="/"))
    leaves = {path: np.empty(leaf.shape, np.float32) for path, leaf in like.items()}
    for name, target in tensor_names.targets(shape, _kernels(leaves)):
        path = target.path.removesuffix("/kernel")
        for theirs, ours in (("lora_A", "a"), ("lora_B", "b")):
            key = f"{_PREFIX[form]}{name.removesuffix('.weight')}.{theirs}.weight"
            if key not in stored:
                raise InputError(f"{folder} lacks the tensor {key}")
            leaves[f"{path}/{ours}"][... if target.layer is None else target.layer] = stored.pop(
                key
            ).T
    if stored:
        raise InputError(f"{folder} holds {min(stored)}, which no adapter here is called")
    config = LoraConfig(rank=content["r"], alpha=float(content["lora_alpha"]))
    return unflatten_dict(leaves, sep="/"), config


def _kernels(leaves: dict[str, Any]) -> dict[str, Any]:
    """Paths of the kernels that have adapters."""
    return {f"{path.removesuffix('/a')}/kernel": None for path in leaves if path.endswith("/a")}
