"""From sampled rows and slots to a `Subgraph`: features, texts as of the time, table views."""

import numpy as np
from jaxtyping import Bool, Int

from star_jax.graph.batches import Budget, Neighbours, NodeTable, Subgraph
from star_jax.graph.samplers import kernels, search
from star_jax.graph.samplers.layout import Expansion, Layout, Table
from star_jax.graph.samplers.memory import POOL
from star_jax.graph.store import GraphStore


def known_texts(
    store: GraphStore,
    node_type: str,
    seeds: Int[np.ndarray, " S"],
    times: Int[np.ndarray, " S"],
    seed_text_row: Int[np.ndarray, " S"] | None,
) -> Bool[np.ndarray, " S"]:
    """Which seeds read the text that anyone in their group may read of them.

    An event may point to a text of its own time. Met as a neighbour, the node shows its last
    version before the group's time, so a seed whose texts differ keeps its row to itself.
    """
    if seed_text_row is None:
        return np.ones(len(seeds), np.bool_)
    return _as_of(store, node_type, seeds, times) == seed_text_row


def gather(
    store: GraphStore,
    budget: Budget,
    layout: Layout,
    expansion: Expansion,
    group_time: Int[np.ndarray, " G"],
    pointed: tuple[str, np.ndarray] | None,
) -> tuple[Subgraph, dict[str, int]]:
    """Reads the features of every real row.

    Args:
      store: The graph.
      budget: Sizes of the text tables.
      layout: Of the budget.
      expansion: What was sampled.
      group_time: As of when texts are read.
      pointed: Seed type and the text each seed is given.

    Returns:
      The subgraph; per node type, how many rows lost their text for want of room.
    """
    nodes: dict[str, NodeTable] = {}
    dropped: dict[str, int] = {}
    capacities = dict(budget.texts)
    for i, name in enumerate(layout.types):
        base, num_rows = int(layout.base[i]), int(layout.sizes[i].sum())
        node = expansion.rows.node[base : base + num_rows]
        real = expansion.real_rows(layout, i)
        mask = np.zeros(num_rows, np.bool_)
        mask[real] = True
        times = group_time[expansion.rows.group[base + real]]
        text = texts_of(store, name, node[real], times, pointed)
        capacity = capacities.get(name, 0)
        number, distinct, dropped[name] = search.number(text, capacity)
        text_row = np.full(num_rows, -1, np.int32)
        text_row[real] = number
        seen = np.zeros(num_rows, np.bool_)
        seen[real] = store.seen(name)[node[real]]
        nodes[name] = NodeTable(
            node=node,
            mask=mask,
            seen=seen,
            text_row=text_row,
            texts=_vectors(store, name, distinct, capacity),
            categorical=_features(store.categorical[name], node, real),
            dense=_features(store.dense[name], node, real),
        )
    return Subgraph(nodes, neighbours_of(layout, expansion.slots)), dropped


def neighbours_of(layout: Layout, slots: kernels.Slots) -> tuple[dict[str, Neighbours], ...]:
    """The neighbour tables of every hop, as views of the slots."""
    return tuple(
        {table.key: _neighbours(table, slots) for table in tables} for tables in layout.hops
    )


def _neighbours(table: Table, slots: kernels.Slots) -> Neighbours:
    end = table.start + table.num_rows * table.width
    shape = (table.num_rows, table.width)
    return Neighbours(*(part[table.start : end].reshape(shape) for part in slots))


def texts_of(
    store: GraphStore,
    node_type: str,
    nodes: Int[np.ndarray, " R"],
    times: Int[np.ndarray, " R"],
    pointed: tuple[str, np.ndarray] | None,
) -> Int[np.ndarray, " R"]:
    """Text of every real row, -1 where there is none or text features are off."""
    if node_type not in store.text_vectors:
        return np.full(len(nodes), -1, np.int32)
    text = _as_of(store, node_type, nodes, times)
    if pointed is not None and pointed[0] == node_type:
        text[: len(pointed[1])] = pointed[1]
    return text


def _as_of(
    store: GraphStore, node_type: str, nodes: np.ndarray, times: np.ndarray
) -> Int[np.ndarray, " R"]:
    if node_type not in store.text_versions:
        return np.full(len(nodes), -1, np.int32)
    versions = store.text_versions[node_type]
    return search.texts_as_of(
        versions.bounds, versions.time, versions.text, nodes, times.astype(np.int64)
    )


def _vectors(store: GraphStore, node_type: str, distinct: np.ndarray, capacity: int) -> np.ndarray:
    """The vectors of texts, or their numbers where the store has those, zeros behind them."""
    if node_type not in store.text_vectors:
        return np.zeros((capacity, 0), np.float32)
    source = store.text_vectors[node_type]
    dtype = np.int32 if source.dtype == np.int32 else np.float32
    texts = POOL.empty((capacity, source.shape[1]), dtype)
    texts[: len(distinct)] = source[distinct]
    texts[len(distinct) :] = 0
    return texts


def _features(source: np.ndarray, node: np.ndarray, real: np.ndarray) -> np.ndarray:
    features = POOL.zeros((len(node), source.shape[1]), source.dtype)
    if source.shape[1]:
        features[real] = source[node[real]]
    return features
