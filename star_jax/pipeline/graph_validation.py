"""AUC of the graph model on a fixed part of the val pairs of every task, accuracy of its heads."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from star_jax.evaluation.auc import roc_auc
from star_jax.graph.batches import Role, Subgraph
from star_jax.graph.compatible import MAPS
from star_jax.graph.decoders import SeedVectors
from star_jax.graph.model import GraphModel, LinkTask
from star_jax.graph.store import GraphStore
from star_jax.pipeline.graph_classes import HeldOut
from star_jax.pipeline.graph_compatible import OldVersion
from star_jax.pipeline.graph_embedding import Embedder
from star_jax.pipeline.graph_model import GraphModelFile
from star_jax.pipeline.graph_programs import RowShards
from star_jax.pipeline.graph_scoring import Prepared, SplitScoring
from star_jax.pipeline.tables.read import PairTable, read_pairs
from star_jax.shapes import PyTree

_log = logging.getLogger(__name__)


class _Task(NamedTuple):
    link: LinkTask
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
        old: OldVersion | None = None,
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
          old: Given, it is also validated how near the maps come to its vectors.
        """
        self._old = old
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
            self._tasks[task.name] = _Task(task, scoring, prepared, label, pairs.negative, kinds)

    def __call__(self, variables: PyTree, step: int) -> dict[str, float]:
        """Metrics by name, and `score`, the mean of the main task's AUCs.

        With one task `auc_<kind>` per kind of negative and `bce`; with more, `<task>/` before them.
        Of node tasks, what `HeldOut` says. With an older version `alignment`: the mean length of
        B_k z_k - z_(k-1) over the different seeds of the pairs that it knows.

        Args:
          variables: Of the model.
          step: Stands in for the score where there is nothing to validate on.
        """
        metrics: dict[str, float] = {}
        main: list[float] = []  # AUCs of the first task: rarer links would add noise to the choice.
        for name, task in self._tasks.items():
            prefix = f"{name}/" if len(self._tasks) > 1 else ""
            ends = task.scoring.ends(variables, task.prepared)
            logits = task.scoring.score(variables, task.prepared, ends)
            missed = self._missed(variables, task, ends)
            if len(missed):
                metrics[f"{prefix}alignment"] = float(np.mean(missed))
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

    def _missed(
        self, variables: PyTree, task: _Task, ends: Mapping[Role, SeedVectors]
    ) -> Float[np.ndarray, " S"]:
        """Lengths of what the maps miss, of the seeds that the older version knows."""
        if self._old is None:
            return np.zeros(0)
        sizes: dict[Role, int] = {role: len(nodes) for role, nodes in task.prepared.nodes.items()}
        old = self._old.of_task(task.link, task.prepared.nodes, sizes)
        found = [np.zeros(0)]
        for each in self._old.maps:
            if each.table in old:
                vectors = np.asarray(ends[each.role].embedding)
                mapped = vectors @ np.asarray(variables["params"][MAPS][each.name])
                length = np.linalg.norm(mapped - old[each.table].vectors, axis=1)
                found.append(length[np.asarray(old[each.table].known)])
        return np.concatenate(found)


def _draw(pairs: PairTable, max_pairs: int, seed: int) -> PairTable:
    """The pairs of randomly drawn groups, in their order."""
    groups, sizes = np.unique(pairs.group, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(groups))
    kept = groups[order[np.cumsum(sizes[order]) <= max_pairs]]
    rows: Int[np.ndarray, " V"] = np.flatnonzero(np.isin(pairs.group, kept))
    return PairTable(*(column[rows] for column in pairs))
