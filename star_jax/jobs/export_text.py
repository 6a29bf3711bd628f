"""`star export-text`: a vector for every text, from the best checkpoint of `train-text`.

Reads `W/tables` and `W/text`, writes `W/text_embeddings`: one table per node type with texts,
whose row i is the vector of text i. With `source` a graph model whose text encoder trained with
it, reads that too and writes `W/<source>_texts`, which whoever opens that model reads.

Different texts are encoded once each, and none whose vector is in an earlier export by the same
model. The rest goes in parts that are stored under `W/.text_vectors` until all are there: an
interrupted export goes on, and several processes share one (`worker`); the last of them to finish
writes the tables. With `beam` the parts are encoded by the workers of an Apache Beam runner
(`star_jax/pipeline/beam/engine.py` shows options), and this process writes the tables.
"""

import dataclasses
import functools
import json
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int64

from star_jax import artefacts
from star_jax.config import InputError, to_json
from star_jax.embeddings.quantise import PRECISIONS, RANGED, Precision
from star_jax.embeddings.reuse import MISSING, KnownVectors, VectorFiles, write_vectors
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline.ahead import behind
from star_jax.pipeline.beam.engine import Each, check_installed, check_options, for_each
from star_jax.pipeline.graph_model import vectors_of
from star_jax.pipeline.graph_text_model import open_graph_text
from star_jax.pipeline.scratch import alone, clear
from star_jax.pipeline.text_calibration import FILE as CALIBRATION
from star_jax.pipeline.text_encoding import BulkEncoder, bulk_lengths
from star_jax.pipeline.text_model import TrainedText, open_trained
from star_jax.pipeline.text_parts import Parts, WorkerConfig, part_path, planned
from star_jax.pipeline.text_records import TextRecords, text_records
from star_jax.pipeline.text_tables import (
    TextVectors,
    choose_ranges,
    write_text_calibration,
    write_text_tables,
)
from star_jax.text.attention_choice import BackendChoice
from star_jax.text.tokenizer import Tokenizer
from star_jax.text.tower import build_tokenizer, read_base
from star_jax.train.reporter import Progress

KIND = "text_embeddings"
TEXT = "text"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextExportConfig:
    """How texts are encoded in bulk; no field changes a float32 vector by more than rounding.

    Attributes:
      source: Folder of the model: "text", or a graph model of `train-graph` with `text_encoder`.
      mesh: Devices of this process.
      worker: Which of several processes this one is.
      beam: Options of an Apache Beam pipeline that encodes, such as "runner=FnApiRunner"; `mesh` is
        then that of each of its workers. Empty: this process encodes.
      attention_backend: As in `TowerConfig`, for this machine.
      batch_tokens: Of one forward pass on one device, padding included. None: as `BulkEncoder`
        says.
      num_lengths: Padded lengths: more pad less, and compile longer.
      part_texts: Different texts that are stored at a time; at most these are redone.
      shard_rows: Rows of one file of a table.
      reuse: Another export whose vectors are taken where model and text are the same;
        `W/text_embeddings` always is one.
      precision: Which vectors are written; the graph half reads the best of float32,
        float16, bfloat16, int8 and uint8 that is there.
      ranges: A `ranges.npy` to quantise by, e.g. of an earlier export. None: those of a sample.
      ranges_texts: Different texts of that sample.
      prior: True share of positives among the pairs that are scored.
      platt_pairs: Val pairs that a line is fitted on, after the shift; 0: no line.
    """

    source: str = TEXT
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    worker: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)
    beam: tuple[str, ...] = ()
    attention_backend: BackendChoice = "auto"
    batch_tokens: int | None = None
    num_lengths: int = 6
    part_texts: int = 8192
    shard_rows: int = 1 << 20
    reuse: Path | None = None
    precision: tuple[Precision, ...] = ("float32",)
    ranges: Path | None = None
    ranges_texts: int = 10_000
    prior: float = 1 / 17  # One apply among sixteen skips.
    platt_pairs: int = 20_000

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "num_lengths", "part_texts", "shard_rows", "ranges_texts"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} {value} must be >= 1")
        if self.platt_pairs < 0:
            raise ValueError(f"platt_pairs {self.platt_pairs} must be >= 0")
        check_options(self.beam)
        if not 0 < self.prior < 1:
            raise ValueError(f"prior {self.prior} must be a share between 0 and 1 such as 0.06")
        if not self.precision or len(set(self.precision)) != len(self.precision):
            raise ValueError(
                f"precision {self.precision} must name one or more of {PRECISIONS}, each once"
            )
        if self.ranges is not None and not set(self.precision) & set(RANGED):
            raise ValueError(f"ranges {self.ranges} is for {RANGED}, precision {self.precision}")


