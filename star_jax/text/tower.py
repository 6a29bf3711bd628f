"""The text tower: tokens to unit vectors, for every kind of entity alike."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from star_jax.config import InputError
from star_jax.parallel.mesh import one_device
from star_jax.parallel.rules import Rules, put, shardings, text_rules
from star_jax.shapes import PyTree
from star_jax.text import hub, prompts, random_base, weights
from star_jax.text.attention import Backend, Visibility
from star_jax.text.attention_choice import (
    BackendChoice,
    Case,
    Machine,
    choose_backend,
    this_machine,
)
from star_jax.text.bert import BertEncoder
from star_jax.text.families import (
    BertShape,
    MistralShape,
    Shape,
    T5Shape,
    TokenLimits,
    defaults,
    read_shape,
)
from star_jax.text.mistral import MistralEncoder
from star_jax.text.packing import Tokens, spans
from star_jax.text.pooler import Pooler
from star_jax.text.pooling import PoolingConfig, TokenPool, token_pool, unit
from star_jax.text.quantise import int8_kernels, quantise
from star_jax.text.stack import Encoded, Remat
from star_jax.text.t5 import T5Encoder
from star_jax.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Which base reads the texts, and how its states become a vector.

    Attributes:
      base: A Hugging Face folder, a hub id (`owner/name`), `minilm` (all-MiniLM-L6-v2), or
        `random` (a tiny Mistral with random weights and a byte tokenizer, for tests).
      pooling: Choices left None are the family's.
      prompts: Version in `prompts.PROMPTS`; None is the family's.
      limits: Longest texts in tokens; None is the family's.
      param_dtype: Dtype in which the base is kept.
      base_quantisation: `int8` keeps the kernels of linear maps in int8 and the rest in
        `param_dtype`; such a base does not train. Needs qwix.
      compute_dtype: Dtype of its arithmetic; norms, softmax and pooling stay in float32.
      remat: What blocks recompute in the backward pass.
      attention_backend: Which implementation of attention runs; `auto` is the fastest that the
        platform has for the base.
    """

    base: str = "minilm"
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    prompts: str | None = None
    limits: TokenLimits = field(default_factory=TokenLimits)
    param_dtype: Dtype = "float32"
    base_quantisation: Literal["none", "int8"] = "none"
    compute_dtype: Dtype = "float32"
    remat: Remat = "none"
    attention_backend: BackendChoice = "auto"

    def __post_init__(self) -> None:
        if self.prompts is not None and self.prompts not in prompts.PROMPTS:
            known = ", ".join(prompts.PROMPTS)
            raise ValueError(f"prompts {self.prompts!r} is unknown, needed one of {known}")


class Base(NamedTuple):
    """A config with every choice made: what the base's files and its family's defaults say."""

    folder: Path | None
    """None for `random`, which has no files."""
    shape: Shape
    pooling: PoolingConfig
    prompts: str
    limits: TokenLimits


