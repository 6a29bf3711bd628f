"""What consumers are trained to answer: the link tasks of W/tables, and attributes of nodes.

Attributes are what Hu et al. (2022) call unintended tasks: nobody trained the embeddings on them.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Int, Shaped

from star_jax.config import InputError
from star_jax.evaluation.cohorts import crosses
from star_jax.evaluation.metrics import kinds, rows_of
from star_jax.pipeline.consumers.versions import Ends, Role, Version
from star_jax.pipeline.scored import labelled
from star_jax.pipeline.tables.read import (
    PairTable,
    TablesMeta,
    read_cohorts,
    read_nodes,
    read_pairs,
)

Group = Literal["cohort", "cold", "warm"]
_FEWEST = 20  # Positives, and negatives, to train on and to score.

_log = logging.getLogger(__name__)


class Examples(NamedTuple):
    """Labelled rows that both versions have."""

    ends: Ends
    label: Bool[np.ndarray, " B"]
    unit: Int[np.ndarray, " B"]  # Sender of a pair, or the node: those of one are not independent.

    def take(self, rows: Shaped[np.ndarray, " C"]) -> "Examples":
        """Those alone, by index or mask."""
        return Examples(self.ends.take(rows), self.label[rows], self.unit[rows])


class Slice(NamedTuple):
    """Examples that are looked at by themselves."""

    group: Group
    name: str
    rows: Bool[np.ndarray, " B"]


class Question(NamedTuple):
    """A label to predict from embeddings.

    Attributes:
      name: `<task>`, `<node type>.<column>` or `<node type>.<column>=<value>`.
      fit: What consumers are trained on.
      test: What they are scored on.
      metrics: Rows of `test` by metric: a pair's negatives are of several kinds.
      slices: Of the first metric's rows.
      num_left_out: Test examples of which a version has no vector.
    """

    name: str
    fit: Examples
    test: Examples
    metrics: dict[str, Bool[np.ndarray, " B"]]
    slices: list[Slice]
    num_left_out: int


class Asked(NamedTuple):
    """What the questions are about."""

    tables: Path
    meta: TablesMeta
    versions: tuple[Version, ...]

    def shared(self, ends: Ends) -> Bool[np.ndarray, " B"]:
        """Examples whose rows all versions have."""
        return np.logical_and.reduce([version.has(ends) for version in self.versions])

    def table_of(self, node_type: str, role: Role) -> str | None:
        """The table that all versions have for it."""
        found = {version.table_of(node_type, role) for version in self.versions}
        return found.pop() if len(found) == 1 else None


def link_questions(asked: Asked, names: Sequence[str]) -> Iterator[Question]:
    """The link tasks, by training pairs and the fixed test pairs.

    Args:
      asked: The versions.
      names: Of tasks; empty: all of which both versions have the tables.

    Raises:
      InputError: A name is unknown, or a task that was named has too little to go by.
    """
    if unknown := [name for name in names if name not in asked.meta.tasks]:
        known = ", ".join(asked.meta.tasks)
        raise InputError(f"tasks names {unknown[0]!r}, needed one of {known}")
    for name in names or asked.meta.tasks:
        task = asked.meta.tasks[name]
        ends = asked.table_of(task.sender, "sender"), asked.table_of(task.receiver, "receiver")
        sender, receiver = ends
        if sender is None or receiver is None:
            problem = f"task {name} joins {task.sender} and {task.receiver}, not in both versions"
        else:
            question = _of_task(asked, name, (sender, receiver))
            problem = _too_few(question)
            if problem is None:
                yield question
                continue
        _leave_out(problem, named=bool(names))


def attribute_questions(asked: Asked, names: Sequence[str], seed: int) -> Iterator[Question]:
    """Attributes of nodes: half of the nodes train, the others are scored.

    Args:
      asked: The versions.
      names: `<type>.<column>`: whether a categorical column has its most frequent value (or, as
        `<type>.<column>=<value>`, that one), or a number is above its median. Empty: all columns of
        the node types that both versions have.
      seed: Of the halves.

    Raises:
      InputError: A name is unknown, or a column that was named has too little to go by.
    """
    all_names = [
        f"{node_type}.{column}"
        for node_type, about in asked.meta.node_types.items()
        if asked.table_of(node_type, "sender") is not None
        for column in (*about.categorical, *about.dense)
    ]
    for name in names or all_names:
        base = name.partition("=")[0]
        if base not in all_names:
            known = ", ".join(all_names) or "none: no node type of both versions has a column"
            raise InputError(f"attributes names {name!r}, needed one of {known}")
        question = _of_attribute(asked, name, seed)
        problem = _too_few(question)
        if problem is None:
            yield question
        else:
            _leave_out(problem, named=bool(names))


def _leave_out(problem: str, *, named: bool) -> None:
    if named:
        raise InputError(problem)
    _log.info("%s: left out", problem)


def _too_few(question: Question) -> str | None:
    for what, examples in (("train on", question.fit), ("score", question.test)):
        num_positives = int(examples.label.sum())
        num_negatives = len(examples.label) - num_positives
        if min(num_positives, num_negatives) < _FEWEST:
            return (
                f"{question.name} has {num_positives} positives and {num_negatives} negatives to "
                f"{what} in both versions, needed {_FEWEST} of each"
            )
    return None


def _of_task(asked: Asked, name: str, tables: tuple[str, str]) -> Question:
    fit, *_ = _pairs(asked, name, "train", tables)
    test, kept, num_left_out = _pairs(asked, name, "test", tables)
    about = asked.meta.tasks[name]
    marked = labelled(kept, about)
    metrics = {f"auc_{kind}": rows_of(marked, kind) for kind in kinds(marked)}
    slices = [
        Slice("cold" if mark.startswith("cold_") else "warm", mark, rows)
        for mark, rows in marked.marks.items()
        if mark.startswith(("cold_", "warm_"))
    ]
    slices += _cohorts(asked, about.sender, kept.sender)
    return Question(name, fit, test, metrics, slices, num_left_out)


def _pairs(
    asked: Asked, name: str, split: str, tables: tuple[str, str]
) -> tuple[Examples, PairTable, int]:
    """Pairs whose ends both versions have, and how many are left out."""
    pairs = read_pairs(asked.tables, name, split)
    ends = asked.versions[0].pair_ends(tables, pairs)
    shared = asked.shared(ends)
    kept = PairTable(*(column[shared] for column in pairs))
    examples = Examples(ends.take(shared), kept.label == 1, kept.sender)
    return examples, kept, int(np.sum(~shared))


def _cohorts(asked: Asked, sender: str, senders: Int[np.ndarray, " B"]) -> list[Slice]:
    """Cohorts are of the main task's senders; other tasks may have the same."""
    if sender != next(iter(asked.meta.tasks.values())).sender:
        return []
    columns = {
        column: np.asarray(values, np.str_)[senders].tolist()
        for column, values in read_cohorts(asked.tables, asked.meta).items()
    }
    slices = []
    for column, values in (columns | crosses(columns)).items():
        named = np.asarray(values, np.str_)
        slices += [
            Slice("cohort", f"{column} {value}", named == value)
            for value in np.unique(named[named != ""]).tolist()
        ]
    return slices


