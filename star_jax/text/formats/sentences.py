"""A sentence-transformers folder in the legacy layout, which versions 2.4 to 6 and others read.

Mean over layers is its WeightedLayerPooling. That reads every layer's states only where
config.json says `output_hidden_states`; without it the library silently takes the last layer.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from star_jax.config import InputError
from star_jax.text.families import BertShape, MistralShape, Shape
from star_jax.text.pooling import Layers, PoolingConfig, Token

_MODES: Mapping[Token, str] = {
    "first": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}
_OTHER_MODES = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens")


def check_expressible(pooling: PoolingConfig, shape: Shape) -> None:
    """Refuses what the format has no word for.

    Raises:
      InputError: Naming the field.
    """
    single = pooling.layers == "last"
    mistral = isinstance(shape, MistralShape)
    layers = pooling.layers if isinstance(pooling.layers, tuple) else (shape.num_layers,)
    for field in dataclasses.fields(pooling):
        value = getattr(pooling, field.name)
        refused = {
            "token": value not in _MODES,
            "layers": not isinstance(value, tuple) and value not in ("last", "all"),
            "attention": mistral and value != "causal",
            "norm_each_layer": value and not single,
            "final_norm_on_last": (
                not value and not isinstance(shape, BertShape) and shape.num_layers in layers
            ),
        }
        # A field that this file does not know must be at its default.
        if refused.get(field.name, value != field.default):
            raise InputError(
                f"pooling.{field.name} {value} cannot be said in the format sentence-transformers; "
                "leave it out of --formats, or train with another pooling"
            )


def write_modules(
    folder: Path,
    *,
    pooling: PoolingConfig,
    shape: Shape,
    prompts: Mapping[str, str],
    max_length: int,
) -> None:
    """Writes everything but the weights, config.json and the tokenizer.

    Args:
      folder: Root of the model.
      pooling: With every choice made; `check_expressible` has passed.
      shape: Of the base.
      prompts: By name.
      max_length: Longest text in tokens, special ones included.
    """
    names = ["Transformer", "Pooling", "Normalize"]
    if pooling.layers != "last":
        names.insert(1, "WeightedLayerPooling")
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}" if i else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(names)
    ]
    _write(folder / "modules.json", modules)
    for module in modules[1:]:
        (folder / module["path"]).mkdir()
    if pooling.layers != "last":
        _write_layers(folder / "1_WeightedLayerPooling", pooling, shape)
    modes = {mode: token == pooling.token for token, mode in _MODES.items()}
    content = {"word_embedding_dimension": shape.width} | modes | dict.fromkeys(_OTHER_MODES, False)
    _write(folder / modules[-2]["path"] / "config.json", content | {"include_prompt": True})
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_length, "do_lower_case": False},
    )
    _write(
        folder / "config_sentence_transformers.json",
        {
            "prompts": dict(prompts),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def config_changes(pooling: PoolingConfig) -> dict[str, bool]:
    """What config.json must say beside what the base's says."""
    return {} if pooling.layers == "last" else {"output_hidden_states": True}


def read_modules(folder: Path, shape: Shape) -> tuple[PoolingConfig, dict[str, str], int]:
    """Pooling, prompts and longest text of a folder, by the library's rules.

    Raises:
      InputError: A module is unknown.
    """
    modules = {
        module["type"].rpartition(".")[2]: folder / module["path"]
        for module in _read(folder / "modules.json")
    }
    unknown = set(modules) - {"Transformer", "WeightedLayerPooling", "Pooling", "Normalize"}
    if unknown or not {"Transformer", "Pooling", "Normalize"} <= set(modules):
        raise InputError(f"{folder}/modules.json has modules {', '.join(modules)}")
    switches = _read(modules["Pooling"] / "config.json")
    tokens: list[Token] = [token for token in _MODES if switches[_MODES[token]]]
    attention = "causal" if isinstance(shape, MistralShape) else "bidirectional"
    layers: Layers = "last"
    all_states = _read(folder / "config.json").get("output_hidden_states") is True
    if "WeightedLayerPooling" in modules and all_states:
        layers = _read_layers(modules["WeightedLayerPooling"])
    config = _read(folder / "config_sentence_transformers.json")
    limit = _read(folder / "sentence_bert_config.json")["max_seq_length"]
    return (
        PoolingConfig(token=tokens[0], layers=layers, attention=attention),
        config["prompts"],
        limit,
    )


def _write_layers(folder: Path, pooling: PoolingConfig, shape: Shape) -> None:
    """Each layer with the number of times that it counts, from layer 1 on where 0 does not."""
    layers = range(1, shape.num_layers + 1) if pooling.layers == "all" else pooling.layers
    assert isinstance(layers, range | tuple)
    start = 0 if 0 in layers else 1
    counts = np.zeros(shape.num_layers + 1, np.float32)
    for layer in layers:
        counts[layer] += 1.0
    save_file({"layer_weights": counts[start:]}, folder / "model.safetensors", {"format": "pt"})
    _write(
        folder / "config.json",
        {
            "word_embedding_dimension": shape.width,
            "layer_start": start,
            "num_hidden_layers": shape.num_layers,
        },
    )


def _read_layers(folder: Path) -> tuple[int, ...]:
    start = _read(folder / "config.json")["layer_start"]
    counts = load_file(folder / "model.safetensors")["layer_weights"]
    return tuple(start + i for i, count in enumerate(counts) for _ in range(int(count)))


def _write(path: Path, content: object) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
