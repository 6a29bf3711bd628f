"""What every signal costs: bytes of the graph on disk, parameters of the model, edges."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from star_jax import trees
from star_jax.graph.append import contents_of
from star_jax.graph.arrays import file_bytes
from star_jax.graph.build_edges import Contents, adjacency_bytes
from star_jax.graph.features import NodeFeatures
from star_jax.graph.heads import NodeHead
from star_jax.graph.model import init_model
from star_jax.graph.schema import PPR, parse_key
from star_jax.graph.store import GraphStore
from star_jax.pipeline.graph_model import GraphModelFile
from star_jax.pipeline.signals import Chosen, Signals, choose, without_each
from star_jax.pipeline.tables.read import TablesMeta


class Cost(NamedTuple):
    """Of a graph and a model, or of what one signal adds to those of the others."""

    num_edges: int  # Without their reverses.
    num_bytes: int  # Of the graph's files, its manifest apart.
    num_parameters: int


def costs(
    manifest: Signals, meta: TablesMeta, store: GraphStore, file: GraphModelFile
) -> tuple[Cost, dict[str, Cost]]:
    """The cost of all signals together, and what each adds to all others.

    Nothing is built or trained: sizes follow from the graph that holds all signals. What several
    signals need, an end of their edges or a column of removal times, is no cost of one of them:
    the parts do not add up to the whole.

    Args:
      manifest: The signals.
      meta: Of the tables.
      store: The graph of all signals.
      file: The model of that graph.
    """
    found = {
        relation.key: each
        for name, relations in store.relations.items()
        for relation, each in zip(relations, contents_of(store.adjacency[name]), strict=True)
    }

    def cost(signals: Signals) -> Cost:
        chosen = choose(signals, meta)
        return Cost(
            num_edges=sum(store.meta.num_edges[edge.key] for edge in chosen.schema.edges),
            num_bytes=_graph_bytes(store, found, chosen),
            num_parameters=_num_parameters(file, chosen),
        )

    whole = cost(manifest)
    return whole, {
        name: Cost(*(a - b for a, b in zip(whole, cost(others), strict=True)))
        for name, others in without_each(manifest).items()
    }


def _graph_bytes(store: GraphStore, found: dict[str, Contents], chosen: Chosen) -> int:
    """Bytes of the arrays and ids as `build` would write them."""
    total = 0
    for name, node in chosen.schema.nodes.items():
        rows = node.count
        total += (store.folder / "nodes" / name / "ids.parquet").stat().st_size
        total += file_bytes(np.dtype(np.int64), (rows,))
        total += file_bytes(np.dtype(np.int32), (rows, len(node.categorical)))
        total += file_bytes(np.dtype(np.float32), (rows, 2 * len(node.dense)))
        if name in chosen.texts:
            versions = len(store.text_versions[name].text)
            total += file_bytes(np.dtype(np.int64), (versions,))
            total += file_bytes(np.dtype(np.int32), (versions,))
            total += file_bytes(np.dtype(np.int32), (rows + 1,))
        into = [found[relation.key] for relation in chosen.schema.into(name)]
        total += adjacency_bytes(into, rows)
    return total


def _num_parameters(file: GraphModelFile, chosen: Chosen) -> int:
    """Parameters of the model that the same config makes of a part of the graph."""
    nodes = chosen.schema.nodes
    relations = {edge.key for edge in chosen.schema.all_edges()}
    heads = tuple(
        dataclasses.replace(head, number=list(nodes[head.task.node_type].categorical).index(column))
        for head in file.heads
        for column in [head.task.column]
        if column in nodes[head.task.node_type].categorical
    )
    left = dataclasses.replace(
        file,
        heads=heads,
        features=tuple(
            _left(each, chosen, heads) for each in file.features if each.node_type in nodes
        ),
        keys=tuple(key for key in file.keys if key in relations or _is_channel(key, chosen)),
    )
    params, _ = jax.eval_shape(lambda: init_model(left.build(), 0))
    return trees.count(params)


def _is_channel(key: str, chosen: Chosen) -> bool:
    sender, relation, receiver = parse_key(key)
    return relation == PPR and {sender, receiver} <= chosen.schema.nodes.keys()


def _left(features: NodeFeatures, chosen: Chosen, heads: tuple[NodeHead, ...]) -> NodeFeatures:
    """What is left of a type's features; those that the config switches off stay so."""
    name = features.node_type
    node = chosen.schema.nodes[name]
    return dataclasses.replace(
        features,
        text_size=features.text_size if name in chosen.texts else 0,
        cardinalities=tuple(node.categorical.values()) if features.cardinalities else (),
        dense_size=2 * len(node.dense) if features.dense_size else 0,
        predicted=tuple(head.number for head in heads if head.task.node_type == name),
    )
