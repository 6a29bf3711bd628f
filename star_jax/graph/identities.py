"""Identity tables: which of their rows a node reads, and which of them a batch reads.

A type has a row per node. Where that are too many, a node has the sum of two rows instead, which
two hashes of its number choose (double hashing, Zhang et al. 2020, arXiv 2007.14523): of two nodes
that share one row, few share both.
"""

import math
import zlib
from collections.abc import Mapping
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from star_jax.graph.batches import HostOrDevice, NodeTable, PairBatch, Subgraph
from star_jax.graph.features import FeatureConfig, NodeFeatures
from star_jax.shapes import PyTree

TABLES = r"features_[^/]*/identity_embedding|match/signature_.*"
"""Paths of the parameters that have identities for rows."""

ROW_MULTIPLE = 128
"""Tables that are updated by rows have a multiple of so many, which any usual mesh divides."""

_NUM_HASHES = 2
_ROLES = ("sender", "receiver")

_Subgraphs: TypeAlias = dict[tuple[str, str], Subgraph]  # By task and role.


def num_rows(config: FeatureConfig, num_nodes: int) -> int:
    """Rows of the identity tables of a type of so many nodes; fewer than nodes: they are hashed."""
    rows = num_nodes if config.identity_rows is None else min(num_nodes, config.identity_rows)
    if config.identity_update == "dense":
        return rows
    return ROW_MULTIPLE * math.ceil(rows / ROW_MULTIPLE)


def read_rows(features: NodeFeatures, node: Int[HostOrDevice, "*R"]) -> Int[Array, "*R reads"]:
    """Rows that nodes read: their own, or without enough of them two that hashes choose."""
    node = jnp.asarray(node)
    if not features.hashed:
        return node[..., None]
    numbers = node.astype(jnp.uint32)
    salts = [zlib.crc32(f"{features.node_type} {number}".encode()) for number in range(_NUM_HASHES)]
    hashes = jnp.stack([hashed(numbers ^ jnp.uint32(salt)) for salt in salts], axis=-1)
    return (hashes % jnp.uint32(features.num_identities)).astype(jnp.int32)


def with_rows(subgraph: Subgraph, features: tuple[NodeFeatures, ...]) -> Subgraph:
    """The subgraph whose nodes name their rows where those are not their numbers."""
    nodes = dict(subgraph.nodes)
    for each in features:
        if each.node_type in nodes:
            nodes[each.node_type] = name_rows(nodes[each.node_type], each)
    return subgraph._replace(nodes=nodes)


def name_rows(nodes: NodeTable, features: NodeFeatures) -> NodeTable:
    """As `with_rows`, of one type."""
    if not features.hashed or nodes.identity is not None:
        return nodes
    return nodes._replace(identity=read_rows(features, nodes.node))


def batch_rows(
    tasks: Mapping[str, PairBatch], features: tuple[NodeFeatures, ...]
) -> tuple[dict[str, PairBatch], dict[str, Int[Array, " U"]]]:
    """Which rows the real nodes of a batch read, each once.

    Args:
      tasks: Pairs by task, with or without leading axes.
      features: Of every node type.

    Returns:
      The pairs, whose nodes name their rows by where these stand among those that are read; and
      per node type with identities the rows, ascending, padded with the number of its rows.
    """
    subgraphs: _Subgraphs = {
        (name, role): getattr(pairs, role) for name, pairs in tasks.items() for role in _ROLES
    }
    rows = {}
    for each in features:
        if each.num_identities:
            subgraphs, rows[each.node_type] = _renumbered(subgraphs, each)
    renumbered = {
        name: pairs._replace(**{role: subgraphs[name, role] for role in _ROLES})
        for name, pairs in tasks.items()
    }
    return renumbered, rows


def by_table(rows: Mapping[str, Int[Array, " U"]], *, signatures: bool) -> PyTree:
    """Rows by node type as a tree like the parameters that `TABLES` matches.

    Args:
      rows: From `batch_rows`.
      signatures: Whether the model has a match part.
    """
    tables: PyTree = {
        f"features_{name}": {"identity_embedding": which} for name, which in rows.items()
    }
    if signatures and rows:
        tables["match"] = {f"signature_{name}": which for name, which in rows.items()}
    return tables


def _renumbered(
    subgraphs: _Subgraphs, features: NodeFeatures
) -> tuple[_Subgraphs, Int[Array, " U"]]:
    name, none = features.node_type, features.num_identities
    met = {at: each.nodes[name] for at, each in subgraphs.items() if name in each.nodes}
    reads = [
        jnp.where(jnp.asarray(nodes.mask)[..., None], read_rows(features, nodes.node), none)
        for nodes in met.values()
    ]
    padding = jnp.full(1, none, jnp.int32)  # So that there is a row for what is not real.
    flat = jnp.concatenate([padding, *(each.reshape(-1) for each in reads)])
    rows, place = jnp.unique(
        flat, return_inverse=True, size=min(flat.size, none + 1), fill_value=none
    )
    places = jnp.split(place[1:], np.cumsum([each.size for each in reads])[:-1]) if reads else []
    changed = dict(subgraphs)
    for (at, nodes), read, of_table in zip(met.items(), reads, places, strict=True):
        table = nodes._replace(identity=of_table.reshape(read.shape))
        changed[at] = changed[at]._replace(nodes=changed[at].nodes | {name: table})
    return changed, rows


def hashed(x: UInt32[Array, "*_"]) -> UInt32[Array, "*_"]:
    """The finaliser of MurmurHash3: every bit of the result depends on all bits of x."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
