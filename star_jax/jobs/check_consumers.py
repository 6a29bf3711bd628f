"""`star check-consumers`: does a new version of embeddings keep what was built on the old one.

Consumers (`star_jax.pipeline.consumers.fits`) are trained once on vectors of the old version and
then stay as they are, as Hu et al. (2022) do. They are scored on the fixed test pairs, and on
attributes that the embeddings were not trained for, with vectors of the old version, of the new
one as it is, and of what would be served of it: the new one through `--transform`, where there is
one. Beside them stands what a consumer trained anew would reach. Consumers see vectors alone, and
only nodes or texts that both versions have.

Training pairs are also edges that the vectors may tell of; that is so for both versions alike.

Writes an artefact of kind `contract`: `contract.json` with all tables, and in its manifest whether
every limit holds.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from star_jax import artefacts
from star_jax.config import InputError, to_json
from star_jax.embeddings.registry.registry import locate
from star_jax.embeddings.transforms.files import read_transform
from star_jax.pipeline.consumers.check import Answers, Pair, ScoreConfig, answers
from star_jax.pipeline.consumers.fits import DOT, find_fit
from star_jax.pipeline.consumers.limits import Limits, add_p_values, breaks
from star_jax.pipeline.consumers.questions import Asked, attribute_questions, link_questions
from star_jax.pipeline.consumers.spaces import mixed_indexes, spaces
from star_jax.pipeline.consumers.versions import Version
from star_jax.pipeline.tables.read import read_meta

KIND = "contract"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContractConfig:
    """What consumers are trained, on what, and what they may lose.

    Attributes:
      consumers: `dot`, those of scikit-learn (`logistic`, `trees`, `mlp`), or "module:function" of
        your own (`star_jax.pipeline.consumers.fits.Fit`).
      tasks: Link tasks of the tables. Empty: all.
      attributes: `<node type>.<column>`, or `<node type>.<column>=<value>`: what is asked of nodes.
        Empty: every column.
      score: Training, intervals, cohorts.
      limits: Broken ones are named, and fail the contract.
      num_sampled: Rows of a table whose neighbours are compared, exactly, among all of its rows.
      num_queries: Of a task, for the mixed index.
      seed: Of whatever is drawn, and of the consumers.
    """

    consumers: tuple[str, ...] = (DOT, "logistic", "trees", "mlp")
    tasks: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    score: ScoreConfig = dataclasses.field(default_factory=ScoreConfig)
    limits: Limits = dataclasses.field(default_factory=Limits)
    num_sampled: int = 1000
    num_queries: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_sampled", "num_queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be >= 1")


class _Found(NamedTuple):
    """Rows of the contract's tables."""

    answers: Answers
    spaces: list[dict[str, Any]]
    indexes: list[dict[str, Any]]
    num_left_out: dict[str, int]  # Test examples of which a version has no vector, by question.


def run(
    config: ContractConfig,
    workdir: Path,
    *,
    old: str,
    new: str,
    output: str,
    transform: str | None = None,
    registry: str | None = None,
) -> dict[str, Any]:
    """Trains, freezes and scores the consumers; writes the contract.

    Args:
      config: Consumers, questions and limits.
      workdir: Whose tables have the labels.
      old: Embeddings that consumers were trained on: a folder, or a version of the registry.
      new: Embeddings of the same kind that are to take their place.
      transform: What maps the new ones to the old ones' space; a chain is written as one by `star
        registry chain`. None: they are served as they are.
      registry: Path or URL; None where all of them are folders.
      output: Folder of the contract.

    Returns:
      `breaks`: a line for every limit that does not hold; `tables`: title -> rows of cells, the
      first one a header.

    Raises:
      InputError: The versions do not go with each other, the tables or the transform; or something
        else than a contract is at `output`.
    """
    artefacts.check_replaceable(Path(output), KIND)
    mapping = None if transform is None else locate(transform, registry)
    pair = _open(locate(old, registry), locate(new, registry), mapping, workdir / "tables")
    found = _measure(config, pair, workdir / "tables")
    broken = breaks(*found[:3], config.limits, config.score.level)
    content = {
        "config": json.loads(to_json(config)),
        "consumers": found.answers.metrics,
        "slices": found.answers.slices,
        "num_suppressed": found.answers.num_suppressed,
        "spaces": found.spaces,
        "indexes": found.indexes,
        "num_left_out": found.num_left_out,
        "breaks": broken,
    }
    meta = {
        "old": pair.old.digest,
        "new": pair.new.digest,
        "transform": None if mapping is None else artefacts.digest(mapping),
        "passed": not broken,
        "breaks": broken,
    }
    with artefacts.writing(Path(output), KIND) as folder:
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
        artefacts.write_text(folder / "contract.json", text)
        artefacts.set_meta(folder, meta)
    return {"breaks": broken, "tables": _tables(found)}


