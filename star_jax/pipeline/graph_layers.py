"""All nodes, or a few, through the encoder one layer at a time; see `star_jax.graph.layerwise`.

Draws, times and texts are those of `Embedder` under the split rule, so that the vectors are its
vectors. Only where a sampled batch meets a node at two hops do they differ: there it has one row,
with the neighbours of the first hop, here those of the hop where it is read. That takes fanouts
which differ from hop to hop and leave out neighbours, and either three layers or neighbours of the
seeds' own type, by a relation or by rank.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int, Int32

from star_jax.config import InputError
from star_jax.graph.batches import Budget, Neighbours, NodeTable, padded
from star_jax.graph.layerwise import State, outputs_of
from star_jax.graph.model import GraphModel, Role
from star_jax.graph.samplers.channels import is_channel
from star_jax.graph.samplers.gather import gather, neighbours_of
from star_jax.graph.samplers.layout import Expansion, Layout, layout_of
from star_jax.graph.samplers.sample import NO_EXCLUSION, Fanouts, expand
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.schema import parse_key
from star_jax.graph.store import GraphMeta
from star_jax.parallel.mesh import one_device
from star_jax.pipeline.ahead import ahead
from star_jax.pipeline.graph_buckets import Bucket, Fanout, Shapes, make_buckets, needs, places
from star_jax.pipeline.graph_embedding import KEY, SplitView, split_view
from star_jax.pipeline.graph_loader import Sampling
from star_jax.pipeline.graph_model import open_trained
from star_jax.pipeline.graph_programs import (
    LayerRows,
    OfPart,
    Rows,
    RowShards,
    ending,
    features,
    layer,
)
from star_jax.shapes import PyTree, check_int32

WhichNeighbours = Literal["fanout", "all"]
Read = Callable[[State, Int32[np.ndarray, " N"]], Float32[np.ndarray, "N D"]]
"""Gives rows of a state by node."""

_FEATURE_ROWS = 1024  # Their texts are wide.
_AHEAD = 2
_FEW = Shapes(most_rows=8, most_slots=1 << 12)


class Counts(NamedTuple):
    """Edges that were real, and the slots that they were padded to."""

    edges: int
    slots: int


class _Stack(NamedTuple):
    """Parts that are computed together, and the places of their nodes among those asked for."""

    places: list[Int[np.ndarray, " n"]]
    parts: list[LayerRows]


class LayerEncoder:
    """States of nodes, made from those before them, and vectors: a program per shape.

    Attributes:
      counts: Of all layers so far.
    """

    def __init__(
        self,
        model: GraphModel,
        variables: PyTree,
        sampling: Sampling,
        view: SplitView,
        rows: Rows,
        *,
        neighbours: WhichNeighbours,
        shapes: Shapes,
    ) -> None:
        """Compiles nothing yet.

        Args:
          model: The link model.
          variables: Of the model.
          sampling: How neighbours were drawn for it.
          view: The graph.
          rows: Where batches go, one to each part; all of this process.
          neighbours: "all": each that is visible, over the relations that the fanouts follow.
          shapes: Of the batches.

        Raises:
          InputError: All neighbours are asked for of a sampler that ranks over relations.
        """
        self._model, self._variables, self._view, self._rows = model, variables, view, rows
        self._neighbours: WhichNeighbours = neighbours
        self._sampling, self._shapes = sampling, shapes
        self._sampler = _sampler(sampling.sampler, neighbours)
        self.counts = Counts(0, 0)
        self._buckets: dict[tuple[str, Fanout], list[Bucket]] = {}

    @property
    def width(self) -> int:
        """Of a row of a state."""
        return self._model.config.encoder.dim

    def outputs(self, role: Role, node_type: str) -> tuple[State, ...]:
        """What `vectors` reads of nodes of a type."""
        fanouts = _fanouts(
            self._sampling.of(role), self._view.store.meta, self._sampler, self._neighbours
        )
        return outputs_of(self._model, role, node_type, fanouts)

    def rows(
        self, state: State, nodes: Int32[np.ndarray, " N"], read: Read
    ) -> Float32[np.ndarray, "N D"]:
        """The rows of some nodes in a state.

        Args:
          state: From `outputs`, or one that such a state is made of.
          nodes: Of its type.
          read: Gives the rows of the states that it is made of.
        """
        found = np.empty((len(nodes), self.width), np.float32)
        if state.own is None:
            name = state.node_type
            for group in self._rows.groups(len(nodes), _FEATURE_ROWS):
                tables = [self._node_table(name, nodes[part]) for part in group]
                made = self._run(features, tables, node_type=name)
                for part, rows in zip(group, made, strict=True):
                    found[part] = rows[: part.stop - part.start]
            return found
        of_layer = {"role": state.role, "number": state.layer - 1, "node_type": state.node_type}
        with ahead(self._batches(state, state.own, nodes, read), _AHEAD) as sampled:
            for batches in sampled:
                made = self._run(layer, batches.parts, **of_layer)
                for place, rows in zip(batches.places, made[: len(batches.places)], strict=True):
                    found[place] = rows[: len(place)]
        return found

    def bucketed(
        self, state: State, nodes: Int32[np.ndarray, " N"]
    ) -> Iterator[tuple[Bucket, Int[np.ndarray, " n"]]]:
        """Shapes of batches, each with the places of those of the nodes that it holds."""
        buckets = self._buckets_of(state)
        store, splits = self._view.store, self._view.splits
        needed = needs(store, state.node_type, state.fanout, self._sampler, splits, nodes)
        number = places(needed, state.fanout, buckets)
        for i, bucket in enumerate(buckets):
            if len(here := np.flatnonzero(number == i)):
                yield bucket, here

    def vectors(
        self, role: Role, node_type: str, outputs: Sequence[Float32[np.ndarray, "N D"]]
    ) -> Float32[np.ndarray, "N E"]:
        """Embeddings of nodes from their rows in the states of `outputs`."""
        total, size = outputs[-1].shape
        found = np.empty((total, size), np.float32)
        block = self._shapes.most_rows
        for group in self._rows.groups(total, block):
            parts = [[padded(rows[part], block) for rows in outputs] for part in group]
            made = self._run(ending, parts, role=role, node_type=node_type)
            for part, rows in zip(group, made, strict=True):
                found[part] = rows[: part.stop - part.start]
        return found

    def release(self) -> None:
        """Lets go of what was read of the graph's files."""
        self._view.store.release()

    def _run(
        self, of_part: OfPart, parts: Sequence[PyTree], **static: object
    ) -> Float32[np.ndarray, "parts N D"]:
        return self._rows.run(of_part, self._model, self._variables, parts, **static)

    def _node_table(self, node_type: str, nodes: Int32[np.ndarray, " n"]) -> NodeTable:
        """Features of nodes as the view shows them."""
        size = _FEATURE_ROWS
        num_texts = size if node_type in self._view.store.text_vectors else 0
        budget = Budget(rows=((node_type, (size,)),), fanout=(), texts=((node_type, num_texts),))
        layout = layout_of(budget)
        expansion = self._expand(layout, node_type, nodes, {})
        time = np.asarray([self._view.time], np.int64)
        subgraph, _ = gather(self._view.store, budget, layout, expansion, time, None)
        return subgraph.nodes[node_type]

    def _batches(
        self, state: State, before: State, nodes: Int32[np.ndarray, " N"], read: Read
    ) -> Iterator[_Stack]:
        """Nodes that need about as many neighbours together."""
        for bucket, here in self.bucketed(state, nodes):
            for group in self._rows.groups(len(here), bucket.num_rows):
                filled = [here[part] for part in group if part.stop > part.start]
                parts = [
                    self._part(state, bucket, nodes[place], read(before, nodes[place]), read)
                    for place in filled
                ]
                empty = jax.tree.map(np.zeros_like, parts[0])
                yield _Stack(filled, parts + [empty] * (len(group) - len(parts)))

    def _part(
        self,
        state: State,
        bucket: Bucket,
        nodes: Int32[np.ndarray, " n"],
        own: Float32[np.ndarray, "n D"],
        read: Read,
    ) -> LayerRows:
        """What the next rows of nodes are made of; their own ones come along."""
        expansion = self._expand(bucket.layout, state.node_type, nodes, bucket.fanout)
        assert not expansion.dropped.any(), "a bucket has room for all neighbours"
        tables = neighbours_of(bucket.layout, expansion.slots)[0]
        senders = _senders(state, bucket.layout, expansion, tables, read)
        edges = int(expansion.slots.mask.sum())
        self.counts = Counts(self.counts.edges + edges, self.counts.slots + bucket.num_slots)
        return LayerRows(padded(own, bucket.num_rows), senders, tables)

    def _buckets_of(self, state: State) -> list[Bucket]:
        kind = (state.node_type, state.fanout)
        if kind not in self._buckets:
            self._buckets[kind] = make_buckets(
                self._view.store, *kind, self._sampler, self._view.splits, self._shapes
            )
        return self._buckets[kind]

    def _expand(
        self,
        layout: Layout,
        node_type: str,
        nodes: Int32[np.ndarray, " n"],
        fanout: Mapping[str, int],
    ) -> Expansion:
        return expand(
            self._view.store,
            layout,
            seed_type=node_type,
            seeds=nodes,
            groups=np.zeros(len(nodes), np.int32),
            group_time=np.asarray([self._view.time], np.int64),
            exclude=NO_EXCLUSION,
            visible_splits=self._view.splits,
            fanouts={key: (count,) for key, count in fanout.items()},
            key=KEY,
            seed_text_row=None,
            sampler=self._sampler,
            use_time=False,
        )


