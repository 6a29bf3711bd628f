"""Reads what `star import` wrote: nodes, edges, texts, pairs, rankings and their description."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int8, Int32, Int64
from pydantic import TypeAdapter

from star_jax.artefacts import read_manifest
from star_jax.shapes import NO_TIME

KIND = "tables"  # Artefact kind of the folder.
SPLITS = ("train", "val", "test")
SPLIT_CODES: Mapping[str, int] = {"always": 0, "train": 1, "val": 2, "test": 3}


@dataclass(frozen=True, kw_only=True)
class NodeMeta:
    """One node type; `categorical` maps a column to its number of codes, missing included."""

    count: int
    categorical: dict[str, int]
    dense: list[str]
    has_texts: bool
    has_time: bool


@dataclass(frozen=True, kw_only=True)
class EdgeMeta:
    """One edge type."""

    sender: str
    relation: str
    receiver: str
    kind: Literal["interaction", "attribute"]
    count: int
    has_time: bool
    has_split: bool

    @property
    def name(self) -> str:
        """The file's stem, `sender__relation__receiver`."""
        return f"{self.sender}__{self.relation}__{self.receiver}"


@dataclass(frozen=True, kw_only=True)
class TaskMeta:
    """One link objective.

    Attributes:
      edge_types: Names of the edge types that hold the supervised link itself. Both of their
        directions stay out of message passing between an example's two ends.
      negatives: Kinds of negatives among the val and test pairs.
      counts: Per split: "positives", one entry per kind of negative, "queries", "candidates".
      class_weights: Weight of a negative and of a positive pair in the loss.
    """

    sender: str
    receiver: str
    edge_types: list[str]
    negatives: list[str]
    counts: dict[str, dict[str, int]]
    class_weights: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class TablesMeta:
    """What a tables folder says about itself.

    Attributes:
      tasks: In the schema's order: the first one is the main task.
      cohorts: Columns `cohort_<name>` of the first task's sender; for reports only.
      reference: Numbers that came with the data set, by its own protocol.
      import_report: Counts of what was excluded, repaired or worth knowing.
    """

    dataset: str
    time_unit: Literal["unix_s", "ordinal"]
    node_types: dict[str, NodeMeta]
    edge_types: list[EdgeMeta]
    tasks: dict[str, TaskMeta]
    cohorts: list[str]
    reference: dict[str, Any] | None
    import_report: dict[str, Any]


class PairTable(NamedTuple):
    """Labelled pairs of one task and split; a positive and its negatives share `group`.

    `t` is `NO_TIME` where the time is unknown, a text is -1 where there is none as of `t`,
    `true_logit` is NaN where nothing was planted.
    """

    sender: Int32[np.ndarray, " B"]
    receiver: Int32[np.ndarray, " B"]
    label: Int8[np.ndarray, " B"]
    negative: np.ndarray
    t: Int64[np.ndarray, " B"]
    group: Int32[np.ndarray, " B"]
    sender_text: Int32[np.ndarray, " B"]
    sender_resume: Int32[np.ndarray, " B"]
    receiver_text: Int32[np.ndarray, " B"]
    warm_sender: Bool[np.ndarray, " B"]
    warm_receiver: Bool[np.ndarray, " B"]
    true_logit: Float32[np.ndarray, " B"]
    slice: np.ndarray


class Ranking(NamedTuple):
    """Queries (one row per sender) and the receivers that each of them has to order.

    `relevant` and `excluded` hold receivers, one array per query; `candidates` are receivers too.
    """

    sender: Int32[np.ndarray, " Q"]
    t: Int64[np.ndarray, " Q"]
    sender_text: Int32[np.ndarray, " Q"]
    sender_resume: Int32[np.ndarray, " Q"]
    relevant: list[np.ndarray]
    excluded: list[np.ndarray]
    candidates: Int32[np.ndarray, " C"]
    candidate_text: Int32[np.ndarray, " C"]


class Texts(NamedTuple):
    """Every text version of one node type; row i is text_id i, ordered by when it was written."""

    text_id: Int32[np.ndarray, " N"]
    entity: Int32[np.ndarray, " N"]
    t: Int64[np.ndarray, " N"]
    kind: list[str]
    text: list[str]


class Edges(NamedTuple):
    """Edges of one type; `split` is a `SPLIT_CODES` value, 0 = visible from every split."""

    sender: Int32[np.ndarray, " M"]
    receiver: Int32[np.ndarray, " M"]
    t: Int64[np.ndarray, " M"]
    removed_t: Int64[np.ndarray, " M"]
    weight: Float32[np.ndarray, " M"]
    split: Int8[np.ndarray, " M"]


class Links(NamedTuple):
    """A task's links, one per row; a pair may occur more than once."""

    sender: Int32[np.ndarray, " M"]
    receiver: Int32[np.ndarray, " M"]
    t: Int64[np.ndarray, " M"]


def read_meta(tables: Path) -> TablesMeta:
    """The description in the manifest."""
    meta = dict(read_manifest(tables, KIND).meta)
    return TypeAdapter(TablesMeta).validate_python(meta)


