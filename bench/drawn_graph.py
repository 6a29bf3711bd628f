"""Graphs in the proportions of the paper's Tables 10 and 11, drawn at random."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from star_jax import artefacts
from star_jax.config import to_json
from star_jax.graph.schema import EdgeType, GraphSchema, NodeType, parse_key
from star_jax.graph.store import HAS_TIME, Adjacency, GraphMeta, GraphStore
from star_jax.shapes import NO_TIME

# Millions, from Tables 10 and 11 of the paper.
NODES = {
    "member": 376.0,
    "job": 240.0,
    "position": 121.0,
    "company": 19.0,
    "project": 6.0,
    "recruiter": 0.596,
    "skill": 0.042,
    "title": 0.025,
}
RELATIONS = {
    "job__has__title": 417.0,
    "job__at__company": 370.0,
    "member__has__title": 568.0,
    "member__at__company": 462.0,
    "member__current__position": 553.0,
    "member__apply__job": 2722.0,
    "job__has__skill": 3977.0,
    "job__has__position": 358.0,
    "member__has__skill": 1247.0,
    "member__past__position": 15.0,
    "member__save__job": 724.0,
    "member__answers__recruiter": 171.0,
    "recruiter__contacts__member": 92.0,
    "member__in__project": 582.0,
}
TIMED = ("apply", "save", "answers", "contacts")
SPAN = 1_000_000  # Times are drawn from as many.
LEAST_NODES = 8  # Of a type, however small the graph.


def schema_of(relations: tuple[str, ...], share: float, least: int) -> GraphSchema:
    """Some of the paper's relations and their types, with a share of its nodes."""
    ends = {end for key in relations for end in key.split("__")[::2]}
    counts = {
        name: max(least, round(1e6 * millions * share))
        for name, millions in NODES.items()
        if name in ends
    }
    return GraphSchema(
        nodes={
            name: NodeType(count=count, categorical={}, dense=()) for name, count in counts.items()
        },
        edges=tuple(
            EdgeType(
                sender=sender,
                relation=relation,
                receiver=receiver,
                kind="interaction" if relation in TIMED else "attribute",
            )
            for sender, relation, receiver in (key.split("__") for key in relations)
        ),
    )


class Edges(NamedTuple):
    """One relation, as its sender type sees it."""

    sender: Int32[np.ndarray, " M"]
    receiver: Int32[np.ndarray, " M"]
    time: Int64[np.ndarray, " M"]


def make_graph(
    folder: Path,
    num_edges: int,
    *,
    relations: tuple[str, ...] = tuple(RELATIONS),
    least: int = LEAST_NODES,
    text_types: tuple[str, ...] = (),
) -> GraphStore:
    """Draws a graph and writes it as `star build-graph` does, without its tables.

    Args:
      folder: To write.
      num_edges: Before their reverses.
      relations: Keys of those that are drawn, in the paper's proportions.
      least: Nodes of a type, however small the graph.
      text_types: Node types whose nodes have one text each, of their own number. The store is
        opened without vectors.
    """
    share = num_edges / (1e6 * sum(RELATIONS[key] for key in relations))
    schema = schema_of(relations, share, least)
    rng = np.random.default_rng(0)
    edges = {}
    for edge in schema.edges:
        size = round(1e6 * RELATIONS[edge.key] * share)
        sender, receiver = (
            rng.integers(0, schema.nodes[name].count, size, dtype=np.int32)
            for name in (edge.sender, edge.receiver)
        )
        timed = edge.relation in TIMED
        times = rng.integers(0, SPAN, size) if timed else np.full(size, NO_TIME, np.int64)
        edges[edge.key] = Edges(sender, receiver, times)
    sizes: dict[str, Int64[np.ndarray, " N"]] = {}
    with artefacts.writing(folder, "graph") as partial:
        for name, node in schema.nodes.items():
            _write_nodes(partial / "nodes" / name, node.count, has_texts=name in text_types)
            sizes |= _write_adjacency(partial / "edges" / name, name, schema, edges)
        meta = dataclasses.replace(
            meta_of(schema, {key: int(np.quantile(d, 0.99)) for key, d in sizes.items()}),
            num_texts={name: schema.nodes[name].count for name in text_types},
            num_edges={key: int(degrees.sum()) for key, degrees in sizes.items()},
            max_degree={key: int(degrees.max()) for key, degrees in sizes.items()},
            traits={key: _traits(key) for key in sizes},
        )
        artefacts.set_meta(partial, json.loads(to_json(meta)))
    return GraphStore.open(folder, None)