class NodeEmbedder:
    """Vectors of a few nodes whenever they are asked for, by the program of the all-node export.

    No row is kept between calls: the neighbourhood is computed anew, state by state. The first
    call for a type compiles, and reads the degrees of all nodes that it may meet.
    """

    def __init__(
        self,
        model: GraphModel,
        variables: PyTree,
        sampling: Sampling,
        view: SplitView,
        *,
        neighbours: WhichNeighbours,
        shapes: Shapes = _FEW,
    ) -> None:
        """As `LayerEncoder`, in batches of few nodes, on the first device."""
        rows = RowShards(one_device())
        self._encoder = LayerEncoder(
            model, variables, sampling, view, rows, neighbours=neighbours, shapes=shapes
        )

    @classmethod
    def open(
        cls,
        workdir: Path,
        *,
        model: str = "graph_model",
        visible: str = "val",
        neighbours: WhichNeighbours = "fanout",
    ) -> "NodeEmbedder":
        """The trained model of a working directory.

        Args:
          workdir: Holds the tables, the graph, the text vectors and the model.
          model: Folder of the model.
          visible: As in `GraphExportConfig`, like `neighbours`.

        Raises:
          InputError: As `open_trained` and `LayerEncoder`.
        """
        trained = open_trained(workdir, model, one_device())
        view = split_view(trained.store, visible)
        sampling = trained.file.sampling
        return cls(trained.model, trained.variables, sampling, view, neighbours=neighbours)

    def __call__(
        self, role: Role, node_type: str, nodes: Int[np.ndarray, " N"]
    ) -> Float32[np.ndarray, "N E"]:
        """One vector per node, as a role's encoder embeds it.

        Args:
          role: Whose encoder.
          node_type: Of the nodes.
          nodes: Indices; they may repeat.
        """
        asked = check_int32("nodes", nodes)
        outputs = self._encoder.outputs(role, node_type)
        rows = [self._rows(state, asked) for state in outputs]
        return self._encoder.vectors(role, node_type, rows)

    def _rows(self, state: State, nodes: Int32[np.ndarray, " N"]) -> Float32[np.ndarray, "N D"]:
        distinct, place = np.unique(nodes, return_inverse=True)
        return self._encoder.rows(state, distinct, self._rows)[place.reshape(-1)]