def _open(old: Path, new: Path, transform: Path | None, tables: Path) -> Pair:
    """Opens the versions, and makes sure that what is served goes into consumers of the old one."""
    before, after = Version(old, tables), Version(new, tables)
    if before.kind != after.kind:
        raise InputError(
            f"old {old} holds {before.kind} and new {new} {after.kind}, needed one kind"
        )
    if transform is None:
        pair = Pair(before, after, after, mapped=False)
    else:
        read = read_transform(transform)
        if (read.new, read.old) != (after.digest, before.digest):
            raise InputError(
                f"transform {transform} maps {read.new[:12]} to {read.old[:12]}, needed a map of "
                f"new {new} ({after.digest[:12]}) to old {old} ({before.digest[:12]})"
            )
        pair = Pair(before, after, after.through(read), mapped=True)
    for name in sorted(before.sizes.keys() & after.sizes.keys()):
        size = pair.served.vectors(name, pair.new.keys(name)[:1]).shape[1]
        if size != before.sizes[name]:
            raise InputError(
                f"table {name}: what would be served of new {new} is {size} wide, old {old} "
                f"{before.sizes[name]}; a --transform maps them"
            )
    return pair


def _measure(config: ContractConfig, pair: Pair, tables: Path) -> _Found:
    asked = Asked(tables, read_meta(tables), (pair.old, pair.new))
    fits = {name: find_fit(name) for name in config.consumers}
    questions = [
        *link_questions(asked, config.tasks),
        *attribute_questions(asked, config.attributes, config.seed),
    ]
    answered = answers(questions, pair, fits, config.score, config.seed)
    if not answered.metrics:  # A contract that asks nothing would hold.
        raise InputError(
            f"consumers {', '.join(config.consumers)} were asked nothing: no task and no attribute "
            "has examples in both versions; see the log"
        )
    add_p_values(answered, config.limits)
    return _Found(
        answered,
        spaces(pair, config.num_sampled, config.seed),
        list(mixed_indexes(asked, pair, config.num_queries, config.seed)),
        {question.name: question.num_left_out for question in questions},
    )


def _tables(found: _Found) -> dict[str, list[list[str]]]:
    """What people read first: all rows but those of slices, of which the worst."""
    worst: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in found.answers.slices:
        key = row["question"], row["consumer"], row["group"]
        if key not in worst or row["drop"] > worst[key]["drop"]:
            worst[key] = row
    slices = ("question", "consumer", "group", "slice", "num_members", "old", "served", "drop")
    metrics = ("question", "consumer", "metric", "old", "new", "served", "retrained", "drop")
    listed = {
        "frozen consumers": _cells(found.answers.metrics, (*metrics, "interval", "p_value")),
        "worst slices": _cells(list(worst.values()), (*slices, "p_value")),
        "vectors": _cells(found.spaces, tuple(found.spaces[0])),
        "indexes of dot products": _cells(
            found.indexes, tuple(found.indexes[0]) if found.indexes else ()
        ),
    }
    return {title: rows for title, rows in listed.items() if len(rows) > 1}


def _cells(rows: Sequence[dict[str, Any]], columns: tuple[str, ...]) -> list[list[str]]:
    return [list(columns), *([_cell(row[column]) for column in columns] for row in rows)]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return f"[{', '.join(map(_cell, value))}]"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
