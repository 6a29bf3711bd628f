"""From raw tables and their schema to the folder that every later stage reads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from star_jax.config import InputError
from star_jax.pipeline.progress import Work
from star_jax.pipeline.tables.database import Database, Limits, quoted
from star_jax.pipeline.tables.edges import finish_edges, load_edges
from star_jax.pipeline.tables.events import load_events, split_events
from star_jax.pipeline.tables.findings import Findings
from star_jax.pipeline.tables.nodes import node_table, stage_nodes
from star_jax.pipeline.tables.pairs import (
    Outcomes,
    creation_times,
    fixed_pairs,
    read_outcomes,
    stage_pairs,
    text_lookup,
)
from star_jax.pipeline.tables.rankings import (
    RANKED_SPLITS,
    fixed_ranking,
    sampled_ranking,
    stage_rankings,
)
from star_jax.pipeline.tables.read import SPLIT_CODES, SPLITS, PairTable, TablesMeta, TaskMeta
from star_jax.pipeline.tables.sampling import PairSampler
from star_jax.pipeline.tables.schema import NEGATIVE_KINDS, Schema, TaskSource
from star_jax.pipeline.tables.texts import stage_texts
from star_jax.pipeline.tables.times import check_time_units
from star_jax.pipeline.tables.write import (
    write_edges,
    write_nodes,
    write_pairs,
    write_ranking,
    write_texts,
)
from star_jax.sorting import first_line

Load = Callable[[Database, Schema], None]
"""Reads and checks all events and edges, into their tables; nodes and texts are there."""


def load_here(db: Database, schema: Schema) -> None:
    """Reads them one file after the other."""
    for k in range(len(schema.events)):
        load_events(db, k, schema)
    for source in schema.edges:
        load_edges(db, source, schema)


def build(
    data: Path,
    schema: Schema,
    folder: Path,
    limits: Limits,
    *,
    seed: int,
    fix: bool,
    load: Load = load_here,
) -> TablesMeta:
    """Validates all of the input in one pass, then writes the tables.

    Args:
      data: Folder that the schema's paths are relative to.
      schema: What is in it.
      folder: An empty folder to fill.
      limits: Of the database that holds the tables meanwhile, in the folder where memory ends.
      seed: Of the negatives.
      fix: Apply the repairs that leave no choice: exact copies of rows, blanks around ids.
      load: Reads and checks events and edges.

    Raises:
      InputProblemsError: Something is wrong with the input; holds everything that is.
      InputError: The memory limit is too low.
    """
    findings = Findings(schema.allowed)
    scratch = folder / ".scratch"
    scratch.mkdir()
    work = Work("import", _num_reads(schema) + _num_writes(schema), "tables")
    db = Database(
        data,
        scratch,
        findings,
        limits,
        unix_time=schema.time_unit == "unix_s",
        personal_data=schema.personal_data,
        fix=fix,
        opens=lambda _: work.advance(1),
    )
    try:
        reference = _reference(data, schema, findings)
        stage_nodes(db, schema)
        stage_texts(db, schema)
        load(db, schema)
        cuts = split_events(db, schema)
        stage_pairs(db, schema)
        stage_rankings(db, schema)
        check_time_units(db, unix_time=schema.time_unit == "unix_s")
        findings.stop_if_any()
        finish_edges(db, schema, cuts)
        outcomes = _outcomes(db, schema)
        return _write(db, schema, folder, outcomes, reference, seed, work)
    except duckdb.OutOfMemoryException as error:
        raise InputError(
            f"bringing the tables in does not fit memory_limit_gib {limits.memory_gib}; give more "
            f"({first_line(error)})"
        ) from error
    finally:
        db.close()
        shutil.rmtree(scratch)


def _num_reads(schema: Schema) -> int:
    """How many tables are read."""
    sources = (schema.nodes, schema.texts, schema.events, schema.edges)
    pairs = sum(len(SPLITS) for task in schema.tasks if task.pairs is not None)
    ranked = sum(2 * len(RANKED_SPLITS) for task in schema.tasks if task.ranking is not None)
    return sum(map(len, sources)) + pairs + ranked


def _num_writes(schema: Schema) -> int:
    """How many tables are written: a task's pairs, node types, edge types, texts."""
    return len(schema.tasks) * len(SPLITS) + len(schema.nodes) + len(schema.edge_names) + 1