def _sampler(sampler: SamplerConfig, neighbours: WhichNeighbours) -> SamplerConfig:
    if neighbours == "fanout":
        return sampler
    if sampler.by_rank:
        raise InputError(
            f"neighbours 'all' takes every relation whole, and the model's sampler.kind is "
            f"{sampler.kind!r}, which ranks nodes over all relations; needed 'fanout'"
        )
    return dataclasses.replace(sampler, kind="full", replace=False)


def _fanouts(
    fanouts: Fanouts, meta: GraphMeta, sampler: SamplerConfig, neighbours: WhichNeighbours
) -> Fanouts:
    """No more than the largest degrees, so that hops which draw all there is are seen to be alike.

    Relations that a hop does not follow stay at 0: the model was not trained on them there.
    """

    def drawn(key: str, count: int) -> int:
        if is_channel(key):
            return count
        most = meta.max_degree[key]
        if neighbours == "all":
            return most if count else 0
        return count * (most > 0) if sampler.replace else min(count, most)

    return {key: tuple(drawn(key, n) for n in hops) for key, hops in fanouts.items()}


def _senders(
    state: State,
    layout: Layout,
    expansion: Expansion,
    tables: Mapping[str, Neighbours],
    read: Read,
) -> dict[str, np.ndarray]:
    """Rows of all nodes that some edge comes from, where the tables point."""
    senders: dict[str, np.ndarray] = {}
    for before in state.senders:
        name = before.node_type
        into = [table for key, table in tables.items() if parse_key(key)[0] == name]
        if not into:
            continue
        number = layout.types.index(name)
        base, num_rows = int(layout.base[number]), int(layout.sizes[number].sum())
        met = np.zeros(num_rows, np.bool_)
        for table in into:
            met[table.index[table.mask]] = True
        found = read(before, expansion.rows.node[base : base + num_rows][met])
        senders[name] = np.zeros((num_rows, found.shape[1]), np.float32)
        senders[name][met] = found
    return senders
