"""`star publish`: whole tables of embeddings for those who serve or train on them.

    star publish members@active --registry R --output published --partitions 16
    star publish W/graph_embeddings --output published --format arrayrecord --dtype float16
    star publish members@active --registry R --as-version members@3 --output redis://cache:6379/0

A folder is an artefact of files by node type and by partition of the ids
(`star_jax.embeddings.publishing`): an interrupted publication goes on with the partitions that are
not there yet, and ends with the same bytes. A store (`lmdb:FOLDER`, `redis://HOST:PORT/DB`) gets
each embedding under `row_key` of its version, node type and id (`star_jax.embeddings.records`); an
interrupted load is begun anew, which does no harm.

Every row carries its id, version, event time and vector. A table may have several rows of an id,
each from a time on: the last one is published, or with --all-times, to a folder, every one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.publishing import (
    BLOCK_ROWS,
    Format,
    part_name,
    partitions_of,
    records_of,
    write_rows,
)
from star_jax.embeddings.reader import EmbeddingReader, transform_to
from star_jax.embeddings.records import expiry, row_key
from star_jax.embeddings.registry.registry import locate
from star_jax.embeddings.table import node_types
from star_jax.pipeline.scratch import alone, clear
from star_jax.serving.stores.protocol import Store
from star_jax.serving.stores.urls import is_store, open_store

KIND = "published_embeddings"
Dtype = Literal["float32", "float16"]

_DTYPES: dict[str, str] = {"float32": "<f4", "float16": "<f2"}
_STORE_ROWS = 5000  # Per call of a store: what a kill may undo.
_PLAN = "plan.json"


class Published(NamedTuple):
    """What is written, to wherever it is."""

    readers: dict[str, EmbeddingReader]  # By node type.
    dtype: str
    as_of: int | None
    all_times: bool

    def rows(self, node_type: str) -> np.ndarray:
        """Of the table."""
        reader = self.readers[node_type]
        return np.arange(reader.num_rows) if self.all_times else reader.last(self.as_of)


def run(
    ref: str,
    *,
    output: str,
    node_type: str | None = None,
    as_of: int | None = None,
    all_times: bool = False,
    registry: str | None = None,
    as_version: str | None = None,
    dtype: Dtype = "float32",
    format: Format = "parquet",  # noqa: A002 # The option's name.
    partitions: int = 16,
    ttl_s: int | None = None,
) -> Iterator[str]:
    """Yields lines to print.

    Args:
      ref: A folder, or a version in the registry: NAME@NUMBER, NAME@ALIAS, NAME.
      output: A folder to be, or the URL of a store.
      node_type: The table; all of them when None.
      as_of: The last row of each id that is not younger; in the unit of the table's times.
      all_times: Every row instead.
      registry: Where versions are.
      as_version: An older version that the vectors are mapped to, or the folder of a transform.
      dtype: Of the vectors.
      format: Of the files of a folder.
      partitions: Of the ids, in a folder.
      ttl_s: Seconds until a store forgets what is written now.

    Raises:
      InputError: What was given is wrong.
    """
    if all_times and (as_of is not None or is_store(output)):
        raise InputError("--all-times is for folders, and not beside --as-of")
    if partitions < 1:
        raise InputError(f"--partitions {partitions}, needed at least 1")
    if ttl_s is not None and (ttl_s < 1 or not is_store(output)):
        raise InputError(f"--ttl-s {ttl_s} for {output}: needed at least 1, and a store")
    folder = locate(ref, registry)
    names = [node_type] if node_type is not None else node_types(folder)
    if not names:
        raise InputError(f"{folder} has no tables of embeddings")
    transform = transform_to(ref, as_version, registry)
    readers = {name: EmbeddingReader(folder, name, transform=transform) for name in names}
    published = Published(readers, _DTYPES[dtype], as_of, all_times)
    if not is_store(output):
        artefacts.check_replaceable(Path(output), KIND)
        return _to_folder(published, Path(output), format, partitions)
    return _to_store(published, output, expiry(None if ttl_s is None else float(ttl_s)))


def _to_folder(published: Published, output: Path, form: Format, partitions: int) -> Iterator[str]:
    some = next(iter(published.readers.values()))
    meta = {
        "source": some.digest,
        "format": form,
        "partitions": partitions,
        "dtype": published.dtype,
        "as_of": published.as_of,
        "all_times": published.all_times,
        "versions": {name: reader.version for name, reader in published.readers.items()},
        "sizes": {name: reader.size for name, reader in published.readers.items()},
    }
    scratch = output.parent / f".{output.name}.parts"
    with alone(scratch):
        _keep_if_of(scratch, meta)
        for name in published.readers:
            yield from _write_parts(published, name, scratch / name, form, partitions)
        with artefacts.writing(output, KIND) as partial:
            for name in published.readers:
                (scratch / name).rename(partial / name)
            artefacts.set_meta(partial, meta)
        clear(scratch)
    yield f"{output}: {', '.join(published.readers)} of {some.folder}"


def _keep_if_of(scratch: Path, meta: dict[str, object]) -> None:
    """Clears what an interrupted publication of something else has left."""
    plan, content = scratch / _PLAN, json.dumps(meta, sort_keys=True)
    if plan.is_file() and plan.read_text(encoding="utf-8") == content:
        return
    for path in scratch.iterdir():
        if path.is_dir():
            artefacts.remove(path)
        else:
            path.unlink()
    artefacts.write_text(plan, content)


def _write_parts(
    published: Published, name: str, folder: Path, form: Format, partitions: int
) -> Iterator[str]:
    reader, rows = published.readers[name], published.rows(name)
    of = np.concatenate(
        [np.zeros(0, np.int64)]
        + [
            partitions_of(reader.ids(rows[start : start + BLOCK_ROWS]).to_pylist(), partitions)
            for start in range(0, len(rows), BLOCK_ROWS)
        ]
    )
    for cut in folder.glob("*.partial"):  # By a kill amid a partition.
        cut.unlink()
    there = 0
    for partition in range(partitions):
        path = folder / part_name(partition, partitions, form)
        if path.is_file():
            there += 1
            continue
        with artefacts.whole_file(path) as partial:
            blocks = reader.blocks(rows[of == partition], BLOCK_ROWS)
            write_rows(partial, reader, blocks, form, published.dtype)
    found = f", {there} of them were there" if there else ""
    yield f"{name}: {len(rows)} rows of version {reader.version} in {partitions} files{found}"


def _to_store(published: Published, url: str, expires_ms: int) -> Iterator[str]:
    store = open_store(url, writable=True)
    try:
        for name in published.readers:
            yield _load(published, name, store, expires_ms)
    finally:
        store.close()


def _load(published: Published, name: str, store: Store, expires_ms: int) -> str:
    reader, rows, accepted = published.readers[name], published.rows(name), 0
    for block in reader.blocks(rows, _STORE_ROWS):
        accepted += store.put_many(
            [
                (row_key(reader.version, name, own), record._replace(expires_ms=expires_ms))
                for own, record in records_of(block, reader.version, published.dtype)
            ]
        )
    left = len(rows) - accepted
    kept = f", {left} were there or are younger" if left else ""
    return f"{store.name}: {accepted} rows of {name} of version {reader.version}{kept}"
