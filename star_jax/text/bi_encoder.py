"""The bi-encoder: one tower for both sides of a pair, the scorer on top, and their loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from star_jax.config import InputError
from star_jax.losses.contrastive import Component, Rows
from star_jax.losses.grad_cache import encode_chunks
from star_jax.shapes import PyTree
from star_jax.text.attention_choice import Machine
from star_jax.text.lora import COLLECTION, LoraConfig, adapted, init_lora
from star_jax.text.objective import ObjectiveConfig, Vectors, pair_loss
from star_jax.text.packing import Tokens, kind_of_token
from star_jax.text.scorer import PairScorer, ScorerConfig
from star_jax.text.tower import TextTower, TowerConfig, build_tower, init_pooler, load_params

Mode = Literal["lora", "full", "frozen"]
Loss = Callable[
    [PyTree, PyTree, Any, PRNGKeyArray | Array],
    tuple[Float[Array, ""], dict[str, Float[Array, ""]]],
]
"""(trainable, frozen, batch, key) -> (loss, its parts)."""
POOLER = "pooler"


class TextBatch(NamedTuple):
    """Pairs, and the texts they point to; every text is encoded once.

    Each table of `texts` has its own shape, so that short texts are not padded to long ones. With
    a leading axis of chunks in every array of `texts`, one chunk is encoded after the other and
    again in the backward pass; the loss sees all pairs in any case.
    """

    texts: tuple[Tokens, ...]
    """Texts are counted through the tables of a chunk, then through the chunks."""
    document: Int[Array, " B"]
    """Text of the pair; -1 is missing. So are the two below."""
    profile: Int[Array, " B"]
    resume: Int[Array, " B"]
    label: Float[Array, " B"]
    mask: Bool[Array, " B"]
    sender: Int[Array, " B"]
    receiver: Int[Array, " B"]
    known_positive: Bool[Array, "B B"] | None = None
    """[i, j]: the sender of row j is known to have applied to the receiver of row i."""
    pool: Int[Array, " B"] | None = None
    """Rows find their negatives in their own pool; None is one pool for all."""
    teacher: Float[Array, " B"] | None = None
    """A cross-encoder's logit, NaN where there is none; None where no row has one."""


def is_chunked(batch: TextBatch) -> bool:
    """Whether the texts come in chunks that one loss sees together."""
    return batch.texts[0].tokens.ndim == batch.mask.ndim + 2


def row_axes(batch: TextBatch) -> TextBatch:
    """Which axis of each array of a batch, or of the chunks of one, counts rows."""
    pairs = 0 if batch.mask.ndim == 1 else 1  # Whole microbatches may be stacked as well.
    axes: Any = jax.tree.map(lambda _: pairs, batch)
    return axes._replace(texts=jax.tree.map(lambda array: array.ndim - 2, batch.texts))


@dataclass(frozen=True, kw_only=True)
class BiEncoder:
    """The static half of the model.

    Its variables are "params", "scorer" and, where there are some, "lora" and "pooler".

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


def build_bi_encoder(
    tower: TowerConfig,
    scorer: ScorerConfig,
    objective: ObjectiveConfig,
    lora: LoraConfig | None,
    *,
    packed: bool = False,
    machine: Machine | None = None,
) -> BiEncoder:
    """The model that its configs describe; reads the base's config.json only.

    Args:
      tower: Reads the texts.
      scorer: Scores the pairs.
      objective: Of training.
      lora: None without adapters.
      packed: Whether rows may hold several texts, which not every attention back end can do.
      machine: As in `build_tower`.

    Raises:
      InputError: As `build_tower`, or the largest width of the objective is not the base's.
    """
    built = build_tower(tower, packed=packed, machine=machine)
    if objective.widths and max(objective.widths) != built.embedding_size:
        raise InputError(
            f"objective.widths {objective.widths}: the largest must be {built.embedding_size}, the "
            f"width of base {tower.base}, whose whole vectors are scored and exported"
        )
    return BiEncoder(tower=built, scorer=PairScorer(scorer), lora=lora, objective=objective)


def init_variables(
    model: BiEncoder, tower: TowerConfig, key: PRNGKeyArray | Array, mesh: Mesh | None = None
) -> PyTree:
    """Pretrained base, fresh the rest: {"params", "scorer"[, "lora"][, "pooler"]}.

    The base lies on the mesh, as `load_params` says; the rest is small.
    """
    lora_key, scorer_key, pooler_key = jax.random.split(key, 3)
    params = load_params(tower, model.tower, mesh)
    variables = {"params": params, "scorer": init_scorer(model, scorer_key)}
    if pooler := init_pooler(model.tower, pooler_key):
        variables[POOLER] = pooler
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
      mode: `lora` trains adapters, learned pooling and scorer, `full` base, learned pooling and
        scorer, `frozen` the scorer alone.

    Raises:
      ValueError: `lora` without adapters, or another mode with some.
    """
    if (mode == "lora") != (COLLECTION in variables):
        got = ", ".join(variables)
        raise ValueError(f"mode {mode} got variables {got}: adapters belong to mode lora only")
    if mode == "frozen" and POOLER in variables:
        raise ValueError("mode frozen with a pooling that learns: nothing would train it")
    names = {
        "lora": {COLLECTION, POOLER, "scorer"},
        "full": {"params", POOLER, "scorer"},
        "frozen": {"scorer"},
    }
    trainable = {name: tree for name, tree in variables.items() if name in names[mode]}
    frozen = {name: tree for name, tree in variables.items() if name not in names[mode]}
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trainable), frozen


