"""Exports and an evaluation of a graph model by processes; run as a script, it is one of them."""

import os
import signal
import sys
from pathlib import Path
from unittest import mock

import numpy as np

from star_jax.jobs import evaluate, export_graph
from star_jax.jobs.evaluate import EvaluateConfig
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.parallel import processes
from star_jax.parallel.mesh import MeshConfig
from star_jax.pipeline import graph_embedding, graph_scoring
from star_jax.pipeline.graph_states import NodeFiles
from star_jax.pipeline.measurements import MeasureConfig
from tests.jobs.together import take_part

EXPORTS = ("sampled", "layerwise")
DIES_AT = 5  # Parts that process 1 makes before it dies, when it is told to.


class Text:
    """A text model that says nothing; each process scores a share."""

    @classmethod
    def open(cls, workdir):
        return cls()

    def score(self, pairs):
        values = np.sin(pairs.sender + 2.0 * pairs.receiver).astype(np.float32)
        return processes.in_shares(len(values), lambda part: values[part])

    def score_grid(self, task, ranking):
        rows, columns = ranking.sender[:, None], ranking.candidates[None]
        values = np.sin(rows + 2.0 * columns).astype(np.float32)
        return processes.in_shares(len(values), lambda part: values[part])


def infer(workdir: Path, mesh: MeshConfig) -> None:
    """All of it, in batches that are small enough to be shared."""
    for inference in EXPORTS:
        config = GraphExportConfig(
            inference=inference, mesh=MeshConfig(data=1), part_nodes=16, output=inference
        )
        export_graph.run(config, workdir)
    with (
        mock.patch.object(graph_embedding, "_MOST_SEEDS", 8),
        mock.patch.object(graph_scoring, "_BATCH_PAIRS", 24),
        mock.patch.object(graph_scoring, "_BLOCK_PAIRS", 16),
        mock.patch.object(evaluate, "TextPairScorer", Text),
    ):
        measure = MeasureConfig(min_cohort_members=5)
        evaluate.run(EvaluateConfig(mesh=mesh, measure=measure), workdir)


def dying_write(died: Path):
    """Notes how many parts were written, and ends with the last one."""
    write, written = NodeFiles.write, []

    def note(self: NodeFiles, number: int, rows: np.ndarray) -> None:
        write(self, number, rows)
        written.append(number)
        if len(written) == DIES_AT:
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return note


def main(workdir: str, dies: str, port: str, count: str, index: str) -> None:
    """As one process of several."""
    if dies == index:
        setattr(NodeFiles, "write", dying_write(Path(workdir) / "died"))  # noqa: B010 - a type
    take_part(lambda: infer(Path(workdir), MeshConfig()), port, count, index)


if __name__ == "__main__":
    main(*sys.argv[1:])
