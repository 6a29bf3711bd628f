"""AUC of the graph model on a fixed part of the val pairs of every task, accuracy of its heads."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from star_jax.evaluation.auc import roc_auc
from star_jax.graph.batches import Subgraph
from star_jax.graph.model import GraphModel
from star_jax.graph.store import GraphStore
from star_jax.pipeline.graph_classes import HeldOut
from star_jax.pipeline.graph_embedding import Embedder
from star_jax.pipeline.graph_model import GraphModelFile
from star_jax.pipeline.graph_programs import RowShards
from star_jax.pipeline.graph_scoring import Prepared, SplitScoring
from star_jax.pipeline.tables.read import PairTable, read_pairs
from star_jax.shapes import PyTree

_log = logging.getLogger(__name__)


class _Task(NamedTuple):
    scoring: SplitScoring
    prepared: Prepared
    label: Bool[np.ndarray, " B"]
    negative: Shaped[np.ndarray, " B"]
    kinds: list[str]


class GraphValidation:
    """Samples the chosen pairs once; every call embeds and scores them with new variables."""

    def __init__(
        self,
        model: GraphModel,
        store: GraphStore,
        file: GraphModelFile,
        tables: Path,
        rows: RowShards,
        *,
        max_pairs: int,
        seed: int,
        resolve: Callable[[Subgraph], Subgraph] | None = None,
    ) -> None:
        """Chooses the pairs.

        Args:
          model: What is validated.
          store: The graph.
          file: Names the tasks and how neighbours are drawn.
          tables: Output of `star import`.
          rows: What seeds and pairs are split over.
          max_pairs: Per task; whole groups are drawn while they fit. As many nodes per node task.
          seed: Of the draw.
          resolve: As in `Embedder`.
        """
        embedder = Embedder(model, file.sampling, rows, resolve)
        self._heads = [
            HeldOut(model, store, embedder, rows, head, most=max_pairs) for head in file.heads
        ]
        self._tasks: dict[str, _Task] = {}
        for task in file.tasks:
            pairs = _draw(read_pairs(tables, task.name, "val"), max_pairs, seed)
            label = pairs.label == 1
            kinds = sorted(set(pairs.negative[~label].tolist()))
            if not label.any() or not kinds:
                _log.warning("task %s has no val pairs of both labels to validate on", task.name)
                continue
            scoring = SplitScoring(model, store, embedder, rows, task, "val")
            prepared = scoring.prepare(pairs)
            self._tasks[task.name] = _Task(scoring, prepared, label, pairs.negative, kinds)

    def __call__(self, variables: PyTree, step: int) -> dict[str, float]:
        """Metrics by name, and `score`, the mean of the main task's AUCs.

        With one task `auc_<kind>` per kind of negative and `bce`; with more, `<task>/` before them.
        Of node tasks, what `HeldOut` says.

        Args:
          variables: Of the model.
          step: Stands in for the score where there is nothing to validate on.
        """
        metrics: dict[str, float] = {}
        main: list[float] = []  # AUCs of the first task: rarer links would add noise to the choice.
        for name, task in self._tasks.items():
            prefix = f"{name}/" if len(self._tasks) > 1 else ""
            logits = task.scoring.score(variables, task.prepared)
            signs = np.where(task.label, -1.0, 1.0)
            metrics[f"{prefix}bce"] = float(np.logaddexp(0.0, signs * logits).mean())
            for kind in task.kinds:
                compared = task.label | (task.negative == kind)
                auc = roc_auc(task.label[compared], logits[compared])
                metrics[f"{prefix}auc_{kind}"] = auc
                main += [auc] if name == next(iter(self._tasks)) else []
        for head in self._heads:
            metrics |= head(variables)
        return metrics | {"score": float(np.mean(main)) if main else float(step)}


def _draw(pairs: PairTable, max_pairs: int, seed: int) -> PairTable:
    """The pairs of randomly drawn groups, in their order."""
    groups, sizes = np.unique(pairs.group, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(groups))
    kept = groups[order[np.cumsum(sizes[order]) <= max_pairs]]
    rows: Int[np.ndarray, " V"] = np.flatnonzero(np.isin(pairs.group, kept))
    return PairTable(*(column[rows] for column in pairs))
