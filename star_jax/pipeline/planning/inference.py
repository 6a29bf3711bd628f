"""The programs of an all-node export, of shapes, and how often each of them runs."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32, Int, Int32

from star_jax.embeddings.quantise import Precision, code_dtype
from star_jax.graph.layerwise import State, in_order
from star_jax.graph.model import GraphModel, Role
from star_jax.parallel.mesh import ROW_AXES
from star_jax.parallel.rules import device_bytes
from star_jax.pipeline.graph_buckets import Shapes
from star_jax.pipeline.graph_embedding import Embedder, SplitView, Wanted
from star_jax.pipeline.graph_layers import LayerEncoder, WhichNeighbours
from star_jax.pipeline.graph_loader import Sampling
from star_jax.pipeline.graph_model import trained_shapes
from star_jax.pipeline.graph_programs import OfPart, RowShards, program
from star_jax.pipeline.planning.programs import Program, Refused, Traffic, compiled
from star_jax.shapes import PyTree

_MEASURED = 1 << 12  # Nodes whose samples are measured; an export measures more of them.


class Run(NamedTuple):
    """A program of an export.

    Attributes:
      name: Of what it makes.
      lowered: Ready to be compiled.
      times: How often it runs, on one process of all.
    """

    name: str
    lowered: jax.stages.Lowered
    times: int


class Export(NamedTuple):
    """All that an export computes.

    Attributes:
      runs: Its programs.
      nodes: Vectors that it makes.
      state_bytes: Of the states that it keeps on disk.
      parameters: Bytes of a device.
    """

    runs: list[Run]
    nodes: int
    state_bytes: int
    parameters: int


class Exported(NamedTuple):
    """What is exported, as `star_jax.jobs.export_graph` says it.

    Attributes:
      targets: Role and node type of each table.
      part_nodes: Nodes that one process makes at a time.
      neighbours: As in `LayerEncoder`; None: every node from a sample of its own.
      state_precision: Of the states on disk.
    """

    targets: Sequence[tuple[Role, str]]
    part_nodes: int
    neighbours: WhichNeighbours | None
    state_precision: Precision


class _Recorder:
    """Stands where `RowShards` stands: lowers what it is given to run, and gives zeros."""

    def __init__(self, mesh: Mesh) -> None:
        self._shards, self._mesh = RowShards(mesh), mesh
        self.count, self.own = self._shards.count, self._shards.own
        self.lowered: jax.stages.Lowered | None = None
        self.size = 0  # Rows of a part.

    def groups(self, total: int, size: int) -> Iterator[list[slice]]:
        self.size = size
        return self._shards.groups(total, size)

    def agreed(self, value: int) -> int:
        return value

    def run(
        self,
        of_part: OfPart,
        model: GraphModel,
        variables: PyTree,
        parts: Sequence[PyTree],
        **static: object,
    ) -> PyTree:
        where = NamedSharding(self._mesh, PartitionSpec(ROW_AXES))

        def stacked(array: np.ndarray) -> jax.ShapeDtypeStruct:
            like = jnp.asarray(array)
            return jax.ShapeDtypeStruct((self.count, *like.shape), like.dtype, sharding=where)

        shapes = jax.tree.map(stacked, parts[0])
        self.lowered = program(of_part, self._mesh).lower(model, variables, shapes, **static)
        return jax.tree.map(lambda out: np.zeros(out.shape, out.dtype), self.lowered.out_info)

    def taken(self) -> jax.stages.Lowered:
        """What was lowered last."""
        assert self.lowered is not None
        return self.lowered


def export_runs(
    model: GraphModel,
    sampling: Sampling,
    view: SplitView,
    mesh: Mesh,
    what: Exported,
    num_processes: int,
) -> Export:
    """The programs that `export-graph` would run; a batch of each is made on the host.

    Args:
      model: The link model, without parameters.
      sampling: How neighbours are drawn for it.
      view: The graph.
      mesh: Devices of one process, which need not be there.
      what: Is exported.
      num_processes: That share the parts.
    """
    shapes = trained_shapes(model, mesh)
    variables = {"params": shapes.trainable, "batch_stats": shapes.statistics}
    nodes = sum(view.store.num_nodes[name] for _, name in what.targets)
    recorder, parts = _Recorder(mesh), _Parts(what.part_nodes, num_processes)
    held = device_bytes(variables)
    if what.neighbours is None:
        embedder = Embedder(model, sampling, recorder)
        runs = list(_sampled(embedder, variables, view, what, recorder, parts))
        return Export(runs, nodes, 0, held)
    encoder = LayerEncoder(
        model, variables, sampling, view, recorder, neighbours=what.neighbours, shapes=Shapes()
    )
    width = encoder.width
    outputs = {kind: encoder.outputs(*kind) for kind in what.targets}
    states = in_order(state for each in outputs.values() for state in each)
    runs = []
    for state in states:
        runs += _of_state(encoder, state, view.store.num_nodes[state.node_type], recorder, parts)
    for (role, name), read in outputs.items():
        encoder.vectors(role, name, [np.zeros((1, width), np.float32)] * len(read))
        times = parts.times(np.arange(view.store.num_nodes[name]), recorder)
        runs.append(Run(f"vectors of {name} {role}s", recorder.taken(), times))
    rows = sum(view.store.num_nodes[state.node_type] for state in states)
    row_bytes = code_dtype(what.state_precision).itemsize * width
    return Export(runs, nodes, row_bytes * rows, held)


def together(export: Export) -> Program | Refused:
    """What all runs of an export move and compute; of memory, what the largest program takes."""
    found = []
    for run in export.runs:
        made = compiled(lambda run=run: run.lowered)
        if isinstance(made, Refused):
            return Refused(f"{run.name}: {made.reason}")
        found.append((run.times, made))
    traffic: dict[str, Traffic] = {}
    for times, made in found:
        for kind, each in made.collectives.items():
            before = traffic.get(kind, Traffic(0, 0))
            number, size = before.number + times * each.number, before.bytes + times * each.bytes
            traffic[kind] = Traffic(number, size)
    return max((made for _, made in found), key=lambda made: made.peak_bytes)._replace(
        flops=sum(times * made.flops for times, made in found),
        memory_traffic=sum(times * made.memory_traffic for times, made in found),
        collectives=traffic,
        unknown_loops=sum(made.unknown_loops for _, made in found),
    )


class _Parts(NamedTuple):
    """How nodes are parted between runs."""

    part_nodes: int
    num_processes: int

    def times(self, nodes: Int[np.ndarray, " n"], recorder: _Recorder) -> int:
        """Runs of a program on the process that has most, for these of the nodes of a type."""
        each = np.bincount(nodes // self.part_nodes)
        runs = [math.ceil(count / (recorder.size * recorder.count)) for count in each.tolist()]
        return max(sum(runs[i :: self.num_processes]) for i in range(self.num_processes))


def _of_state(
    encoder: LayerEncoder, state: State, total: int, recorder: _Recorder, parts: _Parts
) -> Iterator[Run]:
    everyone = np.arange(total, dtype=np.int32)

    def read(state: State, nodes: Int32[np.ndarray, " n"]) -> Float32[np.ndarray, "n D"]:
        return np.zeros((len(nodes), encoder.width), np.float32)

    if state.own is None:
        encoder.rows(state, everyone[:1], read)
        yield Run(str(state), recorder.taken(), parts.times(everyone, recorder))
        return
    for bucket, here in encoder.bucketed(state, everyone):
        encoder.rows(state, everyone[here[:1]], read)
        name = f"{state}, {sum(bucket.fanout.values())} neighbours"
        yield Run(name, recorder.taken(), parts.times(here, recorder))


def _sampled(
    embedder: Embedder,
    variables: PyTree,
    view: SplitView,
    what: Exported,
    recorder: _Recorder,
    parts: _Parts,
) -> Iterator[Run]:
    for role, name in what.targets:
        total = view.store.num_nodes[name]
        some = np.arange(0, total, -(-max(total, 1) // _MEASURED), dtype=np.int32)
        embedder.measure(Wanted.of_view(view, role, name, some))
        embedder.embed(variables, Wanted.of_view(view, role, name, some[:1]))
        times = parts.times(np.arange(total), recorder)
        yield Run(f"samples around {name} {role}s", recorder.taken(), times)
