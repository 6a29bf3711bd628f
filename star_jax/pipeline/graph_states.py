"""The states of all nodes on disk, in parts: a killed export goes on with those that are missing.

Part i of a state holds the rows of nodes i * part_nodes on. It appears whole, under a name that
says all it was made from, and is read by memory map: what is held at a time is one part, and the
batches it is made of.
"""

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32

from star_jax import artefacts
from star_jax.embeddings.reuse import RowPrecision, VectorFiles, write_vectors
from star_jax.graph.layerwise import State, in_order
from star_jax.pipeline.ahead import behind
from star_jax.pipeline.graph_layers import Counts, LayerEncoder
from star_jax.train.reporter import Progress

_log = logging.getLogger(__name__)


class StateFiles:
    """Where the rows of states are."""

    def __init__(
        self,
        scratch: Path,
        made_from: Mapping[str, object],
        *,
        num_nodes: Mapping[str, int],
        part_nodes: int,
        size: int,
        precision: RowPrecision,
    ) -> None:
        """Writes nothing yet.

        Args:
          scratch: Holds a folder per state; equal ones share it, others never touch it.
          made_from: Names all that decides a row beside the state.
          num_nodes: By node type.
          part_nodes: Nodes of a part.
          size: Width of a row.
          precision: Of the rows on disk.
        """
        self._scratch, self._made_from = scratch, {**made_from, "precision": precision}
        self._precision: RowPrecision = precision
        self._num_nodes, self._part_nodes, self._size = num_nodes, part_nodes, size
        self._files: dict[State, VectorFiles] = {}
        self._folders: dict[State, Path] = {}

    def parts(self, state: State) -> list[Int32[np.ndarray, " n"]]:
        """The nodes of every part; a type without nodes has one that is empty."""
        total = self._num_nodes[state.node_type]
        return [
            np.arange(start, min(start + self._part_nodes, total), dtype=np.int32)
            for start in range(0, max(total, 1), self._part_nodes)
        ]

    def to_do(self, state: State) -> list[int]:
        """Parts that are not there yet."""
        return [n for n, path in enumerate(self._paths(state)) if not path.is_file()]

    def write(self, state: State, number: int, rows: Float32[np.ndarray, "n D"]) -> None:
        """Stores a part: whole, or not at all."""
        write_vectors(self._paths(state)[number], rows, self._precision)

    def release(self) -> None:
        """Lets go of all maps."""
        for files in self._files.values():
            files.release()

    def read(self, state: State, nodes: Int32[np.ndarray, " N"]) -> Float32[np.ndarray, "N D"]:
        """Copies of rows, whose parts must be there.

        Raises:
          InputError: A file is missing or does not hold what it should.
        """
        if state not in self._files:
            num_rows = [len(part) for part in self.parts(state)]
            paths = self._paths(state)
            self._files[state] = VectorFiles(paths, num_rows, self._size, self._precision)
        return self._files[state].take(nodes)

    def _paths(self, state: State) -> list[Path]:
        folder = self._folder(state)
        return [folder / f"part-{number:06d}.npy" for number in range(len(self.parts(state)))]

    def _folder(self, state: State) -> Path:
        if state not in self._folders:
            made_from = [self._made_from, self._part_nodes, dataclasses.asdict(state)]
            text = json.dumps(made_from, sort_keys=True)
            self._folders[state] = self._scratch / artefacts.content_digest(text.encode())[:16]
        return self._folders[state]


def complete(encoder: LayerEncoder, files: StateFiles, outputs: Sequence[State]) -> None:
    """Makes all parts of some states, and of those they are made of, that are not there.

    Args:
      encoder: Makes rows.
      files: Keeps them.
      outputs: What is wanted.
    """
    for state in in_order(outputs):
        parts, to_do = files.parts(state), files.to_do(state)
        if not to_do:
            continue
        total = sum(len(part) for part in parts)
        left = sum(len(parts[number]) for number in to_do)
        progress = Progress(f"export-graph {state}", float(total), "nodes")
        if left < total:
            _log.info("going on with %d of %d parts of %s", len(to_do), len(parts), state)
            progress.skip(float(total - left))
        before, start = encoder.counts, time.monotonic()
        with behind() as storing:
            for number in to_do:
                rows = encoder.rows(state, parts[number], files.read)
                storing(functools.partial(files.write, state, number, rows))
                files.release()
                encoder.release()
                progress.advance(float(len(rows)), float(len(rows)))
        _log.info("%s", _said(state, left, time.monotonic() - start, before, encoder.counts))


def _said(state: State, num_nodes: int, seconds: float, before: Counts, after: Counts) -> str:
    """What the work on one state was."""
    text = f"{state}: {num_nodes} nodes in {seconds:.1f} s, {num_nodes / seconds:,.0f} nodes/s"
    slots = after.slots - before.slots
    if not slots:
        return text
    edges = after.edges - before.edges
    return f"{text}, {edges} edges fill {100 * edges / slots:.1f} % of the slots"
