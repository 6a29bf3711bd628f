"""All texts as token ids, made once: equal ones of a kind are one ArrayRecord, whoever wrote them.

The artefact holds `tokens-00000.array_record` (int32 ids of one text per record); per record
`lengths.npy`, `prompts.npy` (how many of the ids are the prompt), `kinds.npy` (the number of the
text's kind) and `keys.npy` (a hash of all of these); and per node type `records/<type>.npy`:
text_id -> record.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Int32, Shaped

from star_jax import artefacts
from star_jax.pipeline.tables.read import read_meta, read_texts
from star_jax.text.prompts import kind_number
from star_jax.text.tokenizer import Tokenizer
from star_jax.train.reporter import Progress

KIND = "text_tokens"
_SHARD_RECORDS = 1 << 20
_CHUNK_TEXTS = 4096  # Tokenised at a time.
_LAYOUT = 4  # Of the files; an artefact of another one is made anew.

_log = logging.getLogger(__name__)


@runtime_checkable
class Records(Protocol):
    """Texts as token ids, and what is known of each."""

    @property
    def lengths(self) -> Int32[np.ndarray, " R"]:
        """Tokens of each."""
        ...

    @property
    def prompts(self) -> Int32[np.ndarray, " R"]:
        """Of which so many are its prompt."""
        ...

    @property
    def kinds(self) -> Int32[np.ndarray, " R"]:
        """Their numbers."""
        ...

    @property
    def pad_id(self) -> int:
        """The token that fills rows."""
        ...

    def read(self, records: Sequence[int]) -> list[Int32[np.ndarray, " L"]]:
        """Token ids of records, in the order asked for."""
        ...


class TextRecords:
    """Reads the artefact; safe to call from many threads."""

    def __init__(self, folder: Path) -> None:
        """Opens it.

        Raises:
          InputError: It is missing or incomplete.
        """
        meta = artefacts.read_manifest(folder, KIND).meta
        self.lengths: Int32[np.ndarray, " R"] = np.load(folder / "lengths.npy")
        self.prompts: Int32[np.ndarray, " R"] = np.load(folder / "prompts.npy")  # Their lengths.
        self.kinds: Int32[np.ndarray, " R"] = np.load(folder / "kinds.npy")  # Their numbers.
        self.keys: Shaped[np.ndarray, " R"] = np.load(folder / "keys.npy")  # 16 bytes each.
        self.records: dict[str, Int32[np.ndarray, " N"]] = {
            node_type: np.load(folder / "records" / f"{node_type}.npy")
            for node_type in meta["node_types"]
        }
        self.pad_id: int = meta["pad_id"]
        shards = sorted(str(path) for path in folder.glob("tokens-*.array_record"))
        self._source = ArrayRecordDataSource(shards) if shards else None

    def __len__(self) -> int:
        return len(self.lengths)

    def of(self, node_type: str, text_id: Int32[np.ndarray, " N"]) -> Int32[np.ndarray, " N"]:
        """Record of each text; -1 stays -1.

        Args:
          node_type: Whose texts; one without any has -1 alone.
          text_id: Rows of the node type's text table.
        """
        if node_type not in self.records:
            return np.full(len(text_id), -1, np.int32)
        rows = self.records[node_type]
        return np.where(text_id < 0, np.int32(-1), rows[np.maximum(text_id, 0)])

    def read(self, records: Sequence[int]) -> list[Int32[np.ndarray, " L"]]:
        """Token ids of records, in the order asked for."""
        if not records:
            return []
        assert self._source is not None  # Records exist only where shards do.
        return [np.frombuffer(row, np.int32) for row in self._source.__getitems__(list(records))]


def text_records(workdir: Path, tokenizer: Tokenizer) -> TextRecords:
    """Opens `W/text_tokens`, made first where tables or tokenizer are not those it was made from.

    Args:
      workdir: Holds `tables`.
      tokenizer: With its prompts and limits.
    """
    tables, folder = workdir / "tables", workdir / "text_tokens"
    meta = read_meta(tables)
    node_types = [name for name, node in meta.node_types.items() if node.has_texts]
    made_from = {
        "tables": artefacts.digest(tables),
        "tokenizer": tokenizer.digest,
        "layout": _LAYOUT,
    }
    if (folder / artefacts.MANIFEST).is_file():
        if artefacts.read_manifest(folder, KIND).meta["made_from"] == made_from:
            return TextRecords(folder)
        _log.info("%s was made from other tables, tokenizer or layout: making it anew", folder)
    with artefacts.writing(folder, KIND) as partial:
        described = _write(tables, node_types, tokenizer, partial)
        artefacts.set_meta(partial, described | {"made_from": made_from})
    return TextRecords(folder)


def _write(
    tables: Path, node_types: Sequence[str], tokenizer: Tokenizer, folder: Path
) -> dict[str, Any]:
    """Tokenises the texts of every node type; returns what the manifest says about them."""
    record_of: dict[bytes, int] = {}  # Hash of token ids, prompt's length and kind -> record.
    lengths: list[int] = []
    prompts: list[int] = []
    kinds: list[int] = []
    num_texts = 0
    (folder / "records").mkdir()
    with _writing_records(folder) as write:
        for node_type in node_types:
            texts = read_texts(tables, node_type)
            keys = list(zip(texts.kind, texts.text, strict=True))
            unique = list(dict.fromkeys(keys))
            of_key: dict[tuple[str, str], int] = {}
            progress = Progress(f"tokenising {node_type} texts", float(len(unique)), "texts")
            for kind, chunk in _chunks(unique):
                rows = tokenizer.encode(chunk, kind)
                words = tokenizer.prompt_lengths_of(kind, rows)
                number = kind_number(kind)
                for text, ids, skipped in zip(chunk, rows, words, strict=True):
                    content = ids.astype(np.int32, copy=False).tobytes()
                    told = content + np.array([skipped, number], "<i4").tobytes()
                    key = hashlib.blake2b(told, digest_size=16).digest()
                    if key not in record_of:
                        record_of[key] = len(lengths)
                        lengths.append(len(ids))
                        prompts.append(skipped)
                        kinds.append(number)
                        write(content)
                    of_key[kind, text] = record_of[key]
                progress.advance(float(len(chunk)), float(len(chunk)))
            records = np.fromiter((of_key[key] for key in keys), np.int32, len(keys))
            np.save(folder / "records" / f"{node_type}.npy", records)
            num_texts += len(keys)
    np.save(folder / "lengths.npy", np.array(lengths, np.int32))
    np.save(folder / "prompts.npy", np.array(prompts, np.int32))
    np.save(folder / "kinds.npy", np.array(kinds, np.int32))
    np.save(folder / "keys.npy", np.array(list(record_of), "S16"))
    truncation = {kind: vars(counts) for kind, counts in tokenizer.truncation.items()}
    for kind, counts in tokenizer.truncation.items():
        _log.info(
            "%s texts: %d, %.1f %% truncated, %.1f %% of their tokens cut off",
            kind,
            counts.num_texts,
            100.0 * counts.num_truncated / max(counts.num_texts, 1),
            100.0 * counts.num_dropped / max(counts.num_tokens, 1),
        )
    _log.info("%d texts are %d different ones", num_texts, len(lengths))
    return {
        "node_types": list(node_types),
        "pad_id": tokenizer.pad_id,
        "num_texts": num_texts,
        "num_records": len(lengths),
        "truncation": truncation,
    }


def _chunks(unique: Iterable[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """(kind, texts) with all texts of one kind after the other."""
    by_kind: dict[str, list[str]] = {}
    for kind, text in unique:
        by_kind.setdefault(kind, []).append(text)
    for kind, texts in by_kind.items():
        for start in range(0, len(texts), _CHUNK_TEXTS):
            yield kind, texts[start : start + _CHUNK_TEXTS]


@contextmanager
def _writing_records(folder: Path) -> Iterator[Any]:
    """Yields a function that appends one record; files of at most `_SHARD_RECORDS` records."""
    writer, count = None, 0
    path = folder

    def write(content: bytes) -> None:
        nonlocal writer, count, path
        if count % _SHARD_RECORDS == 0:
            if writer is not None:
                writer.close()
            path = folder / f"tokens-{count // _SHARD_RECORDS:05d}.array_record"
            writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        assert writer is not None
        writer.write(content)
        count += 1

    try:
        yield write
        if writer is not None:
            writer.close()
    except RuntimeError as error:  # What the writer makes of every failure of the file system.
        raise OSError(f"{path}: {error}") from error
