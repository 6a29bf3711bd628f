"""Whether tasks pull the weights they share in one direction or against each other."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from star_jax import trees
from star_jax.graph.identities import TABLES
from star_jax.graph.model import GraphBatch, GraphModel
from star_jax.graph.objective import make_loss
from star_jax.shapes import PyTree

_OWN = rf"decoder_.*|{TABLES}"  # Weights of one task; tables are too large to copy per task.

Conflicts = Callable[[PyTree, PyTree, GraphBatch, Key[Array, ""]], dict[str, Float[Array, ""]]]
"""(parameters, statistics, batch, key) -> cosine of the gradients of every two tasks."""


def make_conflicts(model: GraphModel, positive_weight: Mapping[str, float]) -> Conflicts:
    """Cosines of the tasks' gradients with respect to the weights that they share.

    Below 0, a step for one task is a step against the other (Yu et al. 2020, arXiv 2001.06782).
    Weights of single tasks, penalties and identity tables do not count.

    Args:
      model: With two tasks or more.
      positive_weight: As in `make_loss`.

    Returns:
      A function whose result is named `conflict/<task>~<task>`.
    """
    names = [task.name for task in model.tasks]
    plain = model.clone(config=dataclasses.replace(model.config, kernel_l2=0.0))
    loss = make_loss(plain, task_weights=dict.fromkeys(names, 1.0), positive_weight=positive_weight)

    def conflicts(
        params: PyTree, statistics: PyTree, batch: GraphBatch, key: Key[Array, ""]
    ) -> dict[str, Float[Array, ""]]:
        own, shared = trees.split(params, _OWN)

        def losses(shared: PyTree) -> Float[Array, " T"]:
            _, (metrics, _) = loss(trees.merge(shared, own), statistics, {}, batch, key)
            return jnp.stack([metrics[f"loss_{name}"] for name in names])

        rows = jax.tree.leaves(jax.jacrev(losses)(shared))
        gradients = jnp.concatenate([row.reshape(len(names), -1) for row in rows], axis=1)
        norms = jnp.linalg.norm(gradients, axis=1)
        products = gradients @ gradients.T / jnp.maximum(norms[:, None] * norms[None], 1e-30)
        return {
            f"conflict/{names[i]}~{names[j]}": products[i, j]
            for i, j in itertools.combinations(range(len(names)), 2)
        }

    return conflicts
