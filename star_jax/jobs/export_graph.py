"""`star export-graph`: a vector for every node of some types, from the best checkpoint.

Reads the tables, the graph, the text vectors and `W/graph_model`; writes `W/graph_embeddings`:
one table per node type, whose row i is node i. Where the model was trained with `compatible`, also
`W/transform`: its maps to the vectors of the older version.

Vectors are stored in parts under `W/.graph_embeddings.parts` until all are there: an interrupted
export goes on, and several processes share one; the first of them writes the tables.

The vectors alone do not rebuild the scores that `evaluate` reports as `graph`. A score is the
output of the task's decoder, whose parameters stay in the model's checkpoint; with
`decoder.match.enabled` the decoder also reads the match vectors of both nodes, which are not
exported. The manifest lists what a score needs under `scores_need`.
"""

import dataclasses
import functools
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.table import TableRows, array_path, write_rows
from star_jax.graph.decoders import DecoderConfig
from star_jax.graph.layerwise import State
from star_jax.graph.model import Role, rounds_of
from star_jax.graph.schema import parse_key
from star_jax.parallel import processes
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline.graph_buckets import Shapes
from star_jax.pipeline.graph_compatible import KIND, embedding_tables, write_maps
from star_jax.pipeline.graph_embedding import (
    Embedder,
    SplitView,
    Wanted,
    fanouts_of,
    split_view,
)
from star_jax.pipeline.graph_layers import LayerEncoder, WhichNeighbours
from star_jax.pipeline.graph_model import GraphModelFile, TrainedGraph, open_trained
from star_jax.pipeline.graph_programs import RowShards
from star_jax.pipeline.graph_states import NodeFiles, StateFiles, complete, fill
from star_jax.pipeline.scratch import clear, together
from star_jax.sorting import parquet_batches

_MEASURED = 1 << 14  # Nodes whose samples are measured before all are drawn.

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphExportConfig:
    """What is exported.

    Attributes:
      node_types: Of the graph. Empty: the ends of all tasks.
      other_role: Whose encoder embeds the types that are no end of a task. They go through the
        layers that have parameters for them, as many as the manifest says under `rounds`, and
        come out as the next layer reads them of a neighbour, without the last normalisation.
        With a dual encoder that of the receivers has seen of them, under the receiver view
        "attributes", nothing but their features.
      visible: The last split whose edges and texts the vectors may tell of; "val" is what
        `evaluate` lets the test pairs see.
      inference: "sampled": every node from a sample of its own around it, whose size grows with
        the product of the fanouts. "layerwise": all nodes through one layer after the other, so
        that the work grows with their sum. The states between the layers take the bytes of
        `state_precision` times the model's width for every node, layer and role, beside the parts
        of the tables. The vectors are those of "sampled" but for rounding, and for what
        `star_jax.pipeline.graph_layers` says.
      neighbours: "all", for layerwise: every visible neighbour of the relations that the encoder
        reads at a hop, however many the fanouts name.
      mesh: Devices of this process: nodes are split over `data` and `fsdp`, large parameters over
        `fsdp`.
      precision: Of the vectors on disk.
      state_precision: Of the states between the layers on disk, for layerwise.
      part_nodes: Nodes embedded and written at a time: the rows of one file, and the least that a
        process makes.
      model: Folder of the trained model.
      output: Folder of the tables.
      transform: Folder of the maps to an older version, where the model has some.
    """

    node_types: tuple[str, ...] = ()
    other_role: Role = "sender"
    visible: Literal["train", "val", "test"] = "val"
    inference: Literal["sampled", "layerwise"] = "sampled"
    neighbours: WhichNeighbours = "fanout"
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    precision: Literal["float32", "float16"] = "float32"
    state_precision: Literal["float32", "bfloat16"] = "float32"
    part_nodes: int = 1 << 17
    model: str = "graph_model"
    output: str = "graph_embeddings"
    transform: str = "transform"

    def __post_init__(self) -> None:
        if self.part_nodes < 1:
            raise ValueError(f"part_nodes {self.part_nodes} must be >= 1")
        if self.neighbours == "all" and self.inference != "layerwise":
            raise ValueError(
                f"neighbours 'all' is for inference 'layerwise', inference is {self.inference!r}"
            )
        if self.state_precision != "float32" and self.inference != "layerwise":
            raise ValueError(
                f"state_precision {self.state_precision!r} is for inference 'layerwise', inference "
                f"is {self.inference!r}"
            )


