"""Base models: the shapes their config.json declares, and the defaults of each family (SPEC 2)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from star_jax.config import InputError
from star_jax.text.pooling import PoolingConfig


@dataclass(frozen=True, kw_only=True)
class TokenLimits:
    """Longest text in tokens per kind, prompt and special tokens included.

    None takes the default of the base's family; `other` is for every kind without a field.
    """

    job: int | None = None
    profile: int | None = None
    resume: int | None = None
    other: int | None = None

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is not None and limit < 4:
                raise ValueError(f"limits.{name} {limit} leaves no room for a text, needed >= 4")

    def of(self, kind: str) -> int:
        """The limit of a kind; every field must be set."""
        limit = getattr(self, kind) if kind in ("job", "profile", "resume") else self.other
        assert limit is not None
        return limit


@dataclass(frozen=True, kw_only=True)
class MistralShape:
    """Shape of a Mistral or Llama decoder; letters as in `star_jax.shapes`."""

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    mlp_width: int
    max_positions: int
    norm_epsilon: float
    rope_theta: float
    sliding_window: int | None
    eos_id: int


@dataclass(frozen=True, kw_only=True)
class BertShape:
    """Shape of a BERT encoder."""

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    max_positions: int
    num_token_types: int
    norm_epsilon: float
    activation: Literal["gelu", "gelu_new", "relu"]


Shape = MistralShape | BertShape


@dataclass(frozen=True, kw_only=True)
class FamilyDefaults:
    """What a config that leaves a choice open gets."""

    pooling: PoolingConfig
    limits: TokenLimits
    prompts: str


_MISTRAL = FamilyDefaults(
    pooling=PoolingConfig(token="last", layers="all", attention="causal"),
    limits=TokenLimits(job=1800, profile=1024, resume=1800, other=1024),
    prompts="instruct-1",
)
_BERT = FamilyDefaults(
    pooling=PoolingConfig(token="mean", layers="last", attention="bidirectional"),
    limits=TokenLimits(job=256, profile=256, resume=256, other=256),
    prompts="none",
)


def defaults(shape: Shape) -> FamilyDefaults:
    """The defaults of the family that a shape belongs to."""
    return _MISTRAL if isinstance(shape, MistralShape) else _BERT


def read_shape(folder: Path) -> Shape:
    """Reads config.json of a Hugging Face folder.

    Raises:
      InputError: No such file, an unknown family, or a variant this code does not compute.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{file} is missing, needed a Hugging Face model folder")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from error
    readers = {"mistral": _mistral, "llama": _mistral, "bert": _bert}
    family = values.get("model_type") if isinstance(values, dict) else None
    if family not in readers:
        raise InputError(f"{file}: model_type is {family!r}, needed one of {', '.join(readers)}")
    return readers[family](values, file)


def _mistral(values: Mapping[str, Any], file: Path) -> MistralShape:
    _needed(values, file, hidden_act="silu", attention_bias=False, mlp_bias=False)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise InputError(f"{file}: rope_type is {rope_type!r}, needed 'default'")
    width, num_heads = (
        _integer(values, file, "hidden_size"),
        _integer(values, file, "num_attention_heads"),
    )
    mistral = values["model_type"] == "mistral"
    eos_id = values.get("eos_token_id", 2)
    return MistralShape(
        vocab_size=_integer(values, file, "vocab_size"),
        width=width,
        num_layers=_integer(values, file, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=values.get("num_key_value_heads") or num_heads,
        head_width=values.get("head_dim") or width // num_heads,
        mlp_width=_integer(values, file, "intermediate_size"),
        max_positions=_integer(values, file, "max_position_embeddings"),
        norm_epsilon=float(values.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.get("rope_theta", values.get("rope_theta", 10_000.0))),
        sliding_window=values.get("sliding_window") if mistral else None,
        eos_id=eos_id[0] if isinstance(eos_id, list) else eos_id,
    )


def _bert(values: Mapping[str, Any], file: Path) -> BertShape:
    _needed(values, file, position_embedding_type="absolute", is_decoder=False)
    activation = values.get("hidden_act", "gelu")
    if activation not in ("gelu", "gelu_new", "relu"):
        raise InputError(f"{file}: hidden_act is {activation!r}, needed gelu, gelu_new or relu")
    return BertShape(
        vocab_size=_integer(values, file, "vocab_size"),
        width=_integer(values, file, "hidden_size"),
        num_layers=_integer(values, file, "num_hidden_layers"),
        num_heads=_integer(values, file, "num_attention_heads"),
        mlp_width=_integer(values, file, "intermediate_size"),
        max_positions=_integer(values, file, "max_position_embeddings"),
        num_token_types=_integer(values, file, "type_vocab_size"),
        norm_epsilon=float(values.get("layer_norm_eps", 1e-12)),
        activation=activation,
    )


def _needed(values: Mapping[str, Any], file: Path, **needed: object) -> None:
    """Refuses a variant that the encoders here do not compute; an absent key is the default."""
    for name, value in needed.items():
        if values.get(name, value) != value:
            raise InputError(f"{file}: {name} is {values[name]!r}, needed {value!r}")


def _integer(values: Mapping[str, Any], file: Path, name: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{file}: {name} is {value!r}, needed a positive whole number")
    return value
