"""Tables, two versions of graph embeddings and the exact map between them.

Dot products of old vectors are the planted truth of `fake_run`, so that a consumer of them is good.
The new version is the old one turned, stretched and, if asked for, wider: a linear map brings all
of it back, and without the map its dot products say little.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from star_jax import artefacts
from star_jax.embeddings.table import EmbeddingTable, write_shard
from star_jax.embeddings.transforms.files import write_transform
from star_jax.embeddings.transforms.maps import linear
from star_jax.embeddings.transforms.transform import SHARED, Step, Transform
from star_jax.jobs import check_consumers
from star_jax.jobs.check_consumers import ContractConfig
from star_jax.shapes import NO_TIME
from tests.jobs.fake_run import make_run

OWN = "tests.jobs.two_versions:fit_products"
SIZE = 7  # Of the old vectors: three regions, four tastes.


def make_tables(workdir: Path, *, num_members=240, num_jobs=120):
    """Tables with attributes of members; returns the vectors whose products are the truth."""
    world = make_run(workdir, num_members=num_members, num_jobs=num_jobs)
    vectors = {
        name: np.hstack([2.5**0.5 * np.eye(3)[world[name]], 1.2**0.5 * world[tastes]])
        for name, tastes in (("member", "taste"), ("job", "appeal"))
    }
    _add_attributes(workdir / "tables", world)
    return vectors


def _add_attributes(tables, world):
    """`region` (categorical), `ambition` (a number) and `constant`; some values are missing."""
    path = tables / "nodes" / "member.parquet"
    number = np.where(np.arange(len(world["member"])) % 10 == 9, np.nan, world["taste"][:, 0])
    region = np.where(np.arange(len(world["member"])) % 10 == 8, 0, world["member"] + 1)
    columns = {
        "cat_region": region.astype(np.int32),
        "cat_constant": np.ones(len(region), np.int32),
        "dense_ambition": number.astype(np.float32),
    }
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)
    (tables / "vocab").mkdir()
    for column, values in (("region", ["north", "south", "west"]), ("constant", ["only"])):
        codes = pa.array(np.arange(1, len(values) + 1, dtype=np.int32))
        rows = pa.table({"code": codes, "value": values})
        pq.write_table(rows, tables / "vocab" / f"member.{column}.parquet")
    meta = json.loads((tables / artefacts.MANIFEST).read_text(encoding="utf-8"))["meta"]
    meta["node_types"]["member"] |= {
        "categorical": {"region": 4, "constant": 2},
        "dense": ["ambition"],
    }
    artefacts.seal(tables, "tables", meta)


def write_version(folder: Path, vectors, *, keep=None) -> Path:
    """Graph embeddings; `keep`: the nodes of each type that there are, in this order."""
    with artefacts.writing(folder, "graph_embeddings") as partial:
        for name, rows in vectors.items():
            nodes = np.arange(len(rows), dtype=np.int32) if keep is None else keep[name]
            table = EmbeddingTable(
                np.arange(len(nodes), dtype=np.int32),
                np.full(len(nodes), -1, np.int32),
                np.full(len(nodes), NO_TIME, np.int64),
                rows[nodes].astype(np.float32),
            )
            write_shard(partial / name, 0, [f"{name}-{node}" for node in nodes], table)
        artefacts.set_meta(partial, {"model": "none", "graph": "none"})
    return folder


def write_texts(workdir: Path, vectors):
    """A second, later text of every third member: texts of W/tables and vectors of all of them."""
    path = workdir / "tables" / "texts" / "member.parquet"
    texts = pq.read_table(path)
    again = texts.take(np.arange(0, len(texts), 3))
    number = pa.array(np.arange(len(texts), len(texts) + len(again), dtype=np.int32))
    later = again.set_column(0, "text_id", number)
    pq.write_table(pa.concat_tables([texts, later]), path)
    meta = json.loads((workdir / "tables" / artefacts.MANIFEST).read_text("utf-8"))["meta"]
    artefacts.seal(workdir / "tables", "tables", meta)
    rows = np.concatenate([np.arange(len(texts)), np.arange(0, len(texts), 3)])
    with artefacts.writing(workdir / "texts", "text_embeddings") as partial:
        for name, own in {"member": rows, "job": np.arange(len(vectors["job"]))}.items():
            text_id = np.arange(len(own), dtype=np.int32)
            time = np.full(len(own), NO_TIME, np.int64)
            shown = vectors[name][own].astype(np.float32)
            shown[len(vectors[name]) :] += 1  # The later text says something else.
            table = EmbeddingTable(own.astype(np.int32), text_id, time, shown)
            write_shard(partial / name, 0, [f"{name}-{node}" for node in own], table)
    return rows


def write_map(folder: Path, old: Path, new: Path, matrix) -> Path:
    """A linear map of all tables."""
    steps = {SHARED: (Step(linear(matrix), False),)}
    transform = Transform("ridge", artefacts.digest(new), artefacts.digest(old), steps)
    write_transform(folder, transform, {})
    return folder


def turned(vectors, size, seed=5):
    """Vectors of a new version of that width, and the matrix that maps them back."""
    rng = np.random.default_rng(seed)
    there = np.linalg.qr(rng.standard_normal((size, size)))[0][:SIZE] * rng.uniform(0.5, 2, size)
    return {name: rows @ there for name, rows in vectors.items()}, np.linalg.pinv(there)


def fit_products(features, labels, seed):
    """A consumer of our own: the mean difference of the two classes, in the features' order."""
    del seed
    weight = features[labels].mean(axis=0) - features[~labels].mean(axis=0)
    return lambda rows: rows @ weight


def fit_nothing(features, labels, seed):
    """A consumer that gives no number per row."""
    del features, labels, seed
    return lambda rows: rows


def check(folder, new, transform=None, old="old", **fields: Any):
    """Runs the job; returns what the contract's file says, and its manifest's meta."""
    output = folder / "contract"
    fields = {"consumers": ("dot", OWN)} | fields
    config = ContractConfig(**fields)
    check_consumers.run(
        config,
        folder,
        old=str(folder / old),
        new=str(folder / new),
        transform=None if transform is None else str(folder / transform),
        registry=None,
        output=str(output),
    )
    content = json.loads((output / "contract.json").read_text(encoding="utf-8"))
    return content, artefacts.read_manifest(output, "contract").meta


def row(rows, **wanted):
    """The one row with these values."""
    (found,) = (each for each in rows if wanted.items() <= each.items())
    return found
