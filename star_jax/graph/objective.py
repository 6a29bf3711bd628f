"""The training loss of the link model, over all of its tasks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from star_jax import trees
from star_jax.graph.batches import PairBatch
from star_jax.graph.compatible import Alignment
from star_jax.graph.features import NodeFeatures
from star_jax.graph.heads import classification_loss
from star_jax.graph.model import GraphBatch, GraphModel, GraphOutputs
from star_jax.losses.bce import binary_cross_entropy
from star_jax.losses.in_batch import in_batch_softmax
from star_jax.shapes import PyTree

_SHARDS = "shards"  # Name of the mapped axis over the devices' own subgraphs.


StatefulLoss = Callable[
    [PyTree, PyTree, PyTree, GraphBatch, Key[Array, ""]],
    tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], PyTree]],
]


def make_loss(
    model: GraphModel,
    *,
    task_weights: Mapping[str, float],
    positive_weight: Mapping[str, float],
    alignment: Alignment | None = None,
) -> StatefulLoss:
    """The training loss: weighted sum over all tasks and heads, plus L2 of the encoders' kernels.

    A task's loss is BCE, or what the decoder's kind "softmax" says.

    Args:
      model: Its axis name is set here when a batch has more than one shard.
      task_weights: lambda_t of every task.
      positive_weight: By task, weight of a positive pair, where a negative one weighs 1.
      alignment: Given, what its maps miss of the older vectors is added.
    """

    def loss(
        params: PyTree, statistics: PyTree, frozen: PyTree, batch: GraphBatch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], PyTree]]:
        del frozen  # All parameters train.
        found, statistics = _outputs(model, params, statistics, batch, key)
        total = model.config.kernel_l2 * _sum_of_squares(params)
        metrics = {}
        for name, value in found.links.items():
            metrics[f"loss_{name}"] = _task_loss(value, batch.tasks[name], positive_weight[name])
            total += task_weights[name] * metrics[f"loss_{name}"]
        for head in model.heads:
            name = head.task.name
            entropy, accuracy = classification_loss(found.classes[name])
            metrics |= {f"loss_{name}": entropy, f"accuracy_{name}": accuracy}
            total += head.task.weight * entropy
        if alignment is not None:
            missed, figures = alignment(found.mapped, batch.tasks)
            metrics |= figures
            total += alignment.weight * missed
        return total, (metrics, statistics)

    return loss


def _outputs(
    model: GraphModel, params: PyTree, statistics: PyTree, batch: GraphBatch, key: Key[Array, ""]
) -> tuple[GraphOutputs, PyTree]:
    """What the model gives of every device's part, and the new running statistics."""

    def forward(tasks: dict[str, PairBatch], key: Key[Array, ""], axis_name: str | None) -> Any:
        mapped = _of_size(model, params).clone(axis_name=axis_name)
        found, updated = mapped.apply(
            {"params": params, "batch_stats": statistics},
            tasks,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return found, updated.get("batch_stats", statistics)

    shards = batch.mask.shape[0]
    if shards == 1:
        single = jax.tree.map(lambda array: array[0], batch.tasks)
        found, updated = forward(single, key, None)
        return jax.tree.map(lambda leaf: leaf[None], found), updated
    return jax.vmap(
        lambda tasks, key: forward(tasks, key, _SHARDS), axis_name=_SHARDS, out_axes=(0, None)
    )(batch.tasks, jax.random.split(key, shards))


def _of_size(model: GraphModel, params: PyTree) -> GraphModel:
    """The model with as many identities as the parameters hold: all rows, or those of a batch."""

    def of_type(features: NodeFeatures) -> NodeFeatures:
        if not features.num_identities:
            return features
        table = params[f"features_{features.node_type}"]["identity_embedding"]
        return dataclasses.replace(features, num_identities=table.shape[0])

    return model.clone(features=tuple(of_type(each) for each in model.features))


def _task_loss(
    logits: Float[Array, "shards B ..."], pairs: PairBatch, positive_weight: float
) -> Float[Array, ""]:
    label, mask = jnp.asarray(pairs.label), jnp.asarray(pairs.mask)
    if logits.ndim == 3:
        assert pairs.linked is not None
        log_q = None if pairs.log_q is None else jnp.asarray(pairs.log_q)
        return in_batch_softmax(logits, label, mask, jnp.asarray(pairs.linked), log_q)
    return binary_cross_entropy(
        logits.reshape(-1), label.reshape(-1), mask.reshape(-1), positive_weight
    )


def _sum_of_squares(params: PyTree) -> Float[Array, ""]:
    kernels = trees.select(params, r"encoder.*/.*kernel.*")
    return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(kernels)), jnp.zeros(()))
