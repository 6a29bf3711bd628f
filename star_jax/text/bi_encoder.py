"""The bi-encoder: one tower for both sides of a pair, the scorer on top, and their loss."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from star_jax.losses.bce import binary_cross_entropy
from star_jax.losses.semi_hard import Component, Rows, SemiHardConfig, semi_hard_loss
from star_jax.shapes import PyTree
from star_jax.text.lora import COLLECTION, LoraConfig, adapted, init_lora
from star_jax.text.scorer import PairScorer, ScorerConfig
from star_jax.text.tower import TextTower, TowerConfig, build_tower, load_params

Mode = Literal["lora", "full", "frozen"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Loss of the pairs: BCE plus a weighted contrastive term (SPEC 1.1, Eq. 1).

    Attributes:
      contrastive: Which contrastive term.
      contrastive_weight: lambda_c.
      positive_weight: Weight of a positive row in the BCE.
      semi_hard: Of `contrastive=semihard`.
    """

    contrastive: Literal["semihard", "none"] = "semihard"
    contrastive_weight: float = 1.0
    positive_weight: float = 1.0
    semi_hard: SemiHardConfig = field(default_factory=SemiHardConfig)


class Tokens(NamedTuple):
    """Unique texts of a batch, right-padded."""

    tokens: Int[Array, "U L"]
    mask: Bool[Array, "U L"]


class TextBatch(NamedTuple):
    """Pairs, and the texts they point to; every text is encoded once.

    Each table of `texts` has its own U and L, so that short texts are not padded to long ones.
    """

    texts: tuple[Tokens, ...]
    """Tables of different lengths; rows are counted through all of them."""
    document: Int[Array, " B"]
    """Row in `texts`; -1 is missing. So are the two below."""
    profile: Int[Array, " B"]
    resume: Int[Array, " B"]
    label: Float[Array, " B"]
    mask: Bool[Array, " B"]
    sender: Int[Array, " B"]
    receiver: Int[Array, " B"]
    known_positive: Bool[Array, "B B"] | None = None
    """[i, j]: the sender of row j is known to have applied to the receiver of row i."""


@dataclass(frozen=True, kw_only=True)
class BiEncoder:
    """The static half of the model; its variables are "params", "lora" and "scorer".

    Attributes:
      tower: Reads the texts.
      scorer: Scores the pairs.
      lora: None where there are no adapters.
      objective: Of training.
    """

    tower: TextTower
    scorer: PairScorer
    lora: LoraConfig | None
    objective: ObjectiveConfig


class Vectors(NamedTuple):
    """Unit vectors per pair; zeros where missing."""

    document: Component
    profile: Component
    resume: Component


def build_bi_encoder(
    tower: TowerConfig,
    scorer: ScorerConfig,
    objective: ObjectiveConfig,
    lora: LoraConfig | None,
) -> BiEncoder:
    """The model that its configs describe; reads the base's config.json only."""
    return BiEncoder(
        tower=build_tower(tower), scorer=PairScorer(scorer), lora=lora, objective=objective
    )


def init_variables(model: BiEncoder, tower: TowerConfig, key: PRNGKeyArray | Array) -> PyTree:
    """Pretrained base, fresh adapters, fresh scorer: {"params", "scorer"[, "lora"]}."""
    lora_key, scorer_key = jax.random.split(key)
    params = load_params(tower, model.tower)
    variables = {"params": params, "scorer": init_scorer(model, scorer_key)}
    if model.lora is not None:
        variables[COLLECTION] = init_lora(lora_key, params, model.lora)
    return variables


def init_scorer(model: BiEncoder, key: PRNGKeyArray | Array) -> PyTree:
    """Fresh float32 parameters of the scorer."""
    vector = jnp.zeros((1, model.tower.embedding_size), jnp.float32)
    present = jnp.ones(1, bool)
    return model.scorer.init(key, vector, vector, vector, present, present)["params"]


