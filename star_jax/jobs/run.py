"""`star run`: all stages in order over one folder; what is unchanged is not done again."""

import dataclasses
import fcntl
import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from star_jax import artefacts
from star_jax.config import InputError, difference, fields, to_json
from star_jax.jobs import (
    TOGETHER,
    build_graph,
    evaluate,
    export_graph,
    export_text,
    import_tables,
    report,
    train_graph,
    train_text,
)
from star_jax.parallel import processes
from star_jax.pipeline import graph_model, graph_training
from star_jax.pipeline.graph_compatible import compatible_inputs

_RESUMABLE = ("text_model", "graph_model")  # Kinds that fill their folder step by step.
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The configs of all stages."""

    tables: import_tables.ImportConfig
    train_text: train_text.TextTrainConfig
    export_text: export_text.TextExportConfig
    build_graph: build_graph.GraphBuildConfig
    train_graph: train_graph.GraphTrainConfig
    export_graph: export_graph.GraphExportConfig
    evaluate: evaluate.EvaluateConfig
    report: report.ReportConfig


class Stage(NamedTuple):
    """One run of one job."""

    name: str
    run: Callable[[Any, Path], None]
    config: Any
    output: str  # Folder in the working directory.
    kind: str
    inputs: tuple[str, ...]  # Folders in the working directory.
    in_place: bool  # Fills its folder step by step and can go on from any of them.
    together: bool = False  # By all processes of this run; else by the first one.
    others: Callable[[], dict[str, str]] = dict  # Digests of what it reads from elsewhere, by name.


def stages(config: RunConfig) -> list[Stage]:
    """The whole path. The graph half runs twice: with the text vectors and without them."""

    def stage(name: str, job: Any, config: Any, output: str, kind: str, *inputs: str) -> Stage:
        together = job.__name__.rpartition(".")[2] in TOGETHER
        return Stage(name, job.run, config, output, kind, inputs, kind in _RESUMABLE, together)

    c = config
    train_only = graph_training.without_text(c.train_graph)
    export_only = export_graph.without_text(c.export_graph)
    vectors, made, made_only = "text_embeddings", "graph_embeddings", "graph_only_embeddings"
    model, only = "graph_model", "graph_only_model"
    data = ("tables", "graph")
    pairs = ("tables", "hard_negatives") if c.train_text.hard_negatives else ("tables",)
    read = seen = vectors
    own_texts = []
    if c.train_graph.text_encoder is not None:  # It trains on texts, and has vectors of its own.
        read, seen = "text", graph_model.vectors_of(model)
        texts = dataclasses.replace(c.export_text, source=model)
        inputs = ("tables", "text", model)
        own_texts = [stage("export-graph-text", export_text, texts, seen, vectors, *inputs)]
    scored = (*data, *sorted({vectors, seen}, reverse=True), "text", model, only)
    return [
        stage("import", import_tables, c.tables, "tables", "tables"),
        stage("train-text", train_text, c.train_text, "text", "text_model", *pairs),
        stage("export-text", export_text, c.export_text, vectors, vectors, "tables", "text"),
        stage("build-graph", build_graph, c.build_graph, "graph", "graph", "tables"),
        stage("train-graph", train_graph, c.train_graph, model, model, *data, read)._replace(
            others=functools.partial(compatible_inputs, c.train_graph.compatible)
        ),
        *own_texts,
        stage("export-graph", export_graph, c.export_graph, made, made, *data, seen, model),
        stage("train-graph-only", train_graph, train_only, only, model, *data),
        stage("export-graph-only", export_graph, export_only, made_only, made, *data, only),
        stage("evaluate", evaluate, c.evaluate, "evaluation", "evaluation", *scored),
        stage("report", report, c.report, "report", "report", "evaluation", made, made_only),
    ]


def run(config: RunConfig, workdir: Path) -> None:
    """Runs every stage whose config or inputs changed, or that has not finished."""
    run_stages(stages(config), workdir)


def run_stages(plan: list[Stage], workdir: Path) -> None:
    """As `run`, for any list of stages whose inputs come before them.

    Of several processes, the first one decides, keeps the records and does what is not done
    together.
    """
    with _alone(workdir):
        for number, stage in enumerate(plan, start=1):
            title = f"[{number}/{len(plan)}] {stage.name}"
            record = processes.by_the_first(functools.partial(_due, stage, workdir, title))
            if record is None:
                continue
            do = functools.partial(_do, stage, workdir, record, title)
            if not stage.together:
                processes.by_the_first(do)
            elif processes.is_first():
                do()
            else:
                stage.run(stage.config, workdir)


def _due(stage: Stage, workdir: Path, title: str) -> dict[str, Any] | None:
    """What a stage is made from, when it must run."""
    artefacts.sweep(workdir / stage.output)
    record = {"config": json.loads(to_json(stage.config)), "inputs": _inputs(stage, workdir)}
    return record if _prepare(stage, workdir / stage.output, record, title) else None


def _prepare(stage: Stage, output: Path, record: dict[str, Any], title: str) -> bool:
    """Decides whether a stage must run, and clears what it may not build on.

    A finished stage whose config or inputs changed is done anew. An interrupted one goes on: the
    job itself stops when it was begun with another config. With other inputs it starts again.
    """
    path = output / artefacts.STAGE
    if not path.is_file():
        return True
    old = _read_record(path)
    if old["state"] == "running":
        if old["inputs"] == record["inputs"]:
            _log.info("%s: going on where it was interrupted", title)
        else:
            _log.info("%s: its inputs changed, starting again", title)
            artefacts.remove(output)
        return True
    changed = difference(json.dumps(old["config"]), json.dumps(record["config"]))
    changed += [
        f"input {name} changed"
        for name, digest in record["inputs"].items()
        if old["inputs"].get(name) != digest
    ]
    artefacts.read_manifest(output, stage.kind)
    if artefacts.digest(output) != old["output"]:
        changed.append("output changed")
    if not changed:
        _log.info("%s: unchanged, skipped", title)
        return False
    _log.info("%s: %s; doing it anew", title, ", ".join(changed))
    if stage.in_place:
        artefacts.remove(output)
    return True


def _do(stage: Stage, workdir: Path, record: dict[str, Any], title: str) -> None:
    output = workdir / stage.output
    path = output / artefacts.STAGE
    header = {"stage": stage.name, **record}
    before = _seconds_before(path)
    if stage.in_place:
        output.mkdir(parents=True, exist_ok=True)
        artefacts.write_text(path, json.dumps(header | {"state": "running", "seconds": before}))
    _log.info("%s: started", title)
    start = time.monotonic()
    try:
        stage.run(stage.config, workdir)
    except BaseException:
        if stage.in_place and list(output.iterdir()) == [path]:
            artefacts.remove(output)  # It stopped before it began.
        raise
    seconds = time.monotonic() - start
    artefacts.read_manifest(output, stage.kind)
    done = {"state": "done", "seconds": before + seconds, "finished": time.time()}
    made = {"output": artefacts.digest(output)}
    artefacts.write_text(path, json.dumps(header | done | made, indent=1))
    _log.info("%s: done in %.1f s", title, seconds)


def _read_record(path: Path) -> dict[str, Any]:
    record = artefacts.read_json(path, "state", "config", "inputs", "seconds")
    return record if record["state"] == "running" else artefacts.read_json(path, "output")


def _seconds_before(path: Path) -> float:
    """Seconds that an interrupted stage had taken when it last went on."""
    if not path.is_file():
        return 0.0
    record = _read_record(path)
    return record["seconds"] if record["state"] == "running" else 0.0


def _inputs(stage: Stage, workdir: Path) -> dict[str, str]:
    """Digests of the artefacts a stage reads and of the files its config names."""
    found = {name: artefacts.digest(workdir / name) for name in stage.inputs} | stage.others()
    for path, value in fields(stage.config).items():
        if isinstance(value, Path):
            found[f"--{path}"] = _content(value, path)
    return found


def _content(path: Path, field: str) -> str:
    """Digest of a file, or of all files of a folder by relative path."""
    if path.is_file():
        return artefacts.file_digest(path)
    if not path.is_dir():
        raise InputError(f"{field}: {path} does not exist")
    sha = hashlib.sha256()
    for inner in sorted(p for p in path.rglob("*") if p.is_file()):
        sha.update(
            f"{inner.relative_to(path).as_posix()} {artefacts.file_digest(inner)}\n".encode()
        )
    return sha.hexdigest()


@contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """Holds the folder's lock, which ends with the process; leaves no empty folder on failure.

    Of several processes, the first one holds it.
    """
    if processes.joined() and not processes.is_first():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    handle = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another `star run` works in {workdir}; wait for it") from error
        yield
    except BaseException:
        if not any(workdir.iterdir()):
            workdir.rmdir()
        raise
    finally:
        os.close(handle)