class Target(NamedTuple):
    """One table: nodes of a type as the encoder of a role embeds them."""

    table: str  # Name of its folder.
    node_type: str
    role: Role


def without_text(config: GraphExportConfig) -> GraphExportConfig:
    """The same export of the model of the graph alone."""
    return dataclasses.replace(config, model="graph_only_model", output="graph_only_embeddings")


def targets(file: GraphModelFile, config: GraphExportConfig) -> list[Target]:
    """The tables to write: `<type>`, and `<type>.<role>` where a type has a second role.

    Raises:
      InputError: A node type is unknown, or the model has nothing to tell its nodes apart by.
    """
    found = {end: Target(name, *end) for end, name in embedding_tables(file.tasks).items()}
    if not config.node_types:
        return list(found.values())
    ends = {node_type for node_type, _ in found}
    for name in dict.fromkeys(config.node_types):
        if name not in ends:
            _check_tells(file, name, config.other_role)
            found[name, config.other_role] = Target(name, name, config.other_role)
    return [target for target in found.values() if target.node_type in config.node_types]


def _check_tells(file: GraphModelFile, name: str, role: Role) -> None:
    features = {each.node_type: each for each in file.features}
    if name not in features:
        raise InputError(f"node_types names {name!r}, needed one of {', '.join(sorted(features))}")
    fanouts = fanouts_of(file.build(), file.sampling, role, name)
    sampled = any(hops and hops[0] for key, hops in fanouts.items() if parse_key(key)[2] == name)
    if features[name].empty and not sampled:
        raise InputError(
            f"node_types names {name!r}, which has no features and no neighbours that the encoder "
            f"of other_role {role} reads: all its vectors would be equal; leave it out"
        )


def scores_need(config: DecoderConfig) -> list[str]:
    """What a score is made of; of these only the embeddings are exported."""
    return ["embeddings", *(["match vectors"] if config.match.enabled else []), "decoder"]


class _Export(NamedTuple):
    """What an export is made from."""

    config: GraphExportConfig
    workdir: Path
    trained: TrainedGraph
    targets: list[Target]
    view: SplitView
    rows: RowShards  # Of this process: processes compute apart.

    def files(self, scratch: Path, target: Target, **made_from: object) -> NodeFiles:
        """Where the vectors of a table are until all are there."""
        return NodeFiles(
            scratch,
            {**self.made_from, "target": target, **made_from},
            num_nodes=self.view.store.num_nodes[target.node_type],
            part_nodes=self.config.part_nodes,
            size=self.trained.file.model.encoder.dim,
            precision=self.config.precision,
        )

    def wanted(self, target: Target, nodes: Int32[np.ndarray, " n"]) -> Wanted:
        """Nodes of a table, to be sampled."""
        return Wanted.of_view(self.view, target.role, target.node_type, nodes)

    @property
    def made_from(self) -> dict[str, object]:
        """All that decides vectors and states, beside what they are of."""
        config = self.config
        return {
            "model": artefacts.digest(self.workdir / config.model),
            "graph": self.trained.store.version,
            "view": [config.visible, config.inference, config.neighbours],
            "state_precision": config.state_precision,
        }


_Tables = dict[Target, NodeFiles]


def run(config: GraphExportConfig, workdir: Path) -> None:
    """Embeds all nodes part by part, then puts all tables in place at once."""
    mesh = make_mesh(config.mesh, jax.local_devices())
    trained = open_trained(workdir, config.model, mesh)
    wanted, view = targets(trained.file, config), split_view(trained.store, config.visible)
    export = _Export(config, workdir, trained, wanted, view, RowShards(mesh))
    scratch = workdir / f".{config.output}.parts"
    with together(scratch):
        make = _sampled if config.inference == "sampled" else _layerwise
        tables = make(export, scratch)
        processes.by_the_first(functools.partial(_write, export, tables))
        if processes.is_first():  # The others are done with it: all parts were there.
            clear(scratch)


