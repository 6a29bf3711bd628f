"""The text encoder inside the graph's training step: config, weights, and the loss around both."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from star_jax.config import InputError
from star_jax.graph.batches import HostOrDevice, NodeTable
from star_jax.graph.model import GraphBatch
from star_jax.graph.objective import StatefulLoss
from star_jax.parallel.rules import Rules
from star_jax.pipeline import text_model
from star_jax.shapes import PyTree
from star_jax.text.attention_choice import BackendChoice
from star_jax.text.bi_encoder import POOLER, BiEncoder, Mode, encode
from star_jax.text.lora import COLLECTION, LoraConfig, init_lora, merge_lora
from star_jax.text.packing import Tokens
from star_jax.text.stack import Remat
from star_jax.text.tower import TowerConfig, tower_rules
from star_jax.train.checkpoints import tree_digest

TREE = "text_encoder"
"""Where its trainable parameters stand beside those of the graph model."""

_TRAINS: dict[Mode, set[str]] = {
    "frozen": set(),
    "lora": {COLLECTION, POOLER},
    "full": {"params", POOLER},
}
_DROPOUT = 1  # Folded into the step's key, which drives the graph's own dropout.


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphTextConfig:
    """The texts of a batch are encoded in the step, by the encoder of `W/text`.

    Attributes:
      mode: What trains with the graph: "frozen" nothing, which costs a forward pass and learns
        what text vectors written once would; "lora" adapters; "full" all of the encoder's weights,
        its adapters added into them first.
      lora: Of fresh adapters, for mode "lora" where the text model has none; its own train on.
      lm_train_nodes: Texts of a batch, of all devices together, through which the gradient flows
        into the encoder, drawn at random, as many of each device's part (rounded up); the others
        are encoded without one, which keeps no activations of them. None: all.
      rate: Learning rate of the encoder where that of other parameters is 1.
      num_lengths: Padded lengths; the texts of a batch have the smallest that holds them, and each
        compiles a program.
      remat: What the encoder's blocks compute again in the backward pass.
      chunk_rows: Texts of a device that are encoded at a time. More than that go through the
        encoder chunk after chunk, which keeps the vectors alone: the activations of one chunk are
        computed again when its gradient is (gradient cache).
    """

    mode: Mode = "lora"
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    lm_train_nodes: int | None = None
    rate: float = 0.1
    num_lengths: int = 3
    remat: Remat = "none"
    chunk_rows: int = 128

    def __post_init__(self) -> None:
        if self.lm_train_nodes is not None and self.lm_train_nodes < 1:
            raise ValueError(
                f"lm_train_nodes {self.lm_train_nodes} must be >= 1, or None for all texts; "
                "mode frozen trains on none"
            )
        if self.lm_train_nodes is not None and self.mode == "frozen":
            raise ValueError(f"lm_train_nodes {self.lm_train_nodes} with mode frozen, needed None")
        if not self.rate > 0:
            raise ValueError(f"rate {self.rate} must be > 0")
        if self.num_lengths < 1:
            raise ValueError(f"num_lengths {self.num_lengths} must be >= 1")
        if self.chunk_rows < 1:
            raise ValueError(f"chunk_rows {self.chunk_rows} must be >= 1")


class BatchTexts(NamedTuple):
    """The different texts of each device's part of a batch, a row each; padding rows are empty.

    All arrays have a leading axis of devices. Rows are counted through `trained`, then `read`.
    """

    trained: Tokens | None  # The gradient flows into what encodes them.
    read: Tokens | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextInStep:
    """An encoder as a training has it before its first step.

    Attributes:
      model: Encodes.
      tower: Describes its base.
      trainable: Float32 collections of variables; empty in mode `frozen`.
      frozen: The others.
      digest: Of the frozen ones.
      chunk_rows: As in `GraphTextConfig`.
    """

    model: BiEncoder
    tower: TowerConfig
    trainable: PyTree
    frozen: PyTree
    digest: str
    chunk_rows: int

    @property
    def rules(self) -> Rules:
        """Where its trainable parameters lie on a mesh, and those of a graph model beside them."""
        return tower_rules(self.model.tower, base="params" in self.trainable)

    def vectors(
        self, trainable: PyTree, frozen: PyTree, texts: BatchTexts, key: Key[Array, ""] | None
    ) -> Float[Array, "shards C E"]:
        """Vectors of all rows; a key switches the adapters' dropout on where they train."""
        variables, parts = {**frozen, **trainable}, []
        if texts.trained is not None:
            parts.append(self._encode(variables, texts.trained, key))
        if texts.read is not None:
            read = self._encode(jax.lax.stop_gradient(variables), texts.read, None)
            parts.append(jax.lax.stop_gradient(read))
        return jnp.concatenate(parts, axis=1)

    def _encode(
        self, variables: PyTree, texts: Tokens, key: Key[Array, ""] | None
    ) -> Float[Array, "shards C E"]:
        """Rows of all devices side by side, so many of each at a time."""
        shards, num_rows = texts.tokens.shape[:2]
        num_chunks = -(-num_rows // self.chunk_rows)
        size = -(-num_rows // num_chunks)

        def chunked(array: HostOrDevice) -> Array:
            rest = num_chunks * size - num_rows
            full = jnp.pad(jnp.asarray(array), ((0, 0), (0, rest), (0, 0)))
            return jnp.moveaxis(full.reshape(shards, num_chunks, size, -1), 1, 0)

        def encoded(chunk: Tokens, key: Key[Array, ""] | None) -> Float[Array, "shards c E"]:
            rows = jax.tree.map(lambda array: array.reshape(-1, array.shape[-1]), chunk)
            return encode(self.model, variables, rows, key).reshape(shards, size, -1)

        chunks = jax.tree.map(chunked, texts)
        if num_chunks == 1:
            return encoded(jax.tree.map(lambda array: array[0], chunks), key)
        keys = None if key is None else jax.random.split(key, num_chunks)
        made = jax.lax.map(lambda each: jax.checkpoint(encoded)(*each), (chunks, keys))
        return jnp.moveaxis(made, 0, 1).reshape(shards, num_chunks * size, -1)[:, :num_rows]


def open_text(
    config: GraphTextConfig,
    folder: Path,
    mesh: Mesh,
    *,
    seed: int,
    attention_backend: BackendChoice = "auto",
) -> TextInStep:
    """The encoder of a text model, parted by what trains.

    Args:
      config: Says what does.
      folder: `W/text`.
      mesh: Where the variables lie.
      seed: Of fresh adapters.
      attention_backend: Of this machine.

    Raises:
      InputError: The text model is not trained, or its weights cannot train as the mode says.
    """
    opened = text_model.open_trained(folder, mesh, attention_backend)
    model, variables = opened.model, dict(opened.variables)
    del variables["scorer"]
    if config.mode == "full":
        if opened.tower.base_quantisation != "none":
            raise InputError(
                f"text_encoder.mode full trains the base, which {folder} keeps in "
                f"{opened.tower.base_quantisation}; needed mode lora or frozen"
            )
        variables = _float32(variables)
        if model.lora is not None:
            if model.lora.tower_adapters:
                raise InputError(
                    f"text_encoder.mode full adds adapters into the base, {folder} has some for "
                    "each kind of text (lora.tower_adapters); needed mode lora or frozen"
                )
            lora = variables.pop(COLLECTION)
            variables["params"] = merge_lora(variables["params"], lora, model.lora)
            model = dataclasses.replace(model, lora=None)
    if config.mode == "lora" and model.lora is None:
        key = jax.random.key(seed)
        variables[COLLECTION] = init_lora(key, variables["params"], config.lora)
        model = dataclasses.replace(model, lora=config.lora)
    model = dataclasses.replace(model, tower=model.tower.clone(remat=config.remat))
    trains = _TRAINS[config.mode]
    trainable = _float32({name: tree for name, tree in variables.items() if name in trains})
    frozen = {name: tree for name, tree in variables.items() if name not in trains}
    return TextInStep(
        model=model,
        tower=opened.tower,
        trainable=trainable,
        frozen=frozen,
        digest=tree_digest(frozen),
        chunk_rows=config.chunk_rows,
    )


def text_width(folder: Path) -> int:
    """Width of the vectors of a text model; reads no weights."""
    return text_model.read_config(folder).build().tower.embedding_size


def with_text(loss: StatefulLoss, text: TextInStep) -> StatefulLoss:
    """The loss of a graph model whose texts are encoded first, in the same program.

    Args:
      loss: Of the graph model alone.
      text: Encodes.

    Returns:
      A loss whose trainable parameters are `joined`, whose frozen ones are those of the encoder,
      and whose batches have texts in the place of vectors.
    """

    def loss_with_text(
        params: PyTree, statistics: PyTree, frozen: PyTree, batch: GraphBatch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], PyTree]]:
        graph, trainable = parted(params)
        dropout_key = jax.random.fold_in(key, _DROPOUT)
        vectors = text.vectors(trainable, frozen, batch.texts, dropout_key)
        return loss(graph, statistics, {}, with_vectors(batch, vectors), key)

    return loss_with_text


def joined(graph: PyTree, text: PyTree) -> PyTree:
    """Parameters of the graph model with those of its text encoder, if any train."""
    return {**graph, TREE: text} if text else graph


def parted(params: PyTree) -> tuple[PyTree, PyTree]:
    """The inverse of `joined`."""
    return {name: tree for name, tree in params.items() if name != TREE}, params.get(TREE, {})


def with_vectors(batch: GraphBatch, vectors: Float[Array, "shards C E"]) -> GraphBatch:
    """The batch with text vectors in the place of rows of them; zeros where there is no row."""

    def of_table(_: str, nodes: NodeTable) -> NodeTable:
        row = jnp.asarray(nodes.texts)
        if not is_numbered(nodes):
            return nodes
        found = jnp.take_along_axis(vectors, jnp.maximum(row, 0), axis=1)
        return nodes._replace(texts=jnp.where(row >= 0, found, 0.0))

    return batch.with_tables(of_table)._replace(texts=None)


def is_numbered(nodes: NodeTable) -> bool:
    """Whether a table holds numbers in the place of text vectors."""
    return jnp.issubdtype(nodes.texts.dtype, jnp.integer)


def _float32(variables: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables)
