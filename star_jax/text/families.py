"""Base models: the shapes their config.json declares, and the defaults of each family (SPEC 2)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from star_jax.config import InputError
from star_jax.text.pooling import PoolingConfig
from star_jax.text.prompts import KINDS


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
        limit = getattr(self, kind) if kind in KINDS else self.other
        assert limit is not None
        return limit


@dataclass(frozen=True, kw_only=True)
class LinearRope:
    """Every rotation slows down by the same factor."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Rope:
    """Rotations slow down by `factor` where the original training saw few of their turns.

    Attributes:
      factor: Of the slowest.
      low_turns: With fewer turns over the original positions a rotation slows down wholly,
      high_turns: with more of them not at all.
      original_positions: Longest text of the original training, in tokens.
    """

    factor: float
    low_turns: float
    high_turns: float
    original_positions: int


RopeScaling = LinearRope | Llama3Rope


@dataclass(frozen=True, kw_only=True)
class MistralShape:
    """Shape of a Mistral, Llama, Qwen2 or Qwen3 decoder; letters as in `star_jax.shapes`.

    Attributes:
      sliding_window: A token sees those less than this many positions away; None is all.
      qkv_bias: Whether the maps to queries, keys and values add a bias.
      out_bias: Whether the map from the heads' results does.
      mlp_bias: Whether the maps of the MLP do.
      head_norm: Whether each head's queries and keys are normed before they rotate.
    """

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
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_norm: bool = False


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