def read_nodes(tables: Path, node_type: str) -> pa.Table:
    """`idx`, `id`, `t` and the prefixed feature columns; row i is node i."""
    return pq.read_table(tables / "nodes" / f"{node_type}.parquet")


def read_cohorts(tables: Path, meta: TablesMeta) -> dict[str, list[str]]:
    """By column, the cohort of each of the main task's senders; "" where it is unknown."""
    nodes = read_nodes(tables, next(iter(meta.tasks.values())).sender)
    return {
        column: [value or "" for value in nodes[f"cohort_{column}"].to_pylist()]
        for column in meta.cohorts
    }


def read_edges(tables: Path, name: str) -> Edges:
    """The edges of `sender__relation__receiver`, ordered by time, unknown times first."""
    table = pq.read_table(tables / "edges" / f"{name}.parquet")
    return Edges(
        sender=_numbers(table, "sender"),
        receiver=_numbers(table, "receiver"),
        t=_times(table, "t"),
        removed_t=_times(table, "removed_t"),
        weight=_numbers(table, "weight"),
        split=_numbers(table, "split"),
    )


def read_links(tables: Path, meta: TablesMeta, task: TaskMeta, *, before: str) -> Links:
    """All edges of a task's link that are of an earlier split than this one, or of none."""
    found = [Links(*(np.zeros(0, dtype) for dtype in (np.int32, np.int32, np.int64)))]
    for edge in meta.edge_types:
        if edge.name not in task.edge_types:
            continue
        edges = read_edges(tables, edge.name)
        seen = edges.split < SPLIT_CODES[before]
        sender, receiver = edges.sender[seen], edges.receiver[seen]
        if (edge.sender, edge.receiver) != (task.sender, task.receiver):
            sender, receiver = receiver, sender
        found.append(Links(sender, receiver, edges.t[seen]))
    return Links(*map(np.concatenate, zip(*found, strict=True)))


def read_texts(tables: Path, node_type: str) -> Texts:
    """The text versions of a node type; empty when it has none."""
    path = tables / "texts" / f"{node_type}.parquet"
    if not path.exists():
        empty = np.zeros(0, np.int32)
        return Texts(empty, empty, np.zeros(0, np.int64), [], [])
    table = pq.read_table(path)
    return Texts(
        text_id=_numbers(table, "text_id"),
        entity=_numbers(table, "entity"),
        t=_times(table, "t"),
        kind=table["kind"].to_pylist(),
        text=table["text"].to_pylist(),
    )


def read_pairs(tables: Path, task: str, split: str) -> PairTable:
    """The pairs of one split ("train", "val" or "test"), group after group in the order of time."""
    table = pq.read_table(tables / "pairs" / task / f"{split}.parquet")
    return PairTable(
        sender=_numbers(table, "sender"),
        receiver=_numbers(table, "receiver"),
        label=_numbers(table, "label"),
        negative=_strings(table, "negative"),
        t=_times(table, "t"),
        group=_numbers(table, "group"),
        sender_text=_numbers(table, "sender_text"),
        sender_resume=_numbers(table, "sender_resume"),
        receiver_text=_numbers(table, "receiver_text"),
        warm_sender=_numbers(table, "warm_sender"),
        warm_receiver=_numbers(table, "warm_receiver"),
        true_logit=_floats(table, "true_logit"),
        slice=_strings(table, "slice"),
    )


def read_ranking(tables: Path, task: str, split: str) -> Ranking | None:
    """The ranking queries of "val" or "test"; None when the task has none."""
    folder = tables / "rank" / task
    path = folder / f"{split}.parquet"
    if not path.exists():
        return None
    queries = pq.read_table(path)
    candidates = pq.read_table(folder / f"candidates_{split}.parquet")
    return Ranking(
        sender=_numbers(queries, "sender"),
        t=_times(queries, "t"),
        sender_text=_numbers(queries, "sender_text"),
        sender_resume=_numbers(queries, "sender_resume"),
        relevant=_lists(queries, "relevant"),
        excluded=_lists(queries, "excluded"),
        candidates=_numbers(candidates, "receiver"),
        candidate_text=_numbers(candidates, "receiver_text"),
    )


def _numbers(table: pa.Table, column: str) -> np.ndarray:
    return table[column].combine_chunks().to_numpy(zero_copy_only=False)


def _times(table: pa.Table, column: str) -> np.ndarray:
    return table[column].fill_null(NO_TIME).combine_chunks().to_numpy(zero_copy_only=False)


def _floats(table: pa.Table, column: str) -> np.ndarray:
    filled = table[column].fill_null(float("nan"))
    return filled.combine_chunks().to_numpy(zero_copy_only=False)


def _strings(table: pa.Table, column: str) -> np.ndarray:
    return np.asarray(table[column].to_pylist(), dtype=np.str_)


def _lists(table: pa.Table, column: str) -> list[np.ndarray]:
    lists = table[column].combine_chunks()
    offsets = lists.offsets.to_numpy()
    values = lists.values.to_numpy(zero_copy_only=False)
    return [values[start:end] for start, end in itertools.pairwise(offsets)]