def trainable_split(variables: PyTree, mode: Mode) -> tuple[PyTree, PyTree]:
    """(trainable, frozen): the collections that a mode trains, in float32, and the others.

    Joining them again is `{**frozen, **trainable}`.

    Args:
      variables: As `init_variables` returns them.
      mode: `lora` trains adapters and scorer, `full` base and scorer, `frozen` the scorer alone.

    Raises:
      ValueError: `lora` without adapters, or another mode with some.
    """
    if (mode == "lora") != (COLLECTION in variables):
        got = ", ".join(variables)
        raise ValueError(f"mode {mode} got variables {got}: adapters belong to mode lora only")
    names = {"lora": {COLLECTION, "scorer"}, "full": {"params", "scorer"}, "frozen": {"scorer"}}
    trainable = {name: tree for name, tree in variables.items() if name in names[mode]}
    frozen = {name: tree for name, tree in variables.items() if name not in names[mode]}
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trainable), frozen


def encode(
    model: BiEncoder, variables: PyTree, texts: Tokens, dropout_key: PRNGKeyArray | Array | None
) -> Float[Array, "U E"]:
    """Unit vectors of texts; a key switches the adapters' dropout on."""
    collections: dict[str, Any] = {"params": variables["params"]}
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    if model.lora is None:
        return _apply(model.tower, collections, texts.tokens, texts.mask, rngs=rngs)
    collections[COLLECTION] = variables[COLLECTION]
    with adapted(model.lora):
        return _apply(model.tower, collections, texts.tokens, texts.mask, rngs=rngs)


def encode_batch(
    model: BiEncoder, variables: PyTree, batch: TextBatch, dropout_key: PRNGKeyArray | Array | None
) -> Vectors:
    """The vectors of every pair of a batch."""
    num_tables = len(batch.texts)
    keys = [None] * num_tables if dropout_key is None else jax.random.split(dropout_key, num_tables)
    vectors = jnp.concatenate(
        [encode(model, variables, table, k) for table, k in zip(batch.texts, keys, strict=True)]
    )
    return Vectors(*(_gather(vectors, r) for r in (batch.document, batch.profile, batch.resume)))


def score(model: BiEncoder, variables: PyTree, vectors: Vectors) -> Float[Array, " B"]:
    """Logit of every pair."""
    return _apply(
        model.scorer,
        {"params": variables["scorer"]},
        vectors.document.vector,
        vectors.profile.vector,
        vectors.resume.vector,
        vectors.resume.present,
        vectors.profile.present,
    )


def bi_encoder_loss(
    variables: PyTree,
    batch: TextBatch,
    model: BiEncoder,
    dropout_key: PRNGKeyArray | Array | None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """L = BCE + lambda_c * contrastive, over the real rows of a batch (SPEC 1.1, Eq. 1).

    Args:
      variables: "params", "scorer" and, with adapters, "lora".
      batch: Pairs.
      model: What computes them.
      dropout_key: None switches dropout off.

    Returns:
      The loss, and its parts as scalars.
    """
    vectors = encode_batch(model, variables, batch, dropout_key)
    logits = score(model, variables, vectors)
    config = model.objective
    bce = binary_cross_entropy(logits, batch.label, batch.mask, config.positive_weight)
    num_pairs = jnp.sum(batch.mask).astype(jnp.float32)
    right = ((logits > 0.0) == (batch.label > 0.5)) & batch.mask
    metrics = {
        "bce": bce,
        "accuracy": jnp.sum(right) / jnp.maximum(num_pairs, 1.0),
        "num_pairs": num_pairs,
    }
    loss = bce
    if config.contrastive == "semihard":
        rows = Rows(batch.label, batch.mask, batch.sender, batch.receiver, batch.known_positive)
        contrastive = semi_hard_loss(
            vectors.document, (vectors.profile, vectors.resume), rows, config.semi_hard
        )
        loss = bce + config.contrastive_weight * contrastive.loss
        metrics["contrastive"] = contrastive.loss
        metrics["num_anchors"] = contrastive.num_anchors
    return loss, {"loss": loss, **metrics}


def _apply(module: nn.Module, variables: PyTree, *args: Array, **options: Any) -> Array:
    """Applies a module that changes no variable, hence returns its result alone."""
    return cast("Array", module.apply(variables, *args, **options))


def _gather(vectors: Float[Array, "U E"], row: Int[Array, " B"]) -> Component:
    present = row >= 0
    vector = jnp.where(present[:, None], vectors[jnp.maximum(row, 0)], 0.0)
    return Component(vector, present)
