"""`star get`: the embeddings of some ids, as JSON lines or in a file.

    star get W/graph_embeddings --node-type member --ids m1,m2
    star get members@active --registry R --node-type member --ids-file ids.txt --as-of 1700000000
    star get members@active --registry R --as-version members@3 --node-type member --ids m1
        --output vectors.npy

Every id that was asked for has a line or a row, in its order. One that has no embedding has null
as its vector, in an npy file a row of NaN, and in ArrayRecord a record that says it is deleted.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.columns import Rows
from star_jax.embeddings.publishing import SUFFIXES, write_rows
from star_jax.embeddings.reader import EmbeddingReader, open_reader
from star_jax.embeddings.records import shown_time


def run(
    ref: str,
    *,
    node_type: str,
    ids: str | None = None,
    ids_file: Path | None = None,
    as_of: int | None = None,
    registry: str | None = None,
    as_version: str | None = None,
    output: Path | None = None,
) -> Iterator[str]:
    """Yields lines to print.

    Args:
      ref: A folder, or a version in the registry: NAME@NUMBER, NAME@ALIAS, NAME.
      node_type: Name of the table.
      ids: Separated by commas.
      ids_file: With an id per line, instead.
      as_of: The last row that is not younger; in the unit of the table's times.
      registry: Where versions are.
      as_version: An older version that the vectors are mapped to, or the folder of a transform.
      output: A file ending in .npy, .parquet or .array_record, instead of lines.

    Raises:
      InputError: What was given is wrong.
    """
    names = _ids(ids, ids_file)
    if output is not None and output.suffix not in (".npy", *SUFFIXES.values()):
        endings = ", ".join((".npy", *SUFFIXES.values()))
        raise InputError(f"--output {output}: needed a name that ends in one of {endings}")
    reader = open_reader(ref, node_type, registry=registry, as_version=as_version)
    rows = reader.get(names, as_of)
    if output is None:
        yield from _lines(rows, reader.version)
        return
    with artefacts.whole_file(output) as partial:
        _write(partial, output.suffix, reader, rows)
    missing = int((~rows.found).sum())
    yield f"{output}: {len(names)} rows of version {reader.version}, {missing} of them missing"


def _ids(ids: str | None, ids_file: Path | None) -> list[str]:
    if (ids is None) == (ids_file is None):
        raise InputError("ids are missing or given twice, needed --ids A,B or --ids-file FILE")
    if ids is not None:
        return ids.split(",")
    assert ids_file is not None
    return ids_file.read_text(encoding="utf-8").splitlines()


def _lines(rows: Rows, version: str) -> Iterator[str]:
    each = zip(
        rows.ids.to_pylist(), rows.event_time.tolist(), rows.vectors, rows.found, strict=True
    )
    for name, time, vector, found in each:
        # As short as can be: of a float32 the digits that tell it apart.
        numbers = [float(str(number)) for number in vector] if found else None
        line = {"id": name, "version": version, "event_time": shown_time(time), "vector": numbers}
        yield json.dumps(line, ensure_ascii=False)


def _write(path: Path, suffix: str, reader: EmbeddingReader, rows: Rows) -> None:
    if suffix == ".npy":
        with path.open("wb") as file:
            np.save(file, rows.vectors)
        return
    form = "parquet" if suffix == SUFFIXES["parquet"] else "arrayrecord"
    write_rows(path, reader, [rows], form, "<f4")