def meta_of(schema: GraphSchema, wide_degree: dict[str, int]) -> GraphMeta:
    """Of a graph that has no edges yet: what shares a fanout out over its relations."""
    return GraphMeta(
        version="drawn",
        schema=schema,
        time_unit="ordinal",
        age_unit=1.0,
        dense_stats={},
        text_kind={},
        num_texts={},
        num_edges=dict.fromkeys(wide_degree, 0),
        wide_degree=wide_degree,
        max_degree={},
        traits={},
        signals={},
        lineage=(),
    )


def _write_nodes(folder: Path, count: int, *, has_texts: bool) -> None:
    folder.mkdir(parents=True)
    if has_texts:
        (folder / "texts").mkdir()
        np.save(folder / "texts" / "bounds.npy", np.arange(count + 1))
        np.save(folder / "texts" / "time.npy", np.full(count, NO_TIME, np.int64))
        np.save(folder / "texts" / "text.npy", np.arange(count, dtype=np.int32))
    np.save(folder / "time.npy", np.full(count, NO_TIME, np.int64))
    np.save(folder / "categorical.npy", np.zeros((count, 0), np.int32))
    np.save(folder / "dense.npy", np.zeros((count, 0), np.float32))


def _write_adjacency(
    folder: Path, receiver: str, schema: GraphSchema, edges: dict[str, Edges]
) -> dict[str, Int64[np.ndarray, " N"]]:
    """All relations into one type, node-major; the degrees by edge key."""
    folder.mkdir(parents=True)
    relations = schema.into(receiver)
    ends = [_towards(relation, schema, edges) for relation in relations]
    count = schema.nodes[receiver].count
    degrees = np.stack([np.bincount(e.receiver, minlength=count) for e in ends], axis=1)
    stops = np.cumsum(degrees.reshape(-1)).reshape(degrees.shape)
    bounds = np.concatenate([stops[:, :1] - degrees[:, :1], stops], axis=1)
    total = int(degrees.sum())
    arrays = {
        "sender": np.empty(total, np.int32),
        "time": np.empty(total, np.int64),
        "weight": np.ones(total, np.float32),
        "flags": np.full(total, 1, np.uint8),
        "removed": np.zeros(0, np.int64),
        "cumulative": np.zeros(0, np.float64),
        "bounds": bounds.astype(np.int32),
    }
    for j, each in enumerate(ends):
        order = np.lexsort((each.time, each.receiver))
        before = np.cumsum(degrees[:, j]) - degrees[:, j]
        place = np.repeat(bounds[:, j] - before, degrees[:, j]) + np.arange(len(order))
        arrays["sender"][place] = each.sender[order]
        arrays["time"][place] = each.time[order]
    for name in Adjacency._fields:
        np.save(folder / f"{name}.npy", arrays[name])
    return {relation.key: degrees[:, j] for j, relation in enumerate(relations)}


def _traits(key: str) -> int:
    """All edges are of split 1, without removals and weights."""
    is_timed = parse_key(key)[1].removeprefix("rev_") in TIMED
    return 1 << 1 | (HAS_TIME if is_timed else 0)


def _towards(relation: EdgeType, schema: GraphSchema, edges: dict[str, Edges]) -> Edges:
    if relation in schema.edges:
        return edges[relation.key]
    forward = edges[relation.reverse.key]
    return Edges(forward.receiver, forward.sender, forward.time)