def _of_attribute(asked: Asked, name: str, seed: int) -> Question:
    node_type, _, rest = name.partition(".")
    column, _, value = rest.partition("=")
    table = asked.table_of(node_type, "sender")
    assert table is not None
    nodes = read_nodes(asked.tables, node_type)
    ends = asked.versions[0].node_ends(table, asked.tables, nodes.num_rows)
    if column in asked.meta.node_types[node_type].categorical:
        values = asked.tables / "vocab" / f"{node_type}.{column}.parquet"
        label, known, value = _is_value(nodes[f"cat_{column}"].to_numpy(), values, value)
        name = f"{node_type}.{column}={value}"
    elif value:
        raise InputError(f"attributes names {name!r}, but {column} is a number: leave out ={value}")
    else:
        numbers = nodes[f"dense_{column}"].to_numpy().astype(np.float64)
        known = np.isfinite(numbers)
        label = numbers > (np.median(numbers[known]) if known.any() else 0.0)
    found = Examples(ends, label, np.arange(nodes.num_rows))
    shared = asked.shared(ends)
    rows = np.flatnonzero(known & shared)
    drawn = np.random.default_rng(seed).permutation(rows)
    halves = [np.sort(half) for half in (drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :])]
    fit, test = (found.take(half) for half in halves)
    everyone = np.ones(len(test.label), np.bool_)
    return Question(name, fit, test, {"auc": everyone}, [], int(np.sum(known & ~shared)))


def _is_value(
    codes: Int[np.ndarray, " N"], vocabulary: Path, value: str
) -> tuple[Bool[np.ndarray, " N"], Bool[np.ndarray, " N"], str]:
    """Which nodes have a value ("": the most frequent one), which have any, and the value."""
    rows = pq.read_table(vocabulary)
    code_of = dict(zip(rows["value"].to_pylist(), rows["code"].to_pylist(), strict=True))
    known = codes > 0  # 0: missing.
    if not value and code_of:
        frequent = np.bincount(codes[known], minlength=1).argmax()
        value = next(name for name, code in code_of.items() if code == max(frequent, 1))
    elif value not in code_of:
        some = ", ".join(list(code_of)[:10]) or "none"
        raise InputError(
            f"attributes asks for the value {value!r} of {vocabulary}, which has {some}"
        )
    return codes == code_of[value], known, value
