"""What a bulk export writes once all vectors are there: tables, ranges, calibration."""

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int64

from star_jax.config import to_json
from star_jax.embeddings.quantise import Precision, code_dtype, measure_ranges, num_codes, quantise
from star_jax.embeddings.reuse import VectorFiles
from star_jax.embeddings.table import (
    RANGES,
    ArrayWriter,
    TableRows,
    array_path,
    keys_path,
    read_ranges,
    write_rows,
    writing_array,
)
from star_jax.pipeline.tables.read import read_meta, read_nodes, read_pairs, read_texts
from star_jax.pipeline.text_calibration import fit_calibration, val_rows, write_calibration
from star_jax.pipeline.text_model import TrainedText
from star_jax.pipeline.text_pairs import PairRecords, pair_records
from star_jax.pipeline.text_records import TextRecords
from star_jax.pipeline.text_scoring import PairLogits, PairRows

_BLOCK_ROWS = 8192  # Vectors in memory at a time.

_log = logging.getLogger(__name__)


class TextVectors:
    """The vector of every record, wherever it is.

    Attributes:
      size: Width of the vectors.
    """

    def __init__(self, files: VectorFiles, place: Int64[np.ndarray, " R"]) -> None:
        """Takes files and, per record, the row in them."""
        self._files, self._place = files, place
        self.size = files.size

    def __len__(self) -> int:
        return len(self._place)

    def take(self, records: Int[np.ndarray, " N"]) -> Float32[np.ndarray, "N E"]:
        """Vectors of records, in the order asked for."""
        return self._files.take(self._place[records])


def choose_ranges(
    folder: Path, vectors: TextVectors, given: Path | None, num_texts: int
) -> Float32[np.ndarray, "2 E"]:
    """Those given, or those of a sample; a file of the artefact either way.

    Args:
      folder: The artefact being written.
      vectors: Of one text at least.
      given: A `ranges.npy`.
      num_texts: Of the sample, drawn from the different texts.
    """
    if given is None:
        draw = np.random.default_rng(0).permutation(len(vectors))[:num_texts]
        ranges = measure_ranges(vectors.take(np.sort(draw)))
    else:
        ranges = read_ranges(given, vectors.size)
    np.save(folder / RANGES, ranges)
    return ranges


def write_text_tables(
    workdir: Path,
    folder: Path,
    records: TextRecords,
    vectors: TextVectors,
    *,
    precisions: Sequence[Precision],
    ranges: Float32[np.ndarray, "2 E"] | None,
    shard_rows: int,
) -> None:
    """Writes a table per node type with texts; row i is the text i.

    Args:
      workdir: Holds `tables`.
      folder: The artefact being written.
      records: Of the texts.
      vectors: Of the records.
      precisions: In which the vectors are written.
      ranges: For int8 and uint8.
      shard_rows: Rows of one shard.
    """
    for node_type, of_text in records.records.items():
        texts = read_texts(workdir / "tables", node_type)
        names = read_nodes(workdir / "tables", node_type)["id"].to_numpy()
        for shard, start in enumerate(range(0, max(len(of_text), 1), shard_rows)):
            part = slice(start, start + shard_rows)
            rows = TableRows(texts.entity[part], texts.text_id[part], texts.t[part])
            write_rows(folder / node_type, shard, names[rows.entity].tolist(), rows)
            np.save(keys_path(folder / node_type, shard), records.keys[of_text[part]])
            with contextlib.ExitStack() as stack:
                writers: dict[Precision, ArrayWriter] = {
                    precision: stack.enter_context(
                        writing_array(
                            array_path(folder / node_type, shard, precision),
                            (len(rows.entity), num_codes(precision, vectors.size)),
                            code_dtype(precision),
                        )
                    )
                    for precision in precisions
                }
                for first in range(start, start + len(rows.entity), _BLOCK_ROWS):
                    end = min(first + _BLOCK_ROWS, start + len(rows.entity))
                    block = vectors.take(of_text[first:end])
                    for precision, writer in writers.items():
                        writer.append(quantise(block, precision, ranges))


def write_text_calibration(
    workdir: Path,
    folder: Path,
    trained: TrainedText,
    records: TextRecords,
    vectors: TextVectors,
    prior: float,
    max_pairs: int,
) -> dict[str, Any] | None:
    """Writes how logits become probabilities; returns what the manifest says of it.

    Args:
      workdir: Holds `tables`.
      folder: The artefact being written.
      trained: Whose scorer it is about.
      records: Of the texts.
      vectors: Of the records.
      prior: True share of positives.
      max_pairs: Val pairs that the line is fitted on.
    """
    rate = trained.meta.get("positive_rate")
    if rate is None:
        _log.warning(
            "the text model does not say at which share of positives it was trained: no calibration"
        )
        return None
    task_name, task = next(iter(read_meta(workdir / "tables").tasks.items()))
    pairs = read_pairs(workdir / "tables", task_name, "val")
    of_pairs = pair_records(pairs, records, sender=task.sender, receiver=task.receiver)
    rows = val_rows(pairs, of_pairs, task, max_pairs)
    calibration = fit_calibration(
        pairs.label[rows] == 1,
        _logits(trained, vectors, PairRecords(*(column[rows] for column in of_pairs))),
        prior=prior,
        positive_rate=rate,
    )
    write_calibration(folder, calibration)
    _log.info(
        "rate %.4f to prior %.4f: logits %+.4f, then times %.4f %+.4f (%d val pairs)",
        *(calibration.positive_rate, calibration.prior),
        *(calibration.shift, calibration.slope, calibration.intercept),
        calibration.num_pairs,
    )
    return json.loads(to_json(calibration))


def _logits(
    trained: TrainedText, vectors: TextVectors, pairs: PairRecords
) -> Float32[np.ndarray, " B"]:
    """Scores pairs whose texts are all there but perhaps a profile or a resume."""
    if not len(pairs.label):
        return np.zeros(0, np.float32)
    columns = (pairs.document, pairs.profile, pairs.resume)
    joined = np.concatenate(columns)
    used = np.unique(joined[joined >= 0])
    found = vectors.take(used)
    rows = [np.where(c >= 0, np.searchsorted(used, c), -1).astype(np.int32) for c in columns]
    scorer = {"scorer": trained.variables["scorer"]}
    return PairLogits(trained.model)(scorer, found, found, PairRows(*rows))