class TextTower(nn.Module):
    """Encoder, pooling and L2 norm. Parameters: `encoder/...`, and `pooler/...` where it learns.

    Attributes:
      shape: Of the encoder.
      pooling: With every choice made.
      compute_dtype: As in `TowerConfig`, like the two below.
    """

    shape: Shape
    pooling: PoolingConfig
    compute_dtype: Dtype
    remat: Remat
    attention_backend: Backend

    @property
    def embedding_size(self) -> int:
        """Width of the vectors."""
        return self.shape.width

    @nn.compact
    def __call__(self, texts: Tokens) -> Float[Array, "U E"]:
        """Unit vectors in float32, a row per text, U = R * S; zeros where there is no text.

        Args:
          texts: What stands on padding does not matter.
        """
        pooling = self.pooling
        assert pooling.token is not None
        row_length = texts.tokens.shape[1]
        where = spans(texts.lengths, row_length)
        if pooling.exclude_prompt and texts.skipped is None:
            raise ValueError("pooling.exclude_prompt got texts that do not say where prompts end")
        skipped = texts.skipped if pooling.exclude_prompt else None
        pool = token_pool(where, texts.lengths, skipped, pooling.token)
        packed = texts.lengths.shape[1] > 1
        visible = Visibility(where.mask, where.slot if packed else None)
        positions = where.position if packed else jnp.arange(row_length)[None]
        tap = None if pooling.layers == "last" else pool
        with int8_kernels():
            encoded = self._encoder()(texts.tokens, visible, positions, tap)
        pooler = Pooler(
            pooling, self.shape.num_layers, jnp.dtype(self.compute_dtype), name="pooler"
        )
        vector = unit(pooler(encoded, pool)).reshape(-1, self.shape.width)
        return jnp.where(texts.lengths.reshape(-1, 1) > 0, vector, 0.0)

    def _encoder(self) -> nn.Module:
        remat, backend = self.remat, self.attention_backend
        dtype = jnp.dtype(self.compute_dtype)
        if isinstance(self.shape, BertShape):
            return BertEncoder(self.shape, remat, backend, dtype, name="encoder")
        if isinstance(self.shape, T5Shape):
            return T5Encoder(self.shape, remat, backend, dtype, name="encoder")
        span = self.pooling.attention
        assert span is not None
        return MistralEncoder(self.shape, span, remat, backend, dtype, name="encoder")


def read_base(config: TowerConfig) -> Base:
    """Finds the base and makes every choice that the config left open.

    Raises:
      InputError: The base cannot be had, or a choice does not fit it.
    """
    folder = None if config.base == "random" else hub.resolve(config.base)
    shape = random_base.SHAPE if folder is None else read_shape(folder)
    family = defaults(shape)
    try:
        pooling = _fill(config.pooling, family.pooling)
    except ValueError as error:
        raise InputError(f"base {config.base}: {error}") from error
    if not isinstance(shape, MistralShape) and pooling.attention == "causal":
        kind = "BERT" if isinstance(shape, BertShape) else "T5"
        raise InputError(
            f"base {config.base} is a {kind} encoder: needed pooling.attention=bidirectional"
        )
    if isinstance(pooling.layers, tuple) and max(pooling.layers) > shape.num_layers:
        raise InputError(
            f"pooling.layers {pooling.layers} is beyond the {shape.num_layers} blocks of "
            f"base {config.base}"
        )
    limits = _fill(config.limits, family.limits)
    for kind, limit in vars(limits).items():
        if not isinstance(shape, T5Shape) and limit > shape.max_positions:
            raise InputError(
                f"limits.{kind} {limit} is above the {shape.max_positions} positions of "
                f"base {config.base}"
            )
    return Base(folder, shape, pooling, config.prompts or family.prompts, limits)


def build_tower(
    config: TowerConfig, *, packed: bool = False, machine: Machine | None = None
) -> TextTower:
    """The tower that a config describes; reads the base's config.json only.

    Args:
      config: With `attention_backend` for the machine.
      packed: Whether it is given rows of several texts.
      machine: Where it will run; None: here.

    Raises:
      InputError: The base cannot be had, a choice does not fit it, or the attention's back end
        cannot do it here.
    """
    base = read_base(config)
    case = _attention_case(base, config.compute_dtype, packed)
    return TextTower(
        shape=base.shape,
        pooling=base.pooling,
        compute_dtype=config.compute_dtype,
        remat=config.remat,
        attention_backend=choose_backend(config.attention_backend, case, machine or this_machine()),
    )


def _attention_case(base: Base, dtype: Dtype, packed: bool) -> Case:
    shape = base.shape
    assert base.pooling.attention is not None
    window = shape.sliding_window if isinstance(shape, MistralShape) else None
    if window is not None and window >= max(vars(base.limits).values()):
        window = None
    return Case(
        head_width=_head_width(shape),
        dtype=dtype,
        span=base.pooling.attention,
        window=window,
        packed=packed,
        biased=isinstance(shape, T5Shape),
    )


def _head_width(shape: Shape) -> int:
    return shape.width // shape.num_heads if isinstance(shape, BertShape) else shape.head_width


