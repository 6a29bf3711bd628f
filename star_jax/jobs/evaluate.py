"""`star evaluate`: scores the fixed pairs and queries with every model; writes W/evaluation.

A last row has all models stacked, with weights that the validation split teaches. Several processes
score together; the first of them measures and writes.
"""

import functools
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.parallel import processes
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline import measurements
from star_jax.pipeline.graph_scoring import GraphPairScorer
from star_jax.pipeline.measurements import MeasureConfig
from star_jax.pipeline.reference_methods import Method, fit_references
from star_jax.pipeline.scored import Questions, Scored, ask, scored, write_scored
from star_jax.pipeline.sender_ranking import SENDER, SenderWeights, sender_ranking
from star_jax.pipeline.stacked import STACKED, Asked, Taught, teach, warm_ends
from star_jax.pipeline.tables.read import (
    PairTable,
    Ranking,
    TablesMeta,
    read_cohorts,
    read_meta,
    read_pairs,
    read_ranking,
)
from star_jax.pipeline.text_calibration import read_calibration
from star_jax.pipeline.text_scoring import TextPairScorer

KIND = "evaluation"
SPLITS = ("val", "test")
TEXT, GRAPH, BOTH = "text", "graph", "text+graph"
_FOLDERS = {TEXT: "text", GRAPH: "graph_only_model", BOTH: "graph_model"}
_GRAPH_MODELS = tuple((name, _FOLDERS[name]) for name in (GRAPH, BOTH))
_MODELS = (*_FOLDERS, STACKED)
_VERSUS = ((BOTH, TEXT), (BOTH, GRAPH), (STACKED, BOTH))
_GIVEN = {"val": "methods_val", "test": "methods"}  # Where a reference.json has them.
_GIVEN_SENDERS = "rank_members_for_job"  # The other direction, of the test split.

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured on the fixed pairs.

    Attributes:
      mesh: Devices of all processes together: pairs and the nodes around them are split over `data`
        and `fsdp`, large parameters of the graph models over `fsdp`.
      measure: Intervals, calibration, cohorts.
      strict_time: Also score the main task's test pairs with a graph of only what was there before
        each pair.
      sender_pairs: Of the main task's splits, receivers also order the senders they might be
        shown to; at most so many senders times receivers are scored of each. 0: not at all.
      seed: Of the reference methods that draw.
    """

    mesh: MeshConfig = field(default_factory=MeshConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    strict_time: bool = True
    sender_pairs: int = 1 << 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sender_pairs < 0:
            raise ValueError(f"sender_pairs {self.sender_pairs} must be >= 0")


class TextModel(NamedTuple):
    """The text half alone, on one task."""

    scorer: TextPairScorer
    task: str

    def score(self, pairs: PairTable) -> Float[np.ndarray, " B"]:
        """As `Method.score`."""
        return self.scorer.score(pairs)

    def score_grid(self, ranking: Ranking) -> Float[np.ndarray, "Q C"]:
        """As `Method.score_grid`."""
        return self.scorer.score_grid(self.task, ranking)


class GraphModel(NamedTuple):
    """A graph model on one task and split."""

    scorer: GraphPairScorer
    task: str
    split: str
    ranks: bool  # Strict time asks for a graph per query: then only pairs are scored.

    def score(self, pairs: PairTable) -> Float[np.ndarray, " B"]:
        """As `Method.score`."""
        return self.scorer.score(pairs, self.split, self.task)

    def score_grid(self, ranking: Ranking) -> Float[np.ndarray, "Q C"] | None:
        """As `Method.score_grid`."""
        return self.scorer.score_grid(self.task, ranking, self.split) if self.ranks else None


class _Scorers(NamedTuple):
    """The trained models, opened once."""

    text: TextPairScorer
    graph: dict[str, GraphPairScorer]
    strict: dict[str, GraphPairScorer]  # Empty when not asked for.

    def models(self, task: str, split: str, *, main: bool) -> dict[str, Method]:
        """The text model was trained on the main task alone; its inputs are as of their time."""
        graph = {
            name: GraphModel(scorer, task, split, True)
            for name, scorer in self.graph.items()
            if task in scorer.tasks
        }
        return {TEXT: TextModel(self.text, task), **graph} if main else {**graph}

    def strict_models(self, task: str, split: str, *, main: bool) -> dict[str, Method]:
        """The graph models by the strict rule, on what decides: the main task's test split."""
        if not main or split != "test":
            return {}
        return {name: GraphModel(s, task, split, False) for name, s in self.strict.items()}


class _Found(NamedTuple):
    """What was asked by task and split, what the models say, and what the validation split taught.

    Of the main task's test split alone receivers order senders; those of its validation only teach.
    """

    questions: dict[tuple[str, str], Questions]
    scored: dict[tuple[str, str], Scored]
    taught: dict[str, Taught]  # By task.