def encode(
    model: BiEncoder, variables: PyTree, texts: Tokens, dropout_key: PRNGKeyArray | Array | None
) -> Float[Array, "U E"]:
    """Unit vectors of texts; a key switches the adapters' dropout on."""
    params = {**variables["params"]}
    if POOLER in variables:
        params[POOLER] = variables[POOLER]
    collections: dict[str, Any] = {"params": params}
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    if model.lora is None:
        return _apply(model.tower, collections, texts, rngs=rngs)
    collections[COLLECTION] = variables[COLLECTION]
    kind = kind_of_token(texts) if model.lora.tower_adapters else None
    with adapted(model.lora, kind):
        return _apply(model.tower, collections, texts, rngs=rngs)


def encode_batch(
    model: BiEncoder, variables: PyTree, batch: TextBatch, dropout_key: PRNGKeyArray | Array | None
) -> Vectors:
    """The vectors of every pair of a batch."""

    def encode_tables(
        chunk: tuple[tuple[Tokens, ...], PRNGKeyArray | Array | None],
    ) -> Float[Array, "U E"]:
        texts, key = chunk
        keys = [None] * len(texts) if key is None else jax.random.split(key, len(texts))
        tables = [encode(model, variables, t, k) for t, k in zip(texts, keys, strict=True)]
        return jnp.concatenate(tables)

    if is_chunked(batch):
        num_chunks = batch.texts[0].tokens.shape[0]
        keys = None if dropout_key is None else jax.random.split(dropout_key, num_chunks)
        vectors = encode_chunks(encode_tables, (batch.texts, keys))
        vectors = vectors.reshape(-1, vectors.shape[-1])
    else:
        vectors = encode_tables((batch.texts, dropout_key))
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


def score_grid(
    model: BiEncoder,
    variables: PyTree,
    profiles: Component,
    resumes: Component,
    documents: Float[Array, "C E"],
) -> Float[Array, "Q C"]:
    """Logit of every request with every document.

    One request at a time: the scorer's features of all pairs at once would not fit.
    """

    def of_request(parts: tuple[Component, Component]) -> Float[Array, " C"]:
        def repeated(part: Component) -> Component:
            return Component(
                jnp.broadcast_to(part.vector, documents.shape),
                jnp.broadcast_to(part.present, documents.shape[:1]),
            )

        document = Component(documents, jnp.ones(documents.shape[:1], bool))
        return score(model, variables, Vectors(document, *map(repeated, parts)))

    return jax.lax.map(of_request, (profiles, resumes))


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
    rows = Rows(
        batch.label,
        batch.mask,
        batch.sender,
        batch.receiver,
        batch.known_positive,
        batch.pool,
        batch.teacher,
    )
    return pair_loss(vectors, rows, lambda v: score(model, variables, v), model.objective)


def make_loss(model: BiEncoder) -> Loss:
    """The training loss of a batch, for `make_step`: dropout is on."""
    return lambda trainable, frozen, batch, key: bi_encoder_loss(
        {**frozen, **trainable}, batch, model, key
    )


def _apply(module: nn.Module, variables: PyTree, *args: PyTree, **options: Any) -> Array:
    """Applies a module that changes no variable, hence returns its result alone."""
    return cast("Array", module.apply(variables, *args, **options))


def _gather(vectors: Float[Array, "U E"], row: Int[Array, " B"]) -> Component:
    present = row >= 0
    vector = jnp.where(present[:, None], vectors[jnp.maximum(row, 0)], 0.0)
    return Component(vector, present)