def tower_rules(tower: TextTower, *, base: bool) -> Rules:
    """Where the parameters of a tower lie; see `text_rules`."""
    return text_rules(_head_width(tower.shape), base=base)


def build_tokenizer(config: TowerConfig) -> Tokenizer:
    """The base's tokenizer with the config's prompts and limits.

    Raises:
      InputError: It is missing or corrupt, or of another model than the base.
    """
    base = read_base(config)
    eos_id = None if isinstance(base.shape, BertShape) else base.shape.eos_id
    if base.folder is None:
        return Tokenizer(
            random_base.TOKENIZER, prompts=base.prompts, limits=base.limits, eos_id=eos_id
        )
    tokenizer = Tokenizer.read(base.folder, prompts=base.prompts, limits=base.limits, eos_id=eos_id)
    tokenizer.check_config(base.folder, base.shape.vocab_size)
    return tokenizer


def load_params(config: TowerConfig, tower: TextTower, mesh: Mesh | None = None) -> PyTree:
    """The base's weights as the tower's "params", as the config keeps them: no pooler.

    Args:
      config: Names the base.
      tower: As `build_tower` returns it.
      mesh: The parameters are split as `tower_rules` says; None: the first device holds all.

    Raises:
      InputError: A file is missing or corrupt, tensors are missing, unknown or misshapen, or qwix
        is needed and absent.
    """
    mesh = one_device() if mesh is None else mesh
    params = _read_params(config, tower, mesh)
    if config.base_quantisation == "none":
        return params
    narrow = quantise(params)
    return put(narrow, shardings(narrow, mesh, tower_rules(tower, base=True)))


def _read_params(config: TowerConfig, tower: TextTower, mesh: Mesh) -> PyTree:
    dtype = jnp.dtype(config.param_dtype)
    shapes = {"encoder": param_shapes(tower)["encoder"]}
    where = shardings(shapes, mesh, tower_rules(tower, base=True))
    folder = read_base(config).folder
    if folder is None:

        def drawn() -> PyTree:
            params = {"encoder": init_params(tower, jax.random.key(0))["encoder"]}
            return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

        return jax.jit(drawn, out_shardings=where)()
    like = jax.tree.map(
        lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=to), shapes, where
    )
    return {"encoder": weights.read_encoder(folder, tower.shape, like["encoder"])}


def init_params(tower: TextTower, key: Array) -> PyTree:
    """Random float32 parameters of the tower: "encoder", and "pooler" where pooling learns."""
    one = jnp.zeros((1, 1), jnp.int32)
    texts = Tokens(jnp.zeros((1, 4), jnp.int32), one + 4, one)
    anywhere = tower.clone(attention_backend="xla")  # Kernels of a platform compute no parameter.
    return jax.jit(anywhere.init)(key, texts)["params"]


def init_pooler(tower: TextTower, key: Array) -> PyTree:
    """Fresh parameters of the pooling; empty where it learns nothing."""
    state = jnp.zeros((1, 1, tower.shape.width))
    taps = tower.pooling.layers != "last"
    tapped = jnp.zeros((tower.shape.num_layers + 1, *state.shape)) if taps else None
    pool = TokenPool(jnp.zeros((1, 1), jnp.int32), None)
    dtype = jnp.dtype(tower.compute_dtype)
    pooler = Pooler(tower.pooling, tower.shape.num_layers, dtype)
    return jax.jit(pooler.init)(key, Encoded(state, state, tapped), pool).get("params", {})


def param_shapes(tower: TextTower) -> PyTree:
    """Shapes of the tower's parameters, without computing any."""
    return jax.eval_shape(lambda: init_params(tower, jax.random.key(0)))


Choices = TypeVar("Choices", PoolingConfig, TokenLimits)


def _fill(config: Choices, family: Choices) -> Choices:
    """The config with the family's value for every field that is None."""
    missing = {name: getattr(family, name) for name, value in vars(config).items() if value is None}
    return replace(config, **missing)
