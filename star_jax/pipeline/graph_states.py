"""Rows of all nodes on disk, in parts: a killed export goes on with those that are missing.

Part i holds the rows of nodes i * part_nodes on. It appears whole, under a name that says all it
was made from, and is read by memory map: what is held at a time is one part, and the batches it is
made of. Of several processes, which see one folder, each makes every so many parts.
"""

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32

from star_jax import artefacts
from star_jax.embeddings.quantise import Precision
from star_jax.embeddings.reuse import VectorFiles, write_vectors
from star_jax.graph.layerwise import State, in_order
from star_jax.parallel import processes
from star_jax.pipeline.ahead import behind
from star_jax.pipeline.graph_layers import Counts, LayerEncoder
from star_jax.train.reporter import Progress

_log = logging.getLogger(__name__)


class NodeFiles:
    """Rows of all nodes of a type.

    Attributes:
      parts: The nodes of each part; a type without nodes has one that is empty.
    """

    def __init__(
        self,
        scratch: Path,
        made_from: Mapping[str, object],
        *,
        num_nodes: int,
        part_nodes: int,
        size: int,
        precision: Precision,
    ) -> None:
        """Writes nothing yet.

        Args:
          scratch: Holds a folder for these rows; equal ones share it, others never touch it.
          made_from: Names all that decides a row.
          num_nodes: Of the type.
          part_nodes: Nodes of a part.
          size: Width of a row.
          precision: Of the rows on disk; one that needs no ranges.
        """
        text = json.dumps([dict(made_from), part_nodes, precision], sort_keys=True)
        self._folder = scratch / artefacts.content_digest(text.encode())[:16]
        self._precision: Precision = precision
        self.parts: list[Int32[np.ndarray, " n"]] = [
            np.arange(start, min(start + part_nodes, num_nodes), dtype=np.int32)
            for start in range(0, max(num_nodes, 1), part_nodes)
        ]
        num_rows = [len(part) for part in self.parts]
        self._files = VectorFiles(self.paths, num_rows, size, precision)

    @property
    def paths(self) -> list[Path]:
        """Files of all parts, there or not."""
        return [self._folder / f"part-{number:06d}.npy" for number in range(len(self.parts))]

    def to_do(self) -> list[int]:
        """Parts that are not there yet."""
        return [number for number, path in enumerate(self.paths) if not path.is_file()]

    def write(self, number: int, rows: Float32[np.ndarray, "n D"]) -> None:
        """Stores a part: whole, or not at all."""
        write_vectors(self.paths[number], rows, self._precision)

    def read(self, nodes: Int32[np.ndarray, " N"]) -> Float32[np.ndarray, "N D"]:
        """Copies of rows, whose parts must be there.

        Raises:
          InputError: A file is missing or does not hold what it should.
        """
        return self._files.take(nodes)

    def release(self) -> None:
        """As `VectorFiles.release`."""
        self._files.release()

    def check(self) -> None:
        """As `VectorFiles.check`."""
        self._files.check()


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
        precision: Precision,
    ) -> None:
        """As `NodeFiles` of every state; `made_from` names what decides a row beside the state."""
        self._scratch, self._made_from = scratch, dict(made_from)
        self._precision: Precision = precision
        self._num_nodes, self._part_nodes, self._size = num_nodes, part_nodes, size
        self._files: dict[State, NodeFiles] = {}

    def of(self, state: State) -> NodeFiles:
        """The files of a state."""
        if state not in self._files:
            self._files[state] = NodeFiles(
                self._scratch,
                self._made_from | {"state": dataclasses.asdict(state)},
                num_nodes=self._num_nodes[state.node_type],
                part_nodes=self._part_nodes,
                size=self._size,
                precision=self._precision,
            )
        return self._files[state]

    def read(self, state: State, nodes: Int32[np.ndarray, " N"]) -> Float32[np.ndarray, "N D"]:
        """As `NodeFiles.read`."""
        return self.of(state).read(nodes)

    def release(self) -> None:
        """As `NodeFiles.release`, of all states."""
        for files in self._files.values():
            files.release()


def fill(
    files: NodeFiles,
    make: Callable[[Int32[np.ndarray, " n"]], Float32[np.ndarray, "n D"]],
    name: str,
) -> int:
    """Makes the parts that are not there; all processes call it, and go on when all are there.

    From then on a process that reads none of them has no more to do with the folder.

    Args:
      files: Keeps the rows.
      make: Gives the rows of a part from its nodes; each process asks it for parts of its own.
      name: Of the rows, for the log.

    Returns:
      How many rows this process made.
    """
    own = range(processes.index(), len(files.parts), processes.count())
    to_do = sorted(set(own) & set(files.to_do()))
    left = sum(len(files.parts[number]) for number in to_do)
    if to_do:
        total = sum(len(files.parts[number]) for number in own)
        progress = Progress(f"export-graph {name}", float(total), "nodes")
        if left < total:
            _log.info("going on with %d of %d parts of %s", len(to_do), len(own), name)
            progress.skip(float(total - left))
        with behind() as storing:
            for number in to_do:
                rows = make(files.parts[number])
                storing(functools.partial(files.write, number, rows))
                progress.advance(float(len(rows)), float(len(rows)))
    processes.meet()
    return left


def complete(encoder: LayerEncoder, files: StateFiles, outputs: Sequence[State]) -> None:
    """Makes all parts of some states, and of those they are made of, that are not there.

    All processes call it: a state is there before any makes what is made of it.

    Args:
      encoder: Makes rows.
      files: Keeps them.
      outputs: What is wanted.
    """
    for state in in_order(outputs):
        before, start = encoder.counts, time.monotonic()
        make = functools.partial(_rows, encoder, files, state)
        if made := fill(files.of(state), make, str(state)):
            _log.info("%s", _said(state, made, time.monotonic() - start, before, encoder.counts))


def _rows(
    encoder: LayerEncoder, files: StateFiles, state: State, nodes: Int32[np.ndarray, " n"]
) -> Float32[np.ndarray, "n D"]:
    rows = encoder.rows(state, nodes, files.read)
    files.release()
    encoder.release()
    return rows


def _said(state: State, num_nodes: int, seconds: float, before: Counts, after: Counts) -> str:
    """What the work on one state was."""
    text = f"{state}: {num_nodes} nodes in {seconds:.1f} s, {num_nodes / seconds:,.0f} nodes/s"
    slots = after.slots - before.slots
    if not slots:
        return text
    edges = after.edges - before.edges
    return f"{text}, {edges} edges fill {100 * edges / slots:.1f} % of the slots"
