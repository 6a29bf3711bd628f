"""Subgraphs in the place of the requests of an engine that samples inside the program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from star_jax.graph.batches import PairBatch, Subgraph
from star_jax.graph.engines.protocol import GraphEngine, Program, ProgramEngine
from star_jax.graph.model import ROLES, GraphBatch
from star_jax.shapes import PyTree


class Drawing:
    """Draws single batches of one device outside a training step."""

    def __init__(self, engine: GraphEngine) -> None:
        """Compiles anew for every other question."""
        self._arrays, self._subgraphs = None, None
        if isinstance(engine, ProgramEngine):
            self._arrays, self._subgraphs = engine.arrays, jax.jit(engine.subgraphs)

    def __call__(self, pairs: PairBatch) -> PairBatch:
        """The batch with subgraphs in the place of requests, on the host."""
        if self._subgraphs is None:
            return pairs
        roles: dict[str, Any] = {}
        for role in ROLES:
            request = jax.tree.map(lambda leaf: leaf[None], getattr(pairs, role))
            subgraph, _ = self._subgraphs(self._arrays, request)
            roles[role] = jax.tree.map(lambda leaf: np.asarray(leaf[0]), subgraph)
        return pairs._replace(**roles)


def in_step(
    program: Program,
) -> Callable[[PyTree, GraphBatch], tuple[GraphBatch, dict[str, Float[Array, ""]]]]:
    """What a training step does first: it puts subgraphs in the place of requests.

    Returns:
      (Arrays of the engine, batch) -> the batch, and `neighbours`, their share of the slots,
      `neighbour_fill`, and `num_cut`, how many edges, requests and features did not fit.
    """

    def prepare(
        arrays: PyTree, batch: GraphBatch
    ) -> tuple[GraphBatch, dict[str, Float[Array, ""]]]:
        tasks, drawn, num_cut = {}, [], jnp.int32(0)
        for name, pairs in batch.tasks.items():
            roles: dict[str, Any] = {}
            for role in ROLES:
                roles[role], cut = program.subgraphs(arrays, getattr(pairs, role))
                num_cut += jnp.sum(cut)
            drawn += roles.values()
            tasks[name] = pairs._replace(**roles)
        figures = _fill(drawn) | {"num_cut": num_cut.astype(jnp.float32)}
        return batch._replace(tasks=tasks), figures

    return prepare


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
