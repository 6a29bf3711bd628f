"""The features of a graph's nodes as device arrays, and how rows of a batch get theirs."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float32, Int32

from star_jax.graph.batches import HostOrDevice, NodeTable, padded
from star_jax.graph.engines.mesh.exchange import ask
from star_jax.graph.engines.mesh.numbering import Named
from star_jax.graph.engines.mesh.topology import (
    NO_TIME32,
    Place,
    Places,
    local_count,
)
from star_jax.graph.engines.mesh.visibility import Viewers, first_at_least
from star_jax.graph.store import GraphStore, TextVersions

TextPrecision = Literal["float32", "bfloat16", "int8"]
AS_OF = -2  # Show the last version before the group's time; -1 shows none.
_STEPS = 127
_NONE = np.zeros(1, np.int64)
_NO_VERSIONS = TextVersions(_NONE, _NONE[:0], _NONE[:0])


class NodeArrays(NamedTuple):
    """One node type, of one shard or one shard after the other."""

    text_bounds: Int32[HostOrDevice, " N_plus_1"]
    text_time: Int32[HostOrDevice, " V"]
    texts: HostOrDevice  # [V, E] in the precision they are kept in.
    text_scale: Float32[HostOrDevice, " V"]
    categorical: Int32[HostOrDevice, "N C"]
    dense: Float32[HostOrDevice, "N D"]
    seen: Bool[HostOrDevice, " N"]


class _Features(NamedTuple):
    texts: Array  # [Q, E]
    scale: Float32[Array, " Q"]
    has_text: Bool[Array, " Q"]
    categorical: Int32[Array, "Q C"]
    dense: Float32[Array, "Q D"]
    seen: Bool[Array, " Q"]


def place_features(
    store: GraphStore, mesh: Mesh, places: Places, precision: TextPrecision, place: Place
) -> dict[str, NodeArrays]:
    """Puts the features of all types on all devices of a mesh.

    Args:
      store: The graph.
      mesh: The devices.
      places: From `place_edges`: nodes are spread alike.
      precision: Of the text vectors: `int8` keeps a scale per vector, and errors below 1/254 of
        its largest entry.
      place: As in `place_edges`.
    """
    return {
        name: place(_builder(store, name, places, precision), mesh, places.axes)
        for name in store.relations
    }


def tables_of(
    arrays: Mapping[str, NodeArrays],
    nodes: Mapping[str, Named],
    viewers: Viewers,
    seed_type: str,
    seed_version: Int32[Array, " S"],
    *,
    places: Places,
    slack: float,
) -> tuple[dict[str, NodeTable], Int32[Array, ""]]:
    """Features of every row, fetched from the shards of the nodes.

    Args:
      arrays: This device's shard.
      nodes: Rows of each type.
      viewers: The groups of all devices.
      seed_type: Of the seeds.
      seed_version: Per seed the version of its texts that it shows, AS_OF, or -1.
      places: Of the graph.
      slack: As in `ask`.

    Returns:
      The tables; how many rows stayed without their features for want of room in the exchange.
    """
    tables, num_refused, num_shards = {}, jnp.int32(0), places.num_shards
    for name, rows in nodes.items():
        version = jnp.full(rows.node.shape, AS_OF, jnp.int32)
        if name == seed_type:
            version = version.at[: seed_version.shape[0]].set(seed_version)
        shard = arrays[name]

        def answer(question: tuple[Array, Array, Array], shard: NodeArrays = shard) -> _Features:
            node, group, version = question
            time = viewers.time[group]
            return _read(shard, node // num_shards, time, version, places.most_texts)

        found, refused = ask(
            answer,
            jnp.where(rows.real, rows.node % num_shards, num_shards),
            (rows.node, rows.group, version),
            places=places,
            slack=slack,
        )
        num_refused += refused
        tables[name] = _table(rows, found)
    return tables, num_refused


def _table(rows: Named, found: _Features) -> NodeTable:
    text_row = jnp.where(found.has_text, jnp.arange(rows.node.shape[0]), -1)
    texts = found.texts.astype(jnp.float32) * found.scale[:, None]
    return NodeTable(
        node=rows.node,
        mask=rows.real,
        seen=found.seen,
        text_row=text_row.astype(jnp.int32),
        texts=jnp.where(found.has_text[:, None], texts, 0.0),
        categorical=found.categorical,
        dense=found.dense,
    )


def _read(
    shard: NodeArrays,
    local: Int32[Array, " Q"],
    time: Int32[Array, " Q"],
    version: Array,
    most_texts: int,
) -> _Features:
    begin, end = shard.text_bounds[local], shard.text_bounds[local + 1]
    earlier = first_at_least(shard.text_time, begin, end, time, most_texts)
    before = jnp.where(time == NO_TIME32, end, earlier)
    last = jnp.where(before > begin, before - 1, -1)
    chosen = jnp.where(version == AS_OF, last, jnp.where(version < 0, -1, begin + version))
    has_text = (chosen >= 0) & (shard.texts.shape[1] > 0)
    place = jnp.maximum(chosen, 0)
    return _Features(
        texts=shard.texts[place],
        scale=shard.text_scale[place],
        has_text=has_text,
        categorical=shard.categorical[local],
        dense=shard.dense[local],
        seen=shard.seen[local],
    )


def _builder(
    store: GraphStore, name: str, places: Places, precision: TextPrecision
) -> Callable[[int], NodeArrays]:
    """Number of a shard to its arrays of one type."""
    num_shards = places.num_shards
    room = local_count(store.num_nodes[name], num_shards)
    size = store.text_size(name)
    versions = store.text_versions.get(name, _NO_VERSIONS) if size else _NO_VERSIONS
    counts = np.zeros(num_shards * room, np.int64)
    if len(versions.bounds) > 1:
        counts[: store.num_nodes[name]] = np.diff(np.asarray(versions.bounds, np.int64))
    num_versions = max(1, int(counts.reshape(room, num_shards).sum(axis=0).max(initial=0)))

    def rows(values: np.ndarray, number: int) -> np.ndarray:
        return padded(values[number::num_shards], room)

    def shard(number: int) -> NodeArrays:
        own = counts[number::num_shards]
        bounds = np.concatenate([[0], np.cumsum(own)]).astype(np.int32)
        time = np.zeros(num_versions, np.int32)
        vectors = np.zeros((num_versions, size), np.float32)
        if total := int(own.sum()):
            first = np.asarray(versions.bounds, np.int64)[:-1][number::num_shards]
            place = np.repeat(first - bounds[: len(first)], own[: len(first)]) + np.arange(total)
            time[:total] = places.clock(versions.time[place])
            vectors[:total] = store.text_vectors[name][versions.text[place]]
        texts, scale = _kept(vectors, precision)
        return NodeArrays(
            text_bounds=bounds,
            text_time=time,
            texts=texts,
            text_scale=scale,
            categorical=rows(store.categorical[name], number).astype(np.int32),
            dense=rows(store.dense[name], number),
            seen=rows(store.seen(name), number),
        )

    return shard


def _kept(
    vectors: Float32[np.ndarray, "V E"], precision: TextPrecision
) -> tuple[np.ndarray, Float32[np.ndarray, " V"]]:
    ones = np.ones(len(vectors), np.float32)
    if precision == "float32":
        return vectors, ones
    if precision == "bfloat16":
        return vectors.astype(jnp.bfloat16), ones
    largest = np.abs(vectors).max(axis=1, initial=0.0)
    scale = np.where(largest > 0, largest / _STEPS, 1.0).astype(np.float32)
    return np.rint(vectors / scale[:, None]).astype(np.int8), scale