def _write(export: _Export, tables: _Tables) -> None:
    config, workdir, trained = export.config, export.workdir, export.trained
    with artefacts.writing(workdir / config.output, KIND) as partial:
        sizes = {}
        for target, files in tables.items():
            sizes[target.table] = export.view.store.num_nodes[target.node_type]
            folder = partial / target.table
            files.check()
            ids = _ids(workdir / "tables", target.node_type, config.part_nodes)
            for shard, (nodes, names, path) in enumerate(
                zip(files.parts, ids, files.paths, strict=True)
            ):
                no_text = np.full(len(nodes), -1, np.int32)
                time = np.full(len(nodes), export.view.time, np.int64)
                write_rows(folder, shard, names, TableRows(nodes, no_text, time))
                shutil.copyfile(path, array_path(folder, shard, config.precision))
        meta = {
            "model": artefacts.digest(workdir / config.model),
            "graph": trained.store.version,
            "visible": config.visible,
            "embedding_size": trained.file.model.encoder.dim,
            "roles": {target.table: target.role for target in export.targets},
            "rounds": {
                t.table: rounds_of(trained.model, t.role, t.node_type) for t in export.targets
            },
            "scores_need": scores_need(trained.file.model.decoder),
            "precision": config.precision,
            "num_nodes": sizes,
        }
        if config.inference == "layerwise":
            meta |= {
                "inference": config.inference,
                "neighbours": config.neighbours,
                "state_precision": config.state_precision,
            }
        artefacts.set_meta(partial, meta)
    _log.info("wrote %s", ", ".join(f"{n} {t}" for t, n in sizes.items()))
    if trained.file.compatible is not None:
        new = artefacts.digest(workdir / config.output)
        params = trained.variables["params"]
        write_maps(workdir / config.transform, trained.file.compatible, params, new)


def _ids(tables: Path, node_type: str, part_nodes: int) -> Iterator[pa.Array]:
    """The nodes' own ids in their order, so many at a time; of no nodes, nothing once."""
    path = tables / "nodes" / f"{node_type}.parquet"
    found = (batch["id"].cast(pa.string()) for batch in parquet_batches(path, part_nodes, ["id"]))
    yield next(found, pa.array([], pa.string()))
    yield from found


def _sampled(export: _Export, scratch: Path) -> _Tables:
    """Vectors of all nodes, each from its own sample."""
    embedder = Embedder(export.trained.model, export.trained.file.sampling, export.rows)
    tables = {}
    for target in export.targets:
        total = export.view.store.num_nodes[target.node_type]
        some = np.arange(0, total, -(-max(total, 1) // _MEASURED), dtype=np.int32)
        # Else a part would depend on which of them its process has made before.
        embedder.measure(export.wanted(target, some))
        tables[target] = export.files(scratch, target)
        fill(tables[target], functools.partial(_embedded, export, embedder, target), target.table)
    return tables


def _embedded(
    export: _Export, embedder: Embedder, target: Target, nodes: Int32[np.ndarray, " n"]
) -> Float32[np.ndarray, "n E"]:
    found = embedder.embed(export.trained.variables, export.wanted(target, nodes))
    return np.asarray(found.embedding)


def _layerwise(export: _Export, scratch: Path) -> _Tables:
    """The same from the states of all nodes."""
    config, trained, view = export.config, export.trained, export.view
    shapes = Shapes()
    encoder = LayerEncoder(
        trained.model,
        trained.variables,
        trained.file.sampling,
        view,
        export.rows,
        neighbours=config.neighbours,
        shapes=shapes,
    )
    plan = list(shapes)
    states = StateFiles(
        scratch,
        export.made_from | {"plan": plan},
        num_nodes=view.store.num_nodes,
        part_nodes=config.part_nodes,
        size=trained.file.model.encoder.dim,
        precision=config.state_precision,
    )
    outputs = {t: encoder.outputs(t.role, t.node_type) for t in export.targets}
    complete(encoder, states, [state for each in outputs.values() for state in each])
    tables = {}
    for target, read in outputs.items():
        tables[target] = export.files(scratch, target, plan=plan)
        fill(tables[target], functools.partial(_ended, encoder, states, target, read), target.table)
    return tables


def _ended(
    encoder: LayerEncoder,
    states: StateFiles,
    target: Target,
    outputs: Sequence[State],
    nodes: Int32[np.ndarray, " n"],
) -> Float32[np.ndarray, "n E"]:
    rows = [states.read(state, nodes) for state in outputs]
    states.release()
    return encoder.vectors(target.role, target.node_type, rows)
