"""Tables as they were when a first share of the training pairs had happened: an earlier version."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from star_jax import artefacts
from star_jax.pipeline.tables.read import KIND, read_meta, read_pairs
from star_jax.shapes import NO_TIME


def first_part(tables: Path, output: Path, share: float) -> None:
    """Writes the tables without what came after a share of the main task's training pairs.

    Edges and training pairs of all tasks that are later are left out; edges without a time stay.
    Nodes, texts, val and test pairs stay too, so that vectors of the same rows can be compared.

    Args:
      tables: As imported.
      output: Folder of the earlier tables; what lies there stays.
      share: Of the pairs, by time.

    Raises:
      ValueError: The pairs have no times.
    """
    if (output / artefacts.MANIFEST).is_file():
        return
    meta = read_meta(tables)
    times = read_pairs(tables, next(iter(meta.tasks)), "train").t
    if (times == NO_TIME).any():
        raise ValueError(f"training pairs of {tables} have no times, needed to tell a first part")
    until = int(np.quantile(times, share, method="lower"))
    content = json.loads((tables / artefacts.MANIFEST).read_text("utf-8"))["meta"]
    with artefacts.writing(output, KIND) as partial:
        shutil.copytree(
            tables,
            partial,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns(artefacts.MANIFEST, artefacts.STAGE),
        )
        for edge, stored in zip(meta.edge_types, content["edge_types"], strict=True):
            stored["count"] = _cut(partial / "edges" / f"{edge.name}.parquet", until).num_rows
        for task in meta.tasks:
            pairs = _cut(partial / "pairs" / task / "train.parquet", until)
            kinds = Counter(kind or "positives" for kind in pairs["negative"].to_pylist())
            content["tasks"][task]["counts"]["train"] = dict(kinds)
        artefacts.set_meta(partial, content)


def _cut(path: Path, until: int) -> pa.Table:
    """Leaves out the later rows of a file; returns what stays."""
    table = pq.read_table(path)
    early = pc.call_function("less_equal", [table["t"], pa.scalar(until, pa.int64())])
    kept = table.filter(early.fill_null(True))
    pq.write_table(kept, path)
    return kept
