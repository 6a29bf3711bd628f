"""The graph model as files: what `train-graph` leaves behind and the later stages open."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from star_jax import artefacts
from star_jax.config import InputError, from_json
from star_jax.graph.features import FeatureConfig, NodeFeatures, TextFeature
from star_jax.graph.heads import NodeHead
from star_jax.graph.identities import num_rows
from star_jax.graph.model import GraphModel, GraphModelConfig, LinkTask, init_model
from star_jax.graph.store import GraphStore, TextNumbers
from star_jax.parallel.rules import FSDP_RULES, placed, replicated, shardings
from star_jax.pipeline.graph_compatible import Compatible
from star_jax.pipeline.graph_loader import Sampling
from star_jax.pipeline.graph_text import GraphTextConfig, text_width
from star_jax.pipeline.tables.read import TablesMeta, read_meta
from star_jax.shapes import PyTree
from star_jax.train.checkpoints import TrainedParameters, load_trained

KIND = "graph_model"
MODEL = "model.json"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class GraphModelFile:
    """All that decides what the parameters mean, and how neighbours were drawn for them.

    Attributes:
      model: Options of the model.
      features: Sizes per node type.
      keys: Edge keys of the graph.
      tasks: The links it predicts.
      heads: The columns of nodes it predicts.
      text_encoder: Given, the texts were encoded in its training's steps.
      compatible: Given, it has maps to the vectors of an older version.
      sampling: How neighbours were drawn.
      inputs: Folder -> digest of what it was trained on.
    """

    model: GraphModelConfig
    features: tuple[NodeFeatures, ...]
    keys: tuple[str, ...]
    tasks: tuple[LinkTask, ...]
    sampling: Sampling
    inputs: dict[str, str]
    heads: tuple[NodeHead, ...] = ()
    text_encoder: GraphTextConfig | None = None
    compatible: Compatible | None = None

    def build(self) -> GraphModel:
        """The model without its parameters."""
        maps = () if self.compatible is None else self.compatible.maps
        return GraphModel(self.model, self.features, self.keys, self.tasks, self.heads, maps)


class TrainedGraph(NamedTuple):
    """A trained model, the graph it reads, and the description of the tables."""

    model: GraphModel
    file: GraphModelFile
    variables: PyTree
    store: GraphStore
    tables: TablesMeta
    meta: dict[str, Any]


def open_store(
    workdir: Path,
    text: TextFeature,
    widths: Mapping[str, int] | None = None,
    *,
    min_edges: int = 1,
    vectors: str = "text_embeddings",
) -> GraphStore:
    """The graph of a working directory with what its models read of the texts.

    Args:
      workdir: Holds the graph and, unless texts are off or the widths given, the text vectors.
      text: As in `FeatureConfig`.
      widths: Node type -> width of the zeros; None: that of its text vectors.
      min_edges: `identity_min_edges` of the model.
      vectors: Folder of the text vectors.
    """
    graph = workdir / "graph"
    if text == "off":
        return GraphStore.open(graph, None, min_edges)
    if text == "vectors":
        return GraphStore.open(graph, workdir / vectors, min_edges)
    if widths is None:
        store = GraphStore.open(graph, workdir / vectors)
        widths = {name: store.text_size(name) for name in store.text_vectors}
    return GraphStore.open(graph, widths, min_edges)


def open_numbered_store(workdir: Path, min_edges: int) -> GraphStore:
    """The graph with the numbers of its texts, for a training that encodes them with `W/text`."""
    width = text_width(workdir / "text")
    return GraphStore.open(workdir / "graph", TextNumbers(width), min_edges)


def open_training_store(
    workdir: Path, features: FeatureConfig, encoder: GraphTextConfig | None
) -> GraphStore:
    """The graph with what a training reads of its texts: vectors, or numbers where it encodes."""
    if encoder is not None:
        return open_numbered_store(workdir, features.identity_min_edges)
    return open_store(workdir, features.text, min_edges=features.identity_min_edges)


def text_input(text: TextFeature, encoder: GraphTextConfig | None) -> str | None:
    """The folder that the texts of a graph model come from: the encoder's, or their vectors'."""
    if text != "vectors":
        return None
    return "text_embeddings" if encoder is None else "text"


def inputs_of(workdir: Path, text: str | None) -> dict[str, str]:
    """Digests of the artefacts that a graph model is made from; `text` as `text_input` gives it."""
    names = ("tables", "graph", *((text,) if text else ()))
    return {name: artefacts.digest(workdir / name) for name in names}


def vectors_of(model: str) -> str:
    """Folder of all texts' vectors by the encoder that trained with a graph model."""
    return f"{model}_texts"


def link_tasks(meta: TablesMeta) -> tuple[LinkTask, ...]:
    """The tasks of the tables, the main one first."""
    return tuple(LinkTask(name, task.sender, task.receiver) for name, task in meta.tasks.items())


