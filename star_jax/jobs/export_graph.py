"""`star export-graph`: a vector for every node of some types, from the best checkpoint.

Reads the tables, the graph, the text vectors and `W/graph_model`; writes `W/graph_embeddings`:
one table per node type, whose row i is node i.

The vectors alone do not rebuild the scores that `evaluate` reports as `graph`. A score is the
output of the task's decoder, whose parameters stay in the model's checkpoint; with
`decoder.match.enabled` the decoder also reads the match vectors of both nodes, which are not
exported. The manifest lists what a score needs under `scores_need`.
"""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.reuse import RowPrecision
from star_jax.embeddings.table import EmbeddingTable, write_shard
from star_jax.graph.decoders import DecoderConfig
from star_jax.graph.model import ROLES, Role, rounds_of
from star_jax.graph.schema import parse_key
from star_jax.graph.sorting import parquet_batches
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline.graph_buckets import Shapes
from star_jax.pipeline.graph_embedding import (
    Embedder,
    SplitView,
    Wanted,
    fanouts_of,
    split_view,
)
from star_jax.pipeline.graph_layers import LayerEncoder, WhichNeighbours
from star_jax.pipeline.graph_model import GraphModelFile, TrainedGraph, open_trained
from star_jax.pipeline.graph_states import StateFiles, complete
from star_jax.pipeline.scratch import alone, clear
from star_jax.train.reporter import Progress

KIND = "graph_embeddings"
_ID_ROWS = 1 << 16

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
        that the work grows with their sum; an interrupted export goes on. The states between the
        layers take the bytes of `state_precision` times the model's width for every node, layer
        and role, in `W/.<output>.states` until the tables are there. The vectors are those of
        "sampled" but for rounding, and for what `star_jax.pipeline.graph_layers` says.
      neighbours: "all", for layerwise: every visible neighbour of the relations that the encoder
        reads at a hop, however many the fanouts name.
      mesh: Devices that the model lies on: large parameters are split over `fsdp`, every device
        computes all nodes.
      precision: Of the vectors on disk.
      state_precision: Of the rows between the layers on disk, for layerwise; they are read by
        memory map.
      part_nodes: Nodes embedded and written at a time: the rows of one file.
      model: Folder of the trained model.
      output: Folder of the tables.
    """

    node_types: tuple[str, ...] = ()
    other_role: Role = "sender"
    visible: Literal["train", "val", "test"] = "val"
    inference: Literal["sampled", "layerwise"] = "sampled"
    neighbours: WhichNeighbours = "fanout"
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(data=1))
    precision: Literal["float32", "float16"] = "float32"
    state_precision: RowPrecision = "float32"
    part_nodes: int = 1 << 17
    model: str = "graph_model"
    output: str = "graph_embeddings"

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
    found: dict[tuple[str, Role], Target] = {}
    for task in file.tasks:
        for role in ROLES:
            node_type = getattr(task, role)
            first = all(other != node_type for other, _ in found)
            name = node_type if first else f"{node_type}.{role}"
            found.setdefault((node_type, role), Target(name, node_type, role))
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


_Part = tuple[Int32[np.ndarray, " N"], Float32[np.ndarray, "N E"]]
"""Nodes and their vectors."""


def run(config: GraphExportConfig, workdir: Path) -> None:
    """Embeds all nodes part by part, then puts all tables in place at once."""
    trained = open_trained(workdir, config.model, make_mesh(config.mesh))
    wanted, view = targets(trained.file, config), split_view(trained.store, config.visible)
    export = _Export(config, workdir, trained, wanted, view)
    if config.inference == "sampled":
        embedder = Embedder(trained.model, trained.file.sampling)
        _write(export, functools.partial(_sampled, export, embedder))
        return
    scratch = workdir / f".{config.output}.states"
    with alone(scratch):
        _write(export, _layerwise(export, scratch))
        clear(scratch)


def _write(export: _Export, parts_of: Callable[[Target], Iterator[_Part]]) -> None:
    config, workdir, trained = export.config, export.workdir, export.trained
    with artefacts.writing(workdir / config.output, KIND) as partial:
        sizes = {}
        for target in export.targets:
            ids = _ids(workdir / "tables", target.node_type)
            sizes[target.table] = export.view.store.num_nodes[target.node_type]
            for shard, (nodes, vectors) in enumerate(parts_of(target)):
                no_text = np.full(len(nodes), -1, np.int32)
                time = np.full(len(nodes), export.view.time, np.int64)
                names = list(itertools.islice(ids, len(nodes)))
                table = EmbeddingTable(nodes, no_text, time, vectors)
                write_shard(partial / target.table, shard, names, table, config.precision)
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


def _ids(tables: Path, node_type: str) -> Iterator[str]:
    """The nodes' own ids, in their order."""
    path = tables / "nodes" / f"{node_type}.parquet"
    for batch in parquet_batches(path, _ID_ROWS, ["id"]):
        yield from batch["id"].to_pylist()


def _sampled(export: _Export, embedder: Embedder, target: Target) -> Iterator[_Part]:
    """Vectors of all nodes of a type, so many nodes at a time, each from its own sample."""
    view, part_nodes = export.view, export.config.part_nodes
    total = view.store.num_nodes[target.node_type]
    progress = Progress(f"export-graph {target.table}", float(total), "nodes")
    for start in range(0, max(total, 1), part_nodes):
        nodes = np.arange(start, min(start + part_nodes, total), dtype=np.int32)
        wanted = Wanted.of_view(view, target.role, target.node_type, nodes)
        vectors = embedder.embed(export.trained.variables, wanted)
        yield nodes, np.asarray(vectors.embedding)
        progress.advance(float(len(nodes)), float(len(nodes)))


def _layerwise(export: _Export, scratch: Path) -> Callable[[Target], Iterator[_Part]]:
    """The same from the states of all nodes, which are there when this returns."""
    config, trained, view = export.config, export.trained, export.view
    shapes = Shapes()
    encoder = LayerEncoder(
        trained.model,
        trained.variables,
        trained.file.sampling,
        view,
        neighbours=config.neighbours,
        shapes=shapes,
    )
    files = StateFiles(
        scratch,
        {
            "model": artefacts.digest(export.workdir / config.model),
            "graph": trained.store.version,
            "view": [config.visible, config.neighbours],
            "plan": list(shapes),
        },
        num_nodes=view.store.num_nodes,
        part_nodes=config.part_nodes,
        size=trained.file.model.encoder.dim,
        precision=config.state_precision,
    )
    outputs = {t: encoder.outputs(t.role, t.node_type) for t in export.targets}
    complete(encoder, files, [state for states in outputs.values() for state in states])

    def parts_of(target: Target) -> Iterator[_Part]:
        for nodes in files.parts(outputs[target][-1]):
            rows = [files.read(state, nodes) for state in outputs[target]]
            files.release()
            yield nodes, encoder.vectors(target.role, target.node_type, rows)

    return parts_of