def run(config: EvaluateConfig, workdir: Path) -> None:
    """Measures every model on every task; the numbers beside them are the set's or fitted here."""
    meta = read_meta(workdir / "tables")
    found = _score(config, workdir, meta)
    processes.by_the_first(functools.partial(_write, config, workdir, meta, found))


def _score(config: EvaluateConfig, workdir: Path, meta: TablesMeta) -> _Found:
    """Scores of the trained models on all that can be measured; all processes score together."""
    tables, mesh = workdir / "tables", make_mesh(config.mesh)
    main_task = next(iter(meta.tasks))
    scorers = _Scorers(
        TextPairScorer.open(workdir),
        {name: GraphPairScorer(workdir, model, "split", mesh) for name, model in _GRAPH_MODELS},
        {name: GraphPairScorer(workdir, model, "time", mesh) for name, model in _GRAPH_MODELS}
        if config.strict_time
        else {},
    )
    found = _Found({}, {}, {})
    for task in meta.tasks:
        asked = _ask(config, tables, meta, scorers, task)
        own = {split: dict(each.answers) for split, each in asked.items()}
        senders: dict[str, SenderWeights] = {}
        if len(asked) == len(SPLITS):
            taught = teach(asked["val"], asked["test"])
            own["test"][STACKED], senders = taught.answer, taught.senders
            found.taught[task] = taught
        for split, (questions, *_) in asked.items():
            at = (task, split)
            measured = (
                questions if at == (main_task, "test") else questions._replace(of_senders=None)
            )
            found.questions[at] = measured
            found.scored[at] = scored(measured, own[split].items(), meta.tasks[task], senders)
    return found


def _ask(
    config: EvaluateConfig, tables: Path, meta: TablesMeta, scorers: _Scorers, task: str
) -> dict[str, Asked]:
    """What is asked about a task's splits, as far as they can be measured, and the answers."""
    asked: dict[str, Asked] = {}
    main = task == next(iter(meta.tasks))
    for split in reversed(SPLITS):  # Test sees most: what holds its samples holds all.
        at = (task, split)
        pairs = read_pairs(tables, task, split)
        if not _measurable(tables, at, pairs, needed=main and split == "test"):
            continue
        models = scorers.models(task, split, main=main)
        strict = scorers.strict_models(task, split, main=main)
        if not models:
            _log.warning("no model was trained on task %s: not measured", task)
            continue
        _log.info("%s, %s: %d pairs", task, split, len(pairs.label))
        methods = {**models, **{_strict(name): model for name, model in strict.items()}}
        of_senders = None
        if main and config.sender_pairs:
            of_senders = sender_ranking(tables, meta, task, split, pairs, config.sender_pairs)
        questions = Questions(pairs, read_ranking(tables, task, split), of_senders)
        answers = dict(ask(methods, questions))
        asked[split] = Asked(questions, answers, warm_ends(tables, meta, task, split))
    return asked


def _write(config: EvaluateConfig, workdir: Path, meta: TablesMeta, found: _Found) -> None:
    tables = workdir / "tables"
    main_task = next(iter(meta.tasks))
    with artefacts.writing(workdir / KIND, KIND) as folder:
        content: dict[str, Any] = {
            "dataset": meta.dataset,
            "main_task": main_task,
            "text_training": text_training(workdir / "text"),
            "tasks": {task: {} for task in meta.tasks},
            "taught": {task: _taught_json(taught) for task, taught in found.taught.items()},
        }
        for task, split in found.scored:
            of_all, measured = _measure(config, tables, meta, found, (task, split), folder)
            content["tasks"][task][split] = measured
            if (task, split) == (main_task, "test"):
                content |= _closer_look(config, tables, meta, of_all)
                content["calibration"][TEXT] |= _calibrated(config, workdir, of_all)
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
        artefacts.write_text(folder / "metrics.json", text)
        models = {name: artefacts.digest(workdir / name) for name in _FOLDERS.values()}
        described = {"dataset": meta.dataset, "main_task": main_task, "models": models}
        artefacts.set_meta(folder, described)
    _speak(content)


def text_training(folder: Path) -> dict[str, Any]:
    """How much of the training pairs the text model has seen."""
    meta = artefacts.read_manifest(folder, "text_model").meta
    return {name: meta[name] for name in ("num_steps", "num_epochs", "num_train_pairs")}


