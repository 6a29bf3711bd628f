"""`star export-text`: a vector for every text, from the best checkpoint of `train-text`.

Reads `W/tables` and `W/text`, writes `W/text_embeddings`: one table per node type with texts,
whose row i is the vector of text i. Different texts are encoded once each, in parts that are
stored under `W/.text_vectors` until all are there, so that an interrupted export goes on.
"""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from star_jax import artefacts
from star_jax.config import to_json
from star_jax.embeddings.table import EmbeddingTable, write_shard
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline.tables.read import read_nodes, read_texts
from star_jax.pipeline.text_encoding import BulkEncoder, bulk_lengths
from star_jax.pipeline.text_model import TrainedText, open_trained
from star_jax.pipeline.text_records import TextRecords, text_records
from star_jax.text.tower import build_tokenizer, read_base
from star_jax.train.reporter import Progress

KIND = "text_embeddings"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextExportConfig:
    """How texts are encoded in bulk; no field changes a vector by more than rounding."""

    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    batch_tokens: int = 4096  # Of one forward pass on one device, padding included.
    num_lengths: int = 6  # Padded lengths: more pad less, and compile longer.
    part_texts: int = 8192  # Different texts that are stored at a time; at most these are redone.
    shard_rows: int = 1 << 20  # Rows of one file of a table.

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "num_lengths", "part_texts", "shard_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be >= 1")


def run(config: TextExportConfig, workdir: Path) -> None:
    """Encodes what is not there yet, then writes all tables at once."""
    mesh = make_mesh(config.mesh)
    text_digest = artefacts.digest(workdir / "text")
    trained = open_trained(workdir / "text", mesh)
    tokenizer = build_tokenizer(trained.tower)
    records = text_records(workdir, tokenizer)
    parts = workdir / ".text_vectors"
    key = {
        "model": text_digest,
        "tokens": artefacts.digest(workdir / "text_tokens"),
        "config": json.loads(to_json(config)),
    }
    encoder = BulkEncoder(
        trained.model,
        records,
        mesh,
        lengths=bulk_lengths(records.lengths, config.num_lengths),
        batch_tokens=config.batch_tokens,
    )
    vectors = _encode(trained, encoder, records, parts, key, config.part_texts)
    base = read_base(trained.tower)
    meta = {
        "model": text_digest,
        "tower": json.loads(to_json(trained.tower)),
        "prompts": base.prompts,
        "pooling": json.loads(to_json(base.pooling)),
        "limits": vars(base.limits),
        "tokenizer": tokenizer.digest,
        "dtype": "float32",
        "embedding_size": vectors.shape[1],
        "num_texts": {name: len(rows) for name, rows in records.records.items()},
        "num_records": len(records),
    }
    with artefacts.writing(workdir / "text_embeddings", KIND) as partial:
        for node_type in records.records:
            _write_table(workdir, partial, node_type, records, vectors, config.shard_rows)
        artefacts.set_meta(partial, meta)
    shutil.rmtree(parts)
    _log.info("wrote %s", ", ".join(f"{n} {t}" for t, n in meta["num_texts"].items()) or "nothing")


def _encode(
    trained: TrainedText,
    encoder: BulkEncoder,
    records: TextRecords,
    folder: Path,
    key: dict[str, object],
    part_texts: int,
) -> Float32[np.ndarray, "R E"]:
    """Vectors of all records; parts of an earlier, interrupted export with the same key stay."""
    _keep_parts_of(folder, key)
    order = np.argsort(records.lengths, kind="stable")  # Parts of equal lengths pad least.
    vectors = np.empty((len(records), encoder.embedding_size), np.float32)
    progress = Progress("export-text", float(records.lengths.sum()), "tokens")
    for number, start in enumerate(range(0, len(order), part_texts)):
        chosen = order[start : start + part_texts]
        path = folder / f"part-{number:05d}.npy"
        if path.is_file():
            vectors[chosen] = np.load(path)
            progress.skip(float(records.lengths[chosen].sum()))
            continue
        vectors[chosen] = encoder(
            trained.variables,
            chosen,
            lambda texts, tokens: progress.advance(float(tokens), float(tokens)),
        )
        partial = path.with_suffix(".partial.npy")
        np.save(partial, vectors[chosen])
        partial.replace(path)
    return vectors


def _keep_parts_of(folder: Path, key: dict[str, object]) -> None:
    """Empties the folder unless its parts were made by the same model from the same tokens."""
    file = folder / "key.json"
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) == key:
        _log.info("going on with the parts in %s", folder)
        return
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    artefacts.write_text(file, json.dumps(key))


def _write_table(
    workdir: Path,
    folder: Path,
    node_type: str,
    records: TextRecords,
    vectors: Float32[np.ndarray, "R E"],
    shard_rows: int,
) -> None:
    texts = read_texts(workdir / "tables", node_type)
    names = read_nodes(workdir / "tables", node_type)["id"].to_numpy()
    rows = records.records[node_type]
    for shard, start in enumerate(range(0, max(len(rows), 1), shard_rows)):
        part = slice(start, start + shard_rows)
        table = EmbeddingTable(
            texts.entity[part], texts.text_id[part], texts.t[part], vectors[rows[part]]
        )
        write_shard(folder / node_type, shard, names[texts.entity[part]].tolist(), table)