def _reference(data: Path, schema: Schema, findings: Findings) -> dict[str, Any] | None:
    if schema.reference is None:
        return None
    path = data / schema.reference
    if not path.is_file():
        findings.problem("missing file", schema.reference, f"the file {path}")
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        findings.problem("unreadable file", schema.reference, f"JSON ({error})")
        return None


def _outcomes(db: Database, schema: Schema) -> dict[str, Outcomes]:
    """The positives of every task.

    Raises:
      InputProblemsError: A split has none.
    """
    outcomes = {task.name: read_outcomes(db, schema, task, 1) for task in schema.tasks}
    _check_splits(schema, outcomes, db.findings)
    db.findings.stop_if_any()
    return outcomes


def _check_splits(schema: Schema, outcomes: dict[str, Outcomes], findings: Findings) -> None:
    for task in schema.tasks:
        if task.pairs is not None:
            continue
        for split in SPLITS:
            if not (outcomes[task.name].code == SPLIT_CODES[split]).any():
                findings.problem(
                    "empty split",
                    f"{split} of task {task.name}",
                    f"at least one event with label 1 in {split}",
                )


def _write(
    db: Database,
    schema: Schema,
    folder: Path,
    outcomes: dict[str, Outcomes],
    reference: dict[str, Any] | None,
    seed: int,
    work: Work,
) -> TablesMeta:
    tasks = {
        task.name: _write_task(db, schema, task, outcomes[task.name], folder, seed, work)
        for task in schema.tasks
    }
    nodes = write_nodes(db, schema, folder)
    work.advance(len(nodes))
    edges = write_edges(db, schema, folder)
    work.advance(len(edges))
    write_texts(db, schema, folder)
    work.advance(1)
    for name in schema.ignored_files:
        db.findings.note(f"{name} is not imported")
    return TablesMeta(
        dataset=schema.name,
        time_unit=schema.time_unit,
        node_types=nodes,
        edge_types=edges,
        tasks=tasks,
        cohorts=list(schema.node(schema.tasks[0].sender).cohorts),
        reference=reference,
        import_report=db.findings.report(),
    )


def _write_task(
    db: Database,
    schema: Schema,
    task: TaskSource,
    positives: Outcomes,
    folder: Path,
    seed: int,
    work: Work,
) -> TaskMeta:
    lookup = text_lookup(db, schema, task)
    table = quoted(node_table(task.receiver))
    num_receivers = db.value(f"SELECT count(idx) FROM {table}")
    sampler = None
    if task.pairs is None:
        sampler = PairSampler(
            db,
            task,
            positives=positives,
            shown=read_outcomes(db, schema, task, 0),
            lookup=lookup,
            created=creation_times(db, task.receiver, num_receivers),
            seed=seed,
        )
    counts, kinds = {}, set()
    for split in SPLITS:
        if sampler is not None:
            pairs = sampler.pairs(split)
        else:
            pairs = fixed_pairs(db, task, split, lookup, positives)
        write_pairs(pairs, folder / "pairs" / task.name / f"{split}.parquet")
        counts[split] = _count(pairs)
        work.advance(1)
        if split != "train":
            kinds |= set(counts[split]) - {"positives"}
    for split in RANKED_SPLITS:
        if task.ranking is not None:
            ranking = fixed_ranking(db, task, split, lookup, positives)
        elif task.pairs is None or task is schema.tasks[0]:
            ranking = sampled_ranking(split, lookup, positives)
        else:
            ranking = None
        if ranking is not None:
            write_ranking(ranking, folder / "rank" / task.name, split)
            sizes = {"queries": len(ranking.sender), "candidates": len(ranking.candidates)}
            counts[split] |= sizes
    return TaskMeta(
        sender=task.sender,
        receiver=task.receiver,
        edge_types=list(task.edge_types),
        negatives=[kind for kind in NEGATIVE_KINDS if kind in kinds],
        counts=counts,
        class_weights=task.class_weights,
    )


def _count(pairs: PairTable) -> dict[str, int]:
    kinds, counts = np.unique(pairs.negative, return_counts=True)
    found = {str(kind) or "positives": int(n) for kind, n in zip(kinds, counts, strict=True)}
    return {"positives": 0} | found
