"""Small graphs as plain Python lists, written as the tables that the build reads."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from star_jax import artefacts
from star_jax.embeddings.table import EmbeddingTable, write_shard
from star_jax.graph.build import BuildOptions, build
from star_jax.graph.build_source import GraphTables
from star_jax.graph.schema import EdgeKind, EdgeType, GraphSchema, NodeType
from star_jax.graph.store import GraphMeta, GraphStore
from star_jax.shapes import NO_TIME

ONE_THREAD = BuildOptions(memory_limit_gib=0.5, num_threads=1)


@dataclasses.dataclass
class Edge:
    sender: int
    receiver: int
    t: int | None = None
    removed_t: int | None = None
    weight: float = 1.0
    split: int = 0


@dataclasses.dataclass
class Text:
    entity: int
    t: int | None = None
    kind: str = "profile"


@dataclasses.dataclass
class World:
    """Node type -> creation times; edge key -> edges; node type -> texts."""

    nodes: dict[str, list[int | None]]
    edges: dict[str, list[Edge]]
    texts: dict[str, list[Text]] = dataclasses.field(default_factory=dict)
    categorical: dict[str, dict[str, list[int]]] = dataclasses.field(default_factory=dict)
    dense: dict[str, dict[str, list[float | None]]] = dataclasses.field(default_factory=dict)
    kinds: dict[str, EdgeKind] = dataclasses.field(default_factory=dict)

    def schema(self):
        nodes = {
            name: NodeType(
                count=len(times),
                categorical=dict.fromkeys(self.categorical.get(name, {}), 10),
                dense=tuple(self.dense.get(name, {})),
            )
            for name, times in self.nodes.items()
        }
        edges = []
        for key in self.edges:
            sender, relation, receiver = key.split("__")
            edges.append(
                EdgeType(
                    sender=sender,
                    relation=relation,
                    receiver=receiver,
                    kind=self.kinds.get(key, "interaction"),
                )
            )
        return GraphSchema(nodes=nodes, edges=tuple(edges))

    def begun(self, nodes: int, edges: int, texts: int) -> "World":
        """The same with the first rows of every list alone, as far as their ends are kept."""
        kept = {name: times[:nodes] for name, times in self.nodes.items()}

        def known(key, edge):
            sender, _, receiver = key.split("__")
            return edge.sender < len(kept[sender]) and edge.receiver < len(kept[receiver])

        def columns(of):
            return {n: {c: v[:nodes] for c, v in each.items()} for n, each in of.items()}

        for key, rows in self.edges.items():  # What is kept comes first, here as well.
            rows.sort(key=lambda edge, key=key: not known(key, edge))
        for name, rows in self.texts.items():
            rows.sort(key=lambda text, name=name: text.entity >= len(kept[name]))
        return World(
            kept,
            {k: [e for e in rows[:edges] if known(k, e)] for k, rows in self.edges.items()},
            {
                name: [text for text in rows[:texts] if text.entity < len(kept[name])]
                for name, rows in self.texts.items()
            },
            columns(self.categorical),
            columns(self.dense),
            self.kinds,
        )

    def write(self, folder: Path, after: "World | None" = None) -> GraphTables:
        """Writes the tables as `star import` does; those of another world come before its rows."""
        after = after or World({}, {})
        files: dict[str, dict[str, Path]] = {"nodes": {}, "edges": {}, "texts": {}}

        def save(part, name, columns):
            path = folder / part / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(columns), path)
            files[part][name] = path

        for name, times in self.nodes.items():
            first = len(after.nodes.get(name, ()))
            new = range(first, len(times))
            columns = {
                "idx": pa.array(new, pa.int32()),
                "id": pa.array([f"{name}-{i}" for i in new], pa.string()),
                "t": pa.array(times[first:], pa.int64()),
            }
            for column, codes in self.categorical.get(name, {}).items():
                columns[f"cat_{column}"] = pa.array(codes[first:], pa.int32())
            for column, values in self.dense.get(name, {}).items():
                columns[f"dense_{column}"] = pa.array(values[first:], pa.float32())
            save("nodes", name, columns)
        for key, rows in self.edges.items():
            edges = rows[len(after.edges.get(key, ())) :]
            types = (pa.int32(), pa.int32(), pa.int64(), pa.int64(), pa.float32(), pa.int8())
            names = [field.name for field in dataclasses.fields(Edge)]
            columns = {
                name: pa.array([getattr(edge, name) for edge in edges], kind)
                for name, kind in zip(names, types, strict=True)
            }
            save("edges", key, columns)
        for name, rows in self.texts.items():
            first = len(after.texts.get(name, ()))
            texts = rows[first:]
            columns = {
                "text_id": pa.array(range(first, len(rows)), pa.int32()),
                "entity": pa.array([text.entity for text in texts], pa.int32()),
                "t": pa.array([text.t for text in texts], pa.int64()),
                "kind": pa.array([text.kind for text in texts], pa.string()),
                "text": pa.array([""] * len(texts), pa.string()),
            }
            save("texts", name, columns)
        return GraphTables(**files)

    def write_vectors(self, folder: Path, width: int = 3) -> Path:
        """Text vectors that name their text: row i is [i, i + 1/4, ...]."""
        for name, texts in self.texts.items():
            n = len(texts)
            vectors = np.arange(n)[:, None] + np.arange(width)[None, :] / 4
            table = EmbeddingTable(
                entity=np.asarray([text.entity for text in texts], np.int32),
                text_id=np.arange(n, dtype=np.int32),
                t=np.full(n, NO_TIME),
                vectors=vectors.astype(np.float32),
            )
            write_shard(folder / name, 0, [str(i) for i in range(n)], table)
        artefacts.seal(folder, "text_embeddings", {})
        return folder

    def build(
        self, folder: Path, *, text: bool = False, options=ONE_THREAD, like: GraphMeta | None = None
    ) -> GraphStore:
        """Tables, graph and (if asked) text vectors under `folder`, opened."""
        tables = self.write(folder / "tables")
        with artefacts.writing(folder / "graph", "graph") as output:
            build(output, self.schema(), tables, "ordinal", options, like=like)
        vectors = self.write_vectors(folder / "text_embeddings") if text else None
        return GraphStore.open(folder / "graph", vectors)