def _measurable(tables: Path, at: tuple[str, str], pairs: PairTable, *, needed: bool) -> bool:
    """Whether a task and split have positives and negatives.

    Raises:
      InputError: They do not, and there is no report without them.
    """
    num_positives = int(pairs.label.sum())
    if 0 < num_positives < len(pairs.label):
        return True
    task, split = at
    problem = (
        f"the {split} pairs of task {task} in {tables} have {num_positives} positives and "
        f"{len(pairs.label) - num_positives} negatives, needed both"
    )
    if needed:
        raise InputError(problem)
    _log.warning("%s: not measured", problem)
    return False


def _measure(
    config: EvaluateConfig,
    tables: Path,
    meta: TablesMeta,
    found: _Found,
    at: tuple[str, str],
    folder: Path,
) -> tuple[Scored, dict[str, Any]]:
    """Writes the scores of one task and split, and returns the metrics of all methods."""
    task, split = at
    given = _given(meta, task, split)
    fitted = fit_references(tables, meta, task, split, config.seed) if given is None else {}
    by_models, questions = found.scored[at], found.questions[at]
    of_all = by_models.joined(scored(questions, ask(fitted, questions), meta.tasks[task]))
    write_scored(folder / "scores", f"{task}_{split}", questions.pairs, of_all)
    metrics = measurements.metrics_of(of_all, list(of_all.scores))
    strict = [name for name in _MODELS if _strict(name) in by_models.scores]
    return of_all, {
        "models": {name: metrics[name] for name in _MODELS if name in by_models.scores},
        "strict_time": {name: metrics[_strict(name)] for name in strict},
        "references": {name: metrics[name] for name in fitted} if given is None else given,
    }


def _taught_json(taught: Taught) -> dict[str, Any]:
    """The weights, to be read by people."""
    return {
        STACKED: {"bias": taught.stack.bias, **taught.stack.weights},
        "senders": {name: weights._asdict() for name, weights in taught.senders.items()},
    }


def _given(meta: TablesMeta, task: str, split: str) -> dict[str, dict[str, float]] | None:
    """The reference numbers that came with the set: for its main task only.

    Raises:
      InputError: The set has a reference.json without the numbers of its methods.
    """
    if meta.reference is None or task != next(iter(meta.tasks)):
        return None
    if "methods" not in meta.reference:
        raise InputError(
            f"reference.json of {meta.dataset} has {', '.join(meta.reference)}, needed methods"
        )
    if _GIVEN[split] not in meta.reference:
        _log.info("reference.json of %s has no %s", meta.dataset, _GIVEN[split])
        return {}
    found = meta.reference[_GIVEN[split]]
    if split == "test" and _GIVEN_SENDERS in meta.reference:
        for name, values in meta.reference[_GIVEN_SENDERS]["methods"].items():
            senders = {f"{SENDER}{metric}": value for metric, value in values.items()}
            found = {**found, name: {**found.get(name, {}), **senders}}
    return found


def _closer_look(
    config: EvaluateConfig, tables: Path, meta: TablesMeta, of_all: Scored
) -> dict[str, Any]:
    """What is reported for the main task's test split alone."""
    models = [name for name in _MODELS if name in of_all.scores]
    fitted = [name for name in of_all.scores if name not in models]
    versus = [both for both in _VERSUS if both[0] in models]
    columns = read_cohorts(tables, meta)
    measure = config.measure
    return {
        "level": measure.level,
        "intervals": measurements.intervals_of(of_all, [*models, *fitted], measure),
        "gains": measurements.gains_of(of_all, versus, measure),
        "calibration": measurements.calibration_of(of_all, models, measure),
        "cohorts": measurements.cohorts_of(of_all, models, columns, measure),
    }


def _calibrated(config: EvaluateConfig, workdir: Path, of_all: Scored) -> dict[str, Any]:
    """The text model's probabilities as its export says they are to be read."""
    found = read_calibration(workdir / "text_embeddings")
    if found is None:
        _log.info("the export of the text model has no calibration: its logits are shown as such")
        return {}
    return {"calibrated": measurements.calibrated_of(of_all, TEXT, found, config.measure)}


def _strict(name: str) -> str:
    return f"{name} strict_time"


def _speak(content: Mapping[str, Any]) -> None:
    """The findings that nobody should have to look for."""
    training = content["text_training"]
    _log.info(
        "the text model was trained on %.2f epochs: %d steps, %d pairs are an epoch",
        *(training[key] for key in ("num_epochs", "num_steps", "num_train_pairs")),
    )
    for gain in content["gains"]:
        _log.info(
            "%s over %s: %s %+.4f (p %.2g)",
            *(gain[key] for key in ("model", "over", "metric", "gain", "p_value")),
        )
    for name, found in content["cohorts"].items():
        for cohort in found["cohorts"]:
            if cohort["beyond_bound"]:
                _log.warning(
                    "%s: AUC of %s %s differs by %+.4f from the others, beyond the allowed gap",
                    *(name, cohort["column"], cohort["value"], cohort["gap"]),
                )