@dataclass(frozen=True, kw_only=True)
class T5Shape:
    """Shape of the encoder of a T5 1.1 (Flan-T5 too); it has no longest text.

    Attributes:
      head_width: Of its own, not width / num_heads.
      num_buckets: Biases that a head learns for the distances between tokens.
      max_distance: From here on all distances share one of them.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    head_width: int
    mlp_width: int
    num_buckets: int
    max_distance: int
    norm_epsilon: float
    eos_id: int


Shape = MistralShape | BertShape | T5Shape


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
_T5 = FamilyDefaults(
    pooling=PoolingConfig(token="mean", layers="last", attention="bidirectional"),
    limits=TokenLimits(job=512, profile=512, resume=512, other=512),  # As it was pretrained.
    prompts="none",
)
_DEFAULTS: Mapping[type[Shape], FamilyDefaults] = MappingProxyType(
    {MistralShape: _MISTRAL, BertShape: _BERT, T5Shape: _T5}
)


def defaults(shape: Shape) -> FamilyDefaults:
    """The defaults of the family that a shape belongs to."""
    return _DEFAULTS[type(shape)]


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
    readers = {**dict.fromkeys(_DECODERS, _mistral), "bert": _bert, "t5": _t5}
    family = values.get("model_type") if isinstance(values, dict) else None
    if family not in readers:
        raise InputError(f"{file}: model_type is {family!r}, needed one of {', '.join(readers)}")
    return readers[family](values, file)


# What transformers takes for a key that a config.json lacks, where the families differ.
_DECODERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "mistral": {"num_key_value_heads": 8, "sliding_window": 4096, "eos_token_id": 2},
        "llama": {"eos_token_id": 2},
        "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
        "qwen3": {
            "num_key_value_heads": 32,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "head_dim": 128,
        },
    }
)


def _mistral(values: Mapping[str, Any], file: Path) -> MistralShape:
    family = values["model_type"]
    values = {**_DECODERS[family], **values}
    _needed(values, file, hidden_act="silu", partial_rotary_factor=1.0)
    if family != "llama":
        _needed(values, file, mlp_bias=False)
    if family in ("mistral", "qwen2"):
        _needed(values, file, attention_bias=False)
    width, num_heads = (
        _integer(values, file, "hidden_size"),
        _integer(values, file, "num_attention_heads"),
    )
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    bias = bool(values.get("attention_bias", False))
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
        rope_scaling=_rope_scaling(rope, file),
        sliding_window=_window(values, file),
        eos_id=_eos_id(values, file),
        qkv_bias=bias or family == "qwen2",
        out_bias=bias,
        mlp_bias=bool(values.get("mlp_bias", False)),
        head_norm=family == "qwen3",
    )


def _rope_scaling(rope: Mapping[str, Any], file: Path) -> RopeScaling | None:
    _needed(rope, file, partial_rotary_factor=1.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return LinearRope(factor=_positive(rope, file, "factor"))
    if kind == "llama3":
        return Llama3Rope(
            factor=_positive(rope, file, "factor"),
            low_turns=_positive(rope, file, "low_freq_factor"),
            high_turns=_positive(rope, file, "high_freq_factor"),
            original_positions=_integer(rope, file, "original_max_position_embeddings"),
        )
    raise InputError(f"{file}: rope_type is {kind!r}, needed default, linear or llama3")


def _window(values: Mapping[str, Any], file: Path) -> int | None:
    """The window of all layers: blocks are equal here, so that one compiles for all."""
    family, num_layers = values["model_type"], _integer(values, file, "num_hidden_layers")
    window = values.get("sliding_window")
    if family == "llama" or (family == "mistral" and window is None):
        return None
    if family == "mistral":
        return _integer(values, file, "sliding_window")
    if not values.get("use_sliding_window", False) or window is None:
        return None
    full = "full_attention"
    kinds = values.get("layer_types") or [
        full if i < values["max_window_layers"] else "sliding_attention" for i in range(num_layers)
    ]
    if len(set(kinds)) > 1:
        raise InputError(
            f"{file}: {kinds.count(full)} of {num_layers} layers see all tokens and the others a "
            f"sliding_window of {window}, needed the same for all layers (max_window_layers, "
            "layer_types)"
        )
    return None if kinds[0] == full else _integer(values, file, "sliding_window")


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


def _t5(values: Mapping[str, Any], file: Path) -> T5Shape:
    projection = values.get("feed_forward_proj", "relu")
    if projection != "gated-gelu":
        raise InputError(
            f"{file}: feed_forward_proj is {projection!r}, needed 'gated-gelu' (T5 1.1, Flan-T5)"
        )
    values = {
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "eos_token_id": 1,
        **values,
    }
    num_buckets = _integer(values, file, "relative_attention_num_buckets")
    max_distance = _integer(values, file, "relative_attention_max_distance")
    if not 1 <= num_buckets // 4 < max_distance:
        raise InputError(
            f"{file}: relative_attention_max_distance is {max_distance}, needed more than a "
            f"quarter of relative_attention_num_buckets {num_buckets}, and that at least 1"
        )
    return T5Shape(
        vocab_size=_integer(values, file, "vocab_size"),
        width=_integer(values, file, "d_model"),
        num_layers=_integer(values, file, "num_layers"),
        num_heads=_integer(values, file, "num_heads"),
        head_width=_integer(values, file, "d_kv"),
        mlp_width=_integer(values, file, "d_ff"),
        num_buckets=num_buckets,
        max_distance=max_distance,
        norm_epsilon=float(values.get("layer_norm_epsilon", 1e-6)),
        eos_id=_eos_id(values, file),
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


def _positive(values: Mapping[str, Any], file: Path, name: str) -> float:
    value = values.get(name)
    if not isinstance(value, int | float) or value <= 0:
        raise InputError(f"{file}: {name} is {value!r}, needed a positive number")
    return float(value)


def _eos_id(values: Mapping[str, Any], file: Path) -> int:
    """The first of the ids that end a text."""
    eos_id = values.get("eos_token_id")
    eos_id = eos_id[0] if isinstance(eos_id, list) and eos_id else eos_id
    if not isinstance(eos_id, int):
        raise InputError(f"{file}: eos_token_id is {eos_id!r}, needed the id that ends a text")
    return eos_id
