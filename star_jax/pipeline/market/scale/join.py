"""Puts the blocks of a streamed market together: the tables and the text vectors of a run.

Blocks follow each other by number, so that the files do not depend on who drew them. Edges lie in
the order of their blocks, not of their times. Texts are vectors alone: their strings are empty.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int, Int8

from star_jax.embeddings.table import RANGES, TableRows, array_path, write_rows, writing_array
from star_jax.pipeline.market.fixed_pairs import SPLITS, split_of
from star_jax.pipeline.market.scale.blocks import (
    CATEGORIES,
    DENSE,
    NODES,
    PAIRS,
    WARM_UNTIL,
    edges_part,
    node_ids,
    texts_part,
)
from star_jax.pipeline.market.scale.latents import MOVES_EVERY
from star_jax.pipeline.market.scale.size import Block, LargeMarketConfig, drawn_of, nodes_of
from star_jax.pipeline.market.scale.texts import TextVectors
from star_jax.pipeline.market.schema import market_schema
from star_jax.pipeline.market.size import EDGE_MILLIONS
from star_jax.pipeline.tables.read import EdgeMeta, NodeMeta, TablesMeta, TaskMeta

_APPLY = "member__apply__job"
_KINDS = {"member": "profile", "job": "job"}
_TEXT_SCHEMA = pa.schema(
    [
        ("text_id", pa.int32()),
        ("entity", pa.int32()),
        ("t", pa.int64()),
        ("kind", pa.string()),
        ("text", pa.string()),
    ]
)


class Joiner:
    """Streams the parts of all blocks into single files."""

    def __init__(self, config: LargeMarketConfig, parts: Path, blocks: Iterable[Block]) -> None:
        self._config, self._parts, self._blocks = config, parts, list(blocks)
        self._nodes = nodes_of(config)

    def tables(self, folder: Path) -> TablesMeta:
        """Writes all tables; returns what they say about themselves."""
        for name in self._nodes:
            parts = (self._parts / block.name / NODES for block in self._of(name))
            _stream(folder / "nodes" / f"{name}.parquet", map(pq.read_table, parts))
        counts = {name: self._edges(folder, name) for name in EDGE_MILLIONS}
        for name in _KINDS:
            _stream(folder / "texts" / f"{name}.parquet", self._text_rows(name), _TEXT_SCHEMA)
        return self._meta(counts, self._pairs(folder / "pairs" / "apply"))

    def text_embeddings(self, folder: Path) -> dict[str, int]:
        """Writes the vectors of all texts as codes of int8; returns how many there are by type."""
        size = self._config.text_size
        np.save(folder / RANGES, TextVectors(self._config.seed, size).ranges)
        counts = {}
        for name in _KINDS:
            rows = _rows_of(self._text_rows(name))
            counts[name] = len(rows.text_id)
            ids = node_ids(name, rows.entity)
            write_rows(folder / name, 0, ids, rows)
            path = array_path(folder / name, 0, "int8")
            with writing_array(path, (counts[name], size), np.dtype(np.int8)) as writer:
                for part in self._codes(name):
                    writer.append(part)
        return counts

    def _of(self, node_type: str) -> list[Block]:
        return [block for block in self._blocks if block.node_type == node_type]

    def _edges(self, folder: Path, name: str) -> int:
        sender, _, receiver = name.split("__")
        drawn_with = "member" if "member" in (sender, receiver) else "job"
        parts = (self._parts / block.name / edges_part(name) for block in self._of(drawn_with))
        return _stream(folder / "edges" / f"{name}.parquet", map(pq.read_table, parts))

    def _states(self, name: str) -> tuple[int, ...]:
        """Of the texts: first those of all, then those of the members who moved."""
        return (0, 1) if name == "member" else (0,)

    def _codes(self, name: str) -> Iterator[Int8[np.ndarray, "N E"]]:
        for state in self._states(name):
            for block in self._of(name):
                yield np.load(self._parts / block.name / texts_part(state))

    def _text_rows(self, name: str) -> Iterator[pa.Table]:
        first = 0
        for state in self._states(name):
            for block in self._of(name):
                entity, time = self._written(block, state)
                yield _text_table(first, entity, time, _KINDS[name])
                first += len(entity)

    def _written(
        self, block: Block, state: int
    ) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
        """Who wrote the texts of a block, and when."""
        entity = np.arange(block.start, block.stop)
        folder = self._parts / block.name
        if state:
            return entity[entity % MOVES_EVERY == 0], np.load(folder / "moved.npy")
        return entity, pq.read_table(folder / NODES, columns=["t"])["t"].to_numpy()

    def _pairs(self, folder: Path) -> dict[str, dict[str, int]]:
        """Writes the pairs of all splits, group after group in the order of time."""
        parts = [pq.read_table(self._parts / b.name / PAIRS) for b in self._of("member")]
        pairs = pa.concat_tables(parts).combine_chunks()
        time, receiver = pairs["t"].to_numpy(), pairs["receiver"].to_numpy()
        split, warm = split_of(time), self._warm_jobs()
        counts = {}
        for i, name in enumerate(SPLITS):
            rows = np.flatnonzero(split == i)
            rows = rows[np.argsort(time[rows], kind="stable")]
            chosen = pairs.take(pa.array(rows))
            table = _pair_table(chosen, warm[i][receiver[rows]])
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
            counts[name] = {"positives": len(rows) // 2, "uniform": len(rows) // 2}
        return counts

    def _warm_jobs(self) -> list[np.ndarray]:
        """Per split, the jobs that were applied to in an earlier one; for train, in train."""
        warm = [np.zeros(self._nodes["job"], bool) for _ in SPLITS]
        for block in self._of("member"):
            edges = pq.read_table(self._parts / block.name / edges_part(_APPLY))
            job, time = edges["receiver"].to_numpy(), edges["t"].to_numpy()
            for known, until in zip(warm, WARM_UNTIL, strict=True):
                known[job[time < until]] = True
        return warm

    def _meta(self, counts: dict[str, int], pairs: dict[str, dict[str, int]]) -> TablesMeta:
        schema = market_schema()
        attributes = {edge.name for edge in schema.edges if edge.kind == "attribute"}
        nodes = {
            name: NodeMeta(
                count=count,
                categorical=CATEGORIES.get(name, {}),
                dense=DENSE.get(name, []),
                has_texts=name in _KINDS,
                has_time=name in _KINDS,
            )
            for name, count in self._nodes.items()
        }
        edges = [
            EdgeMeta(
                **dict(zip(("sender", "relation", "receiver"), name.split("__"), strict=True)),
                kind="attribute" if name in attributes else "interaction",
                count=count,
                has_time=True,
                has_split=name not in attributes,
            )
            for name, count in counts.items()
        ]
        task = TaskMeta(
            sender="member",
            receiver="job",
            edge_types=[_APPLY],
            negatives=["uniform"],
            counts=pairs,
            class_weights=(1.0, 1.0),
        )
        return TablesMeta(
            dataset="large market",
            time_unit=schema.time_unit,
            node_types=nodes,
            edge_types=edges,
            tasks={"apply": task},
            cohorts=[],
            reference=None,
            import_report={"drawn": drawn_of(self._config)},
        )


def _pair_table(pairs: pa.Table, warm_receiver: np.ndarray) -> pa.Table:
    num = pairs.num_rows
    group = np.repeat(np.arange(num // 2, dtype=np.int32), 2)
    negative = pa.array(["", "uniform"]).take(pa.array(1 - pairs["label"].to_numpy()))
    more = {
        "negative": negative,
        "group": group,
        "sender_resume": np.full(num, -1, np.int32),
        "receiver_text": pairs["receiver"],  # The only text of a job has its number.
        "warm_receiver": warm_receiver,
    }
    for name, column in more.items():
        pairs = pairs.append_column(
            name, column if isinstance(column, pa.ChunkedArray) else [column]
        )
    return pairs


def _text_table(
    first: int, entity: Int[np.ndarray, " N"], time: Int[np.ndarray, " N"], kind: str
) -> pa.Table:
    num = len(entity)
    columns = [
        np.arange(first, first + num, dtype=np.int32),
        entity.astype(np.int32),
        time,
        pa.array([kind]).take(pa.array(np.zeros(num, np.int8))),
        pa.array([""]).take(pa.array(np.zeros(num, np.int8))),
    ]
    return pa.table(columns, schema=_TEXT_SCHEMA)


def _rows_of(tables: Iterable[pa.Table]) -> TableRows:
    joined = pa.concat_tables(table.select(["entity", "text_id", "t"]) for table in tables)
    return TableRows(*(joined[name].to_numpy() for name in ("entity", "text_id", "t")))


def _stream(path: Path, tables: Iterable[pa.Table], schema: pa.Schema | None = None) -> int:
    """Writes tables as one, a row group or more each; returns the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    num, writer = 0, None if schema is None else pq.ParquetWriter(path, schema, compression="zstd")
    try:
        for table in tables:
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            num += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    return num
