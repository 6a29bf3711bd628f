"""The tasks' gradients against each other, measured at every validation on one batch."""

from typing import Any

import jax

from star_jax.graph.conflicts import Conflicts
from star_jax.graph.engines.drawing import in_step
from star_jax.graph.engines.protocol import GraphEngine, ProgramEngine
from star_jax.graph.model import GraphBatch
from star_jax.pipeline.graph_adaptive import GraphValidate
from star_jax.shapes import PyTree


def with_conflicts(
    validation: GraphValidate, conflicts: Conflicts, engine: GraphEngine, batch: GraphBatch
) -> GraphValidate:
    """Adds `conflict/<task>~<task>` to what a validation finds.

    Args:
      validation: Finds the rest.
      conflicts: From `make_conflicts`.
      engine: Drew the batch, or will.
      batch: On the devices; the same one every time, so that what changes is the model.
    """
    arrays = engine.arrays if isinstance(engine, ProgramEngine) else {}

    @jax.jit
    def measured(variables: PyTree, arrays: PyTree, batch: GraphBatch) -> dict[str, Any]:
        if isinstance(engine, ProgramEngine):
            batch, _ = in_step(engine)(arrays, batch)
        return conflicts(variables["params"], variables["batch_stats"], batch, jax.random.key(0))

    def validate(variables: PyTree, step: int) -> dict[str, float]:
        found = measured(variables, arrays, batch)
        return validation(variables, step) | {n: float(value) for n, value in found.items()}

    return validate
