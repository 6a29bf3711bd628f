"""Finds strings in the artefacts of a run by decoding them: what must not be there, and is not."""

import gzip
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_data_source import ArrayRecordDataSource

TokenDecoder = Callable[[np.ndarray], str]
"""Token ids of one text -> the text."""

Reader = Callable[[Path], Iterable[str]]
"""A file -> every string in it; for formats that only their owner can decode."""


def search(
    folder: Path,
    needles: Sequence[str],
    *,
    decoders: Sequence[TokenDecoder] = (),
    readers: dict[str, Reader] | None = None,
) -> dict[str, set[str]]:
    """Files (relative) in which each needle occurs, ignoring case.

    Every file is searched as it is; Parquet (all columns, nested ones too), npy, ArrayRecord and
    gzip are decoded, and integers that may be token ids go through every decoder.

    Args:
      folder: Everything below it is searched.
      needles: Strings to look for.
      decoders: Turn token ids into text.
      readers: Suffix -> how to read such a file beyond its bytes.
    """
    found: dict[str, set[str]] = {needle: set() for needle in needles}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        for text in _strings(path, decoders, readers or {}):
            low = text.lower()
            for needle in needles:
                if needle.lower() in low:
                    found[needle].add(path.relative_to(folder).as_posix())
    return found


def _strings(
    path: Path, decoders: Sequence[TokenDecoder], readers: dict[str, Reader]
) -> Iterator[str]:
    yield path.name
    yield _text(path.read_bytes())
    if path.suffix in readers:
        yield from readers[path.suffix](path)
    if path.suffix == ".parquet":
        for column in pq.read_table(path).columns:
            yield from _column(column, decoders)
    elif path.suffix == ".npy":
        yield from _array(np.load(path, mmap_mode="r"), decoders)
    elif path.suffix == ".array_record":
        for record in _records(path):
            yield _text(record)
            if len(record) % 4 == 0:
                yield from _tokens(np.frombuffer(record, np.int32), decoders)
    elif path.suffix == ".gz":
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


def _tokens(ids: np.ndarray, decoders: Sequence[TokenDecoder]) -> Iterator[str]:
    if len(ids) and ids.min() >= 0:
        yield from (decode(ids) for decode in decoders)


def _records(path: Path) -> Iterator[bytes]:
    source = ArrayRecordDataSource([str(path)])
    yield from source.__getitems__(list(range(len(source))))


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="ignore") + content.decode("utf-16-le", errors="ignore")
