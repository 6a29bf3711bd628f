"""What of a finished run's folder becomes versions, with the metrics that belong to each."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from star_jax import artefacts
from star_jax.config import InputError

METRICS, COHORTS, ABLATION = "metrics", "cohorts", "ablation"
_EMBEDDINGS = ("text_embeddings", "graph_embeddings")


class Part(NamedTuple):
    """A folder of the run that becomes a version."""

    folder: Path
    name: str
    reports: dict[str, Any]


class _Kind(NamedTuple):
    folder: str
    suffix: str  # Of the version's name.
    made_by: str | None  # Folder of the model that wrote it.
    scored_as: str  # Model's name in the evaluation.


_PARTS = (  # Models before what they made.
    _Kind("text", "text-model", None, "text"),
    _Kind("text_embeddings", "text", "text", "text"),
    _Kind("graph_model", "graph-model", None, "text+graph"),
    _Kind("graph_model_texts", "graph-texts", "graph_model", "text+graph"),
    _Kind("graph_embeddings", "graph", "graph_model", "text+graph"),
)


def gather(workdir: Path, name: str) -> list[Part]:
    """The embeddings of a run and the models that made them.

    Args:
      workdir: Of the run.
      name: What their names begin with.

    Raises:
      InputError: There are no embeddings, or they, or the evaluation, are of another model.
    """
    found = [kind for kind in _PARTS if (workdir / kind.folder / artefacts.MANIFEST).is_file()]
    if not any(kind.folder in _EMBEDDINGS for kind in found):
        raise InputError(
            f"{workdir} has none of {', '.join(_EMBEDDINGS)}; run `star export-text` or "
            "`star export-graph` first"
        )
    for kind in found:
        if kind.made_by is not None:
            _check_made_by(workdir, kind.folder, kind.made_by)
    scores = _read_scores(workdir)
    return [
        Part(workdir / kind.folder, f"{name}-{kind.suffix}", scores.get(kind.scored_as, {}))
        for kind in found
    ]


def _check_made_by(workdir: Path, folder: str, model: str) -> None:
    said = artefacts.read_any(workdir / folder).meta["model"]
    if said != artefacts.digest(workdir / model):
        command = "export-graph" if folder == "graph_embeddings" else "export-text"
        raise InputError(
            f"{workdir / folder} was written by another model than {workdir / model}; run "
            f"`star {command}` again"
        )


def _read_scores(workdir: Path) -> dict[str, dict[str, Any]]:
    """Reports of the test split by model; none without an evaluation."""
    folder = workdir / "evaluation"
    if not folder.is_dir():
        return {}
    said = artefacts.read_manifest(folder, "evaluation").meta.get("models")
    if said is None or any(said[name] != artefacts.digest(workdir / name) for name in said):
        raise InputError(f"{folder} is of other models than {workdir}; run `star evaluate` again")
    path = folder / "metrics.json"
    keys = ("dataset", "main_task", "tasks", "intervals", "level", "cohorts")
    content = artefacts.read_json(path, *keys)
    return {model: _reports(content, model) for model in content["cohorts"]}


def _reports(content: dict[str, Any], model: str) -> dict[str, Any]:
    main = content["main_task"]
    tasks = {
        task: splits["test"]["models"][model]
        for task, splits in content["tasks"].items()
        if model in splits.get("test", {}).get("models", {})
    }
    metrics = {
        "dataset": content["dataset"],
        "model": model,
        "split": "test",
        "main_task": main,
        "tasks": tasks,
        "level": content["level"],
        "intervals": content["intervals"][model],
    }
    return {METRICS: metrics, COHORTS: content["cohorts"][model]}


def read_ablation(path: Path) -> dict[str, Any]:
    """What `star branch report` wrote.

    Raises:
      InputError: The file is missing or is another one.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, needed what `star branch report` writes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = (content["all"], *content["signals"].values())
        if all({"owner", "seconds", "metrics"} <= row.keys() for row in rows):
            return content
    except (ValueError, KeyError, TypeError, AttributeError):  # Another file: refused below.
        pass
    raise InputError(f"{path} is not what `star branch report` writes; write it anew")