class _Export(NamedTuple):
    """What an export is made from."""

    workdir: Path
    source: str
    trained: TrainedText
    records: TextRecords
    vectors_key: dict[str, Any]  # All that decides the vector of given token ids.
    made_from: dict[str, Any]  # All that decides the artefact.

    @property
    def folder(self) -> Path:
        return self.workdir / (KIND if self.source == TEXT else vectors_of(self.source))

    @property
    def scratch(self) -> Path:
        return self.workdir / ".text_vectors"

    def is_complete(self) -> bool:
        """Whether the artefact is there, made from the same."""
        if not (self.folder / artefacts.MANIFEST).is_file():
            return False
        return artefacts.read_manifest(self.folder, KIND).meta.get("made_from") == self.made_from


def run(config: TextExportConfig, workdir: Path) -> None:
    """Encodes this process's share of what is not there yet; the last one writes all tables."""
    check_installed(config.beam)
    if config.beam and config.worker.share()[1] > 1:
        raise InputError("beam has workers of its own: start this command once, in one process")
    mesh = make_mesh(config.mesh, jax.local_devices())  # Processes compute apart.
    trained = _open_model(config, workdir, mesh)
    export = _open(config, workdir, trained)
    if export.is_complete():
        _log.info("%s is complete already", export.folder)
        with alone(export.scratch):
            clear(export.scratch)
        return
    records, model = export.records, export.trained.model
    known = KnownVectors(_reusable(config, export), KIND)
    place = known.find(records.keys)
    missing = np.flatnonzero(place == MISSING)
    parts = Parts(
        export.scratch,
        {
            "vectors": export.vectors_key,
            "tokens": export.made_from["tokens"],
            "missing": artefacts.content_digest(missing.tobytes()),
            "plan": [config.part_texts, config.num_lengths, config.batch_tokens],
        },
        missing,
        records.lengths[missing],
        part_texts=config.part_texts,
        size=model.tower.embedding_size,
    )
    _log.info(
        "%d different texts: %d skipped by hash, %d to encode in %d parts",
        *(len(records), len(records) - len(missing), len(missing), len(parts.records)),
    )
    lengths = bulk_lengths(records.lengths[missing], config.num_lengths)
    if config.beam:
        _encode_on_beam(config, workdir.absolute(), parts, lengths)
    else:
        tokens = config.batch_tokens
        encoder = BulkEncoder(model, records, mesh, lengths=lengths, batch_tokens=tokens)
        _encode(export, encoder, parts, *config.worker.share())
    with alone(export.scratch):
        if export.is_complete():
            _log.info("another process has written %s", export.folder)
        elif parts.to_do():
            _log.info(
                "%d parts are still to come from other processes: the last one to finish writes "
                "%s; run any of them again when one has failed",
                *(len(parts.to_do()), export.folder),
            )
            return
        else:
            _write(config, export, _gather(known, parts, place))
        clear(export.scratch)


def _open_model(config: TextExportConfig, workdir: Path, mesh: Mesh) -> TrainedText:
    if config.source == TEXT:
        return open_trained(workdir / TEXT, mesh, config.attention_backend)
    return open_graph_text(workdir, config.source, mesh, config.attention_backend)


def _open(config: TextExportConfig, workdir: Path, trained: TrainedText) -> _Export:
    tokenizer = build_tokenizer(trained.tower)
    with alone(workdir / ".text_vectors"):
        records = text_records(workdir, tokenizer)
    settings = json.loads(to_json(config))
    made_from = {
        "model": artefacts.digest(workdir / config.source),
        "tokens": artefacts.digest(workdir / "text_tokens"),
        "ranges": config.ranges and artefacts.file_digest(config.ranges),
    } | {
        name: settings[name]
        for name in ("shard_rows", "precision", "ranges_texts", "prior", "platt_pairs")
    }
    key = _vectors_key(trained, tokenizer)
    return _Export(workdir, config.source, trained, records, key, made_from)


def _vectors_key(trained: TrainedText, tokenizer: Tokenizer) -> dict[str, Any]:
    """Whatever may change the vector of given token ids, but the devices."""
    base = read_base(trained.tower)
    tower = json.loads(to_json(trained.tower))
    del tower["base"]  # A path; its weights and its tokenizer are named by digest.
    del tower["attention_backend"]  # Of the machine; it changes rounding alone.
    lora = trained.model.lora
    return {
        "weights": trained.weights,
        "tokenizer": tokenizer.digest,
        "prompts": base.prompts,
        "limits": vars(base.limits),
        "pooling": json.loads(to_json(base.pooling)),
        "tower": tower,
        "lora": None if lora is None else json.loads(to_json(lora)),
    }


def _reusable(config: TextExportConfig, export: _Export) -> list[Path]:
    """Earlier exports by the same model; says of the others what differs."""
    own = export.folder if (export.folder / artefacts.MANIFEST).is_file() else None
    found = []
    for folder in dict.fromkeys(path.resolve() for path in (own, config.reuse) if path):
        meta = artefacts.read_manifest(folder, KIND).meta
        made_with = meta.get("vectors", {})  # Older ones do not say.
        changed = [n for n, value in export.vectors_key.items() if made_with.get(n) != value]
        if changed:
            _log.warning(
                "%s differs in %s: none of its vectors is taken", folder, ", ".join(changed)
            )
        else:
            found.append(folder)
    return found