def node_heads(
    config: GraphModelConfig, store: GraphStore, tasks: tuple[LinkTask, ...]
) -> tuple[NodeHead, ...]:
    """The columns to predict, as the graph has them.

    Raises:
      InputError: A node task names what is no end of a task, or no categorical column of it.
    """
    ends = sorted({end for task in tasks for end in (task.sender, task.receiver)})
    heads = []
    for task in config.node_tasks:
        if task.node_type not in ends:
            raise InputError(
                f"node_tasks names {task.node_type!r}, needed an end of a trained task: {ends}"
            )
        columns = store.meta.schema.nodes[task.node_type].categorical
        if task.column not in columns or not config.features.categorical:
            raise InputError(
                f"node_tasks names the column {task.column!r} of {task.node_type}, needed one of "
                f"{sorted(columns)}, with features.categorical"
            )
        heads.append(NodeHead(task, list(columns).index(task.column), columns[task.column]))
    return tuple(heads)


def node_features(
    config: FeatureConfig,
    store: GraphStore,
    tasks: tuple[LinkTask, ...],
    heads: tuple[NodeHead, ...] = (),
) -> tuple[NodeFeatures, ...]:
    """The features that the config asks for and the graph has, without what heads predict.

    Raises:
      InputError: `identity_types` names a node type that the graph does not have.
    """
    ends = {end for task in tasks for end in (task.sender, task.receiver)}
    known = sorted(store.num_nodes)
    for name in config.identity_types:
        if name not in store.num_nodes:
            raise InputError(f"identity_types names {name!r}, needed one of {', '.join(known)}")
    identities = config.identity_types or tuple(name for name in known if name not in ends)
    sizes = {
        name: num_rows(config, store.num_nodes[name])
        for name in known
        if config.identity and name in identities
    }
    return tuple(
        NodeFeatures(
            node_type=name,
            num_identities=sizes.get(name, 0),
            text_size=0 if config.text == "off" else store.text_size(name),
            cardinalities=(
                tuple(store.meta.schema.nodes[name].categorical.values())
                if config.categorical
                else ()
            ),
            dense_size=store.dense[name].shape[1] if config.dense else 0,
            hashed=sizes.get(name, store.num_nodes[name]) < store.num_nodes[name],
            predicted=tuple(head.number for head in heads if head.task.node_type == name),
        )
        for name in known
    )


def read_model_file(folder: Path) -> GraphModelFile:
    """What `train-graph` wrote about its model."""
    return from_json(GraphModelFile, (folder / MODEL).read_text(encoding="utf-8"))


def open_trained(workdir: Path, name: str, mesh: Mesh) -> TrainedGraph:
    """The best checkpoint of a finished `train-graph`, placed on a mesh.

    Args:
      workdir: Holds the tables, the graph, the text vectors and the model.
      name: Folder of the model, "graph_model" or "graph_only_model".
      mesh: Where its parameters will lie.

    Raises:
      InputError: Training has not finished, files changed, or the inputs are other ones.
    """
    folder = workdir / name
    meta = artefacts.read_manifest(folder, KIND).meta
    file = read_model_file(folder)
    text = file.model.features.text
    _check_inputs(workdir, name, file)
    model = file.build()
    params = load_trained(
        folder / CHECKPOINTS,
        meta["best_step"],
        trained_shapes(model, mesh),
        frozen_digest=None,
        partial=file.text_encoder is not None,  # Its encoder's parameters stand beside these.
    )
    variables = {"params": params.trainable, "batch_stats": params.statistics}
    widths = {each.node_type: each.text_size for each in file.features}
    min_edges = file.model.features.identity_min_edges
    vectors = "text_embeddings" if file.text_encoder is None else vectors_of(name)
    store = open_store(workdir, text, widths, min_edges=min_edges, vectors=vectors)
    return TrainedGraph(model, file, variables, store, read_meta(workdir / "tables"), meta)


def trained_shapes(model: GraphModel, mesh: Mesh) -> TrainedParameters:
    """What a trained model holds, of shapes, and where on a mesh."""
    like = TrainedParameters(*jax.eval_shape(lambda: init_model(model, 0)))
    everywhere = jax.tree.map(lambda _: replicated(mesh), like.statistics)
    return placed(like, TrainedParameters(shardings(like.trainable, mesh, FSDP_RULES), everywhere))


def _check_inputs(workdir: Path, name: str, file: GraphModelFile) -> None:
    folder = workdir / name
    now = inputs_of(workdir, text_input(file.model.features.text, file.text_encoder))
    for each, digest in file.inputs.items():
        if now[each] != digest:
            raise InputError(
                f"{folder} was trained on {each} {digest[:12]}, {workdir / each} is now "
                f"{now[each][:12]}; run `star train-graph` again"
            )
    if file.text_encoder is None:
        return
    vectors, command = workdir / vectors_of(name), f"run `star export-text` with --source {name}"
    if not (vectors / artefacts.MANIFEST).is_file():
        raise InputError(f"{vectors} is missing: {folder} trained with its encoder; {command}")
    made_by = artefacts.read_manifest(vectors, "text_embeddings").meta["model"]
    if made_by != artefacts.digest(folder):
        raise InputError(f"{vectors} was made by another model than {folder}; {command} again")
