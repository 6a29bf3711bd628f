"""Subgraphs in the place of the requests of an engine that samples inside the program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from star_jax.graph.batches import PairBatch, Subgraph
from star_jax.graph.engines.protocol import GraphEngine
from star_jax.graph.model import ROLES, GraphBatch, StatefulLoss
from star_jax.shapes import PyTree


class Drawing:
    """Draws single batches of one device outside a training step."""

    def __init__(self, engine: GraphEngine) -> None:
        """Compiles anew for every other question."""
        self._engine = engine
        self._subgraphs = jax.jit(engine.subgraphs)

    def __call__(self, pairs: PairBatch) -> PairBatch:
        """The batch with subgraphs in the place of requests, on the host."""
        if not self._engine.in_program:
            return pairs
        roles: dict[str, Any] = {}
        for role in ROLES:
            request = jax.tree.map(lambda leaf: leaf[None], getattr(pairs, role))
            subgraph, _ = self._subgraphs(self._engine.arrays, request)
            roles[role] = jax.tree.map(lambda leaf: np.asarray(leaf[0]), subgraph)
        return pairs._replace(**roles)


def sampling_loss(loss: StatefulLoss, engine: GraphEngine) -> StatefulLoss:
    """Puts subgraphs in the place of requests first.

    Args:
      loss: Of subgraphs.
      engine: Its arrays are the `frozen` of the new loss.

    Returns:
      A loss with the metrics `neighbours`, `neighbour_fill` and `num_cut` added.
    """

    def drawing(
        params: PyTree, statistics: PyTree, frozen: PyTree, batch: GraphBatch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], PyTree]]:
        tasks, drawn, num_cut = {}, [], []
        for name, pairs in batch.tasks.items():
            roles: dict[str, Any] = {}
            for role in ROLES:
                roles[role], cut = engine.subgraphs(frozen, getattr(pairs, role))
                num_cut.append(jnp.sum(cut))
            drawn += roles.values()
            tasks[name] = pairs._replace(**roles)
        value, (metrics, statistics) = loss(
            params, statistics, {}, batch._replace(tasks=tasks), key
        )
        figures = _fill(drawn) | {"num_cut": sum(num_cut, jnp.int32(0)).astype(jnp.float32)}
        return value, (metrics | figures, statistics)

    return drawing


def _fill(subgraphs: list[Subgraph]) -> dict[str, Float[Array, ""]]:
    masks = [
        jnp.asarray(table.mask)
        for subgraph in subgraphs
        for hop in subgraph.hops
        for table in hop.values()
    ]
    neighbours = sum((jnp.sum(mask) for mask in masks), jnp.int32(0)).astype(jnp.float32)
    slots = max(sum(mask.size for mask in masks), 1)
    return {"neighbours": neighbours, "neighbour_fill": neighbours / slots}
