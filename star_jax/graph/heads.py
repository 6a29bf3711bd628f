"""Node classification: a categorical column of a node type, predicted from its embeddings.

The column is no feature of the type then: neither of the seeds nor of their neighbours. A share of
the nodes is held out of training, by a hash of their numbers, to be validated on.
"""

import dataclasses
import zlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from star_jax.graph.batches import HostOrDevice
from star_jax.graph.decoders import DecoderConfig
from star_jax.graph.identities import hashed


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeTask:
    """A column to predict.

    Attributes:
      node_type: One end of a link task that is trained, whose batches bring its nodes.
      column: Categorical; missing values are no examples.
      weight: Of its cross-entropy in the loss.
      holdout: Share of the nodes that are not trained on.
    """

    node_type: str
    column: str
    weight: float = 1.0
    holdout: float = 0.1

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight {self.weight} of {self.name} must be > 0")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout {self.holdout} of {self.name} must be between 0 and 1")

    @property
    def name(self) -> str:
        """Of its metrics."""
        return f"{self.node_type}.{self.column}"


@dataclasses.dataclass(frozen=True)
class NodeHead:
    """A `NodeTask` on one graph.

    Attributes:
      task: What is asked.
      number: Of the column among the type's categorical ones.
      num_classes: Codes of the column; 0, of missing values, is never right.
    """

    task: NodeTask
    number: int
    num_classes: int


class NodeClasses(NamedTuple):
    """Some nodes and what is said of them."""

    logits: Float[Array, "*shards S C"]
    label: Int[Array, "*shards S"]
    mask: Bool[Array, "*shards S"]  # Real, with a value, and not held out.


class Classifier(nn.Module):
    """Embeddings to logits of classes: an MLP with the decoders' hidden width and dropout."""

    config: DecoderConfig
    num_classes: int

    @nn.compact
    def __call__(self, embedding: Float[HostOrDevice, "S E"], train: bool) -> Float[Array, "S C"]:
        """`train` switches dropout on."""
        units = nn.Dense(self.config.hidden_size, name="hidden")(jnp.asarray(embedding))
        units = nn.Dropout(self.config.dropout, deterministic=not train)(nn.leaky_relu(units, 0.2))
        return nn.Dense(self.num_classes, name="output")(units)


def held_out(task: NodeTask, node: Int[HostOrDevice, " S"]) -> Bool[Array, " S"]:
    """Whether nodes are not trained on; a function of task and number alone."""
    salt = jnp.uint32(zlib.crc32(task.name.encode()))
    mixed = hashed(jnp.asarray(node).astype(jnp.uint32) ^ salt)
    return mixed < jnp.uint32(round(task.holdout * 2**32) - 1)


def classification_loss(classes: NodeClasses) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean cross-entropy over the mask, and the share that is right; zeros without any node."""
    logits = classes.logits.reshape(-1, classes.logits.shape[-1])
    label, mask = classes.label.reshape(-1), classes.mask.reshape(-1).astype(logits.dtype)
    taken = jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]
    count = jnp.maximum(mask.sum(), 1.0)
    right = (jnp.argmax(logits, axis=1) == label).astype(logits.dtype)
    return -jnp.sum(mask * taken) / count, jnp.sum(mask * right) / count