def _encode(export: _Export, encoder: BulkEncoder, parts: Parts, index: int, count: int) -> None:
    """The parts of one process that are not there; stored in a thread beside the device."""
    own = range(index, len(parts.records), count)
    to_do = sorted(set(own) & set(parts.to_do()))
    if not to_do:
        return
    num_tokens = {n: float(export.records.lengths[parts.records[n]].sum()) for n in own}
    progress = Progress("export-text", sum(num_tokens.values()), "tokens")
    if len(to_do) < len(own):
        _log.info("going on with the parts in %s", parts.folder)
        progress.skip(sum(num_tokens[n] for n in own if n not in to_do))
    counts, start = encoder.counts, time.monotonic()

    def on_batch(_: int, tokens: int) -> None:
        wait = 100 * counts.data_wait_s / max(time.monotonic() - start, 1e-9)
        progress.advance(float(tokens), float(tokens), note=f"data wait {wait:.1f} %")

    with behind() as storing:
        made = encoder.parts(export.trained.variables, (parts.records[n] for n in to_do), on_batch)
        for number, vectors in zip(to_do, made, strict=True):
            storing(functools.partial(parts.write, number, vectors))
    seconds = time.monotonic() - start
    _log.info(
        "worker %d of %d encoded %d texts in %.1f s: %.0f tokens/s, %.1f %% padding; waited for "
        "data %.1f %%, for storage %.1f %% of the time",
        *(index, count, counts.num_texts, seconds, counts.num_tokens / seconds),
        100 * (1 - counts.num_tokens / counts.num_slots),
        100 * counts.data_wait_s / seconds,
        100 * storing.waited_s / seconds,
    )


def _encode_on_beam(
    config: TextExportConfig, workdir: Path, parts: Parts, lengths: tuple[int, ...]
) -> None:
    """The parts that are not there, by the workers of a Beam runner."""
    parts.share_plan()
    prepare = functools.partial(_beam_worker, config, workdir, parts.folder.absolute(), lengths)
    to_do, start = parts.to_do(), time.monotonic()
    for_each(config.beam, "text part", to_do, prepare)
    _log.info("Beam encoded %d parts in %.1f s", len(to_do), time.monotonic() - start)


def _beam_worker(
    config: TextExportConfig, workdir: Path, folder: Path, lengths: tuple[int, ...]
) -> Each:
    """What encodes a part and stores it, with the model that this worker has opened once."""
    mesh = make_mesh(config.mesh)
    trained = _open_model(config, workdir, mesh)
    encoder = BulkEncoder(
        trained.model,
        TextRecords(workdir / "text_tokens"),
        mesh,
        lengths=lengths,
        batch_tokens=config.batch_tokens,
    )

    def encode(number: int) -> None:
        records = planned(folder, number, config.part_texts)
        vectors = encoder(trained.variables, records, lambda *_: None)
        write_vectors(part_path(folder, number), vectors)

    return encode


def _gather(known: KnownVectors, parts: Parts, place: Int64[np.ndarray, " R"]) -> TextVectors:
    """Where the vector of every record is; checks the bytes of those that are reused."""
    parts.check()
    known.check(place[place != MISSING])
    num_rows = [*known.num_rows, *(len(records) for records in parts.records)]
    files = VectorFiles([*known.paths, *parts.paths], num_rows, parts.size)
    place = place.copy()
    place[parts.order] = sum(known.num_rows) + np.arange(len(parts.order))
    return TextVectors(files, place)


def _write(config: TextExportConfig, export: _Export, vectors: TextVectors) -> None:
    workdir, records, trained = export.workdir, export.records, export.trained
    ranged = set(config.precision) & set(RANGED) and len(records)
    with artefacts.writing(export.folder, KIND) as partial:
        ranges = (
            choose_ranges(partial, vectors, config.ranges, config.ranges_texts) if ranged else None
        )
        write_text_tables(
            workdir,
            partial,
            records,
            vectors,
            precisions=config.precision,
            ranges=ranges,
            shard_rows=config.shard_rows,
        )
        calibration = None
        if export.source == TEXT:  # Whose scorer trained with it.
            calibration = write_text_calibration(
                workdir, partial, trained, records, vectors, config.prior, config.platt_pairs
            )
        meta = {
            "model": export.made_from["model"],
            "vectors": export.vectors_key,
            "tower": json.loads(to_json(trained.tower)),
            "precision": list(config.precision),
            "embedding_size": vectors.size,
            "num_texts": {name: len(rows) for name, rows in records.records.items()},
            "num_records": len(records),
            CALIBRATION.removesuffix(".json"): calibration,
            "made_from": export.made_from,
        }
        artefacts.set_meta(partial, meta)
    _log.info("wrote %s", ", ".join(f"{n} {t}" for t, n in meta["num_texts"].items()) or "nothing")
