"""What the classifiers of a graph model say of nodes, as after the last visible edge."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64

from star_jax.config import InputError
from star_jax.graph.batches import padded
from star_jax.graph.heads import NodeHead, held_out
from star_jax.graph.model import ROLES, GraphModel, LinkTask, Role
from star_jax.graph.store import GraphStore
from star_jax.parallel.mesh import one_device
from star_jax.pipeline.graph_embedding import Embedder, Sampled, SplitView, Wanted, split_view
from star_jax.pipeline.graph_model import open_trained
from star_jax.pipeline.graph_programs import RowShards, classes
from star_jax.shapes import PyTree


class NodeClassifier:
    """One head under the split rule."""

    def __init__(
        self, model: GraphModel, embedder: Embedder, rows: RowShards, head: NodeHead
    ) -> None:
        """Takes the encoder of the first role that nodes of the type have."""
        self._model, self._embedder, self._rows, self._head = model, embedder, rows, head
        self._role: Role = _role_of(model.tasks, head.task.node_type)

    def prepare(self, view: SplitView, nodes: Int32[np.ndarray, " N"]) -> Sampled:
        """Samples around nodes."""
        return self._embedder.prepare(self._wanted(view, nodes))

    def __call__(self, variables: PyTree, sampled: Sampled) -> Float32[np.ndarray, "N C"]:
        """Probability of every code of the column."""
        vectors = self._embedder(variables, self._role, self._head.task.node_type, sampled)
        return self._classify(variables, np.asarray(vectors.embedding))

    def once(
        self, variables: PyTree, view: SplitView, nodes: Int32[np.ndarray, " N"]
    ) -> Float32[np.ndarray, "N C"]:
        """The same of nodes whose samples nobody needs again."""
        vectors = self._embedder.embed(variables, self._wanted(view, nodes))
        return self._classify(variables, np.asarray(vectors.embedding))

    def _classify(
        self, variables: PyTree, vectors: Float[np.ndarray, "N E"]
    ) -> Float32[np.ndarray, "N C"]:
        """All at once: there are few."""
        size = max(-(-len(vectors) // self._rows.count), 1)
        (group,) = self._rows.groups(len(vectors), size)
        parts = [padded(vectors[group[number]], size) for number in self._rows.own]
        name = self._head.task.name
        found = self._rows.run(classes, self._model, variables, parts, head=name)
        return found.reshape(-1, found.shape[-1])[: len(vectors)]

    def _wanted(self, view: SplitView, nodes: Int32[np.ndarray, " N"]) -> Wanted:
        return Wanted.of_view(view, self._role, self._head.task.node_type, nodes)


def classify(
    workdir: Path, name: str, nodes: Int32[np.ndarray, " N"], *, model: str = "graph_model"
) -> Float32[np.ndarray, "N C"]:
    """Probability of every code of a column, for some nodes, by a trained model.

    Args:
      workdir: Of the run; edges of all splits but test are visible.
      name: `<node type>.<column>` of a node task.
      nodes: By number.
      model: Folder of the model.

    Raises:
      InputError: The model has no such head.
    """
    mesh = one_device()
    trained = open_trained(workdir, model, mesh)
    heads = {head.task.name: head for head in trained.file.heads}
    if name not in heads:
        raise InputError(f"{workdir / model} has no head {name!r}, needed one of {sorted(heads)}")
    rows = RowShards(mesh)
    embedder = Embedder(trained.model, trained.file.sampling, rows)
    classifier = NodeClassifier(trained.model, embedder, rows, heads[name])
    return classifier.once(trained.variables, split_view(trained.store, "val"), nodes)


class HeldOut:
    """The nodes of a head that training leaves out, sampled once."""

    def __init__(
        self,
        model: GraphModel,
        store: GraphStore,
        embedder: Embedder,
        rows: RowShards,
        head: NodeHead,
        *,
        most: int,
    ) -> None:
        """Takes the first of them.

        Args:
          model: What is validated.
          store: The graph; what training may see is visible.
          embedder: Of the model.
          rows: What the nodes are split over.
          head: Names the nodes.
          most: Nodes.
        """
        label = np.asarray(store.categorical[head.task.node_type][:, head.number], np.int64)
        kept = np.asarray(held_out(head.task, np.arange(len(label), dtype=np.int32)))
        nodes = np.flatnonzero(kept & (label > 0))[:most]
        self._label: Int64[np.ndarray, " N"] = label[nodes]
        self._classifier = NodeClassifier(model, embedder, rows, head)
        self._name = head.task.name
        self._sampled = None
        if len(nodes):
            view = split_view(store, "train")
            self._sampled = self._classifier.prepare(view, nodes.astype(np.int32))

    def __call__(self, variables: PyTree) -> dict[str, float]:
        """`accuracy_<name>`, and `commonest_<name>`, that of always guessing the commonest."""
        if self._sampled is None:
            return {}
        found = self._classifier(variables, self._sampled).argmax(axis=1)
        commonest = np.bincount(self._label).max() / len(self._label)
        accuracy = float(np.mean(found == self._label))
        return {f"accuracy_{self._name}": accuracy, f"commonest_{self._name}": float(commonest)}


def _role_of(tasks: tuple[LinkTask, ...], node_type: str) -> Role:
    return next(role for role in ROLES for task in tasks if getattr(task, role) == node_type)
