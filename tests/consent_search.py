"""Finds strings in the artefacts of a run by decoding them: what must not be there, and is not."""

import gzip
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_data_source import ArrayRecordDataSource

TokenDecoder = Callable[[np.ndarray], str]
"""Token ids of one text -> the text."""


def search(
    folder: Path,
    needles: Sequence[str],
    *,
    decoders: Sequence[TokenDecoder] = (),
    decoded: set[str] | None = None,
) -> dict[str, set[str]]:
    """Files (relative) in which each needle occurs, ignoring case.

    Every file is searched as it is; Parquet (all columns, nested ones too), npy, ArrayRecord,
    gzip and Orbax checkpoints are decoded, and integers that may be token ids go through every
    decoder.

    Args:
      folder: Everything below it is searched.
      needles: Strings to look for.
      decoders: Turn token ids into text.
      decoded: Gets the kinds of files that were decoded: "parquet", "npy", "array_record",
        "checkpoint", "gz".
    """
    found: dict[str, set[str]] = {needle: set() for needle in needles}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        if decoded is not None and (kind := _kind(path)):
            decoded.add(kind)
        for text in _strings(path, decoders):
            low = text.lower()
            for needle in needles:
                if needle.lower() in low:
                    found[needle].add(path.relative_to(folder).as_posix())
    return found


def _kind(path: Path) -> str:
    """How a file is decoded; empty for one that is searched as it is."""
    if path.name == "_CHECKPOINT_METADATA":
        return "checkpoint"
    kind = path.suffix.removeprefix(".")
    return kind if kind in ("parquet", "npy", "array_record", "gz") else ""


def _strings(path: Path, decoders: Sequence[TokenDecoder]) -> Iterator[str]:
    yield path.name
    yield _text(path.read_bytes())
    kind = _kind(path)
    if kind == "parquet":
        for column in pq.read_table(path).columns:
            yield from _column(column, decoders)
    elif kind == "npy":
        yield from _array(np.load(path, mmap_mode="r"), decoders)
    elif kind == "array_record":
        for record in _records(path):
            yield _text(record)
            if len(record) % 4 == 0:
                yield from _tokens(np.frombuffer(record, np.int32), decoders)
    elif kind == "checkpoint":
        yield from _checkpoint(path.parent, decoders)
    elif kind == "gz":
        yield _text(gzip.decompress(path.read_bytes()))


def _column(column: pa.ChunkedArray, decoders: Sequence[TokenDecoder]) -> Iterator[str]:
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if pa.types.is_integer(kind.value_type):
            for row in column.to_pylist():
                yield from _tokens(np.asarray(row or [], np.int64), decoders)
        else:
            yield from (str(value) for value in column.to_pylist())
    elif pa.types.is_integer(kind):
        yield from _tokens(column.fill_null(0).to_numpy(), decoders)
    else:
        yield from (_text(v) if isinstance(v, bytes) else str(v) for v in column.to_pylist())


def _array(array: np.ndarray, decoders: Sequence[TokenDecoder]) -> Iterator[str]:
    if array.dtype.kind in "US":
        yield from (str(value) for value in array.ravel())
    elif array.dtype.kind in "iu" and array.ndim in (1, 2):
        for row in np.atleast_2d(array):
            yield from _tokens(np.asarray(row), decoders)


def _checkpoint(folder: Path, decoders: Sequence[TokenDecoder]) -> Iterator[str]:
    """Names and integers of all arrays of an Orbax checkpoint."""
    saved = ocp.checkpointables_metadata(str(folder)).metadata
    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), saved)
    for path, leaf in jax.tree.leaves_with_path(ocp.load_checkpointables(str(folder), like)):
        yield jax.tree_util.keystr(path)
        yield from _array(np.asarray(leaf), decoders)


def _tokens(ids: np.ndarray, decoders: Sequence[TokenDecoder]) -> Iterator[str]:
    """Negative numbers are padding."""
    real = ids[ids >= 0]
    if len(real):
        yield from (decode(real) for decode in decoders)


def _records(path: Path) -> Iterator[bytes]:
    source = ArrayRecordDataSource([str(path)])
    yield from source.__getitems__(list(range(len(source))))


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="ignore") + content.decode("utf-16-le", errors="ignore")
