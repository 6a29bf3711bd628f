"""What a report is made from, gathered from the folders of a run."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from star_jax import artefacts
from star_jax.evaluation.metrics import LabelledPairs
from star_jax.pipeline.report.figures import Curve
from star_jax.pipeline.scored import read_scores
from star_jax.pipeline.tables.read import TablesMeta, read_meta

_TRAINED = {"text": "text", "graph_model": "text+graph", "graph_only_model": "graph"}
_CHOSEN_BY = "score"  # What validation maximises, in every training log.


class Training(NamedTuple):
    """The log of one training run."""

    model: str
    curves: dict[str, Curve]


class StageRecord(NamedTuple):
    """What `star run` noted about a stage."""

    name: str
    seconds: float
    config: dict[str, Any]


class ReportContent(NamedTuple):
    """Everything the page shows, but the embedding map."""

    meta: TablesMeta
    evaluation: dict[str, Any]
    pairs: LabelledPairs
    scores: dict[str, Float[np.ndarray, " B"]]
    trainings: list[Training]
    stages: list[StageRecord]
    leaks: dict[str, Any] | None  # Of `star audit-leaks`, if it was run on this graph.

    @property
    def main(self) -> dict[str, Any]:
        """Metrics of the main task's test split."""
        return self.evaluation["tasks"][self.evaluation["main_task"]]["test"]

    @property
    def summary(self) -> dict[str, Any]:
        """The content of `report/metrics.json`."""
        return {
            "dataset": self.evaluation["dataset"],
            "models": self.main["models"],
            "references": self.main["references"],
        }


def gather(workdir: Path) -> ReportContent:
    """Reads what the stages before left behind.

    Raises:
      InputError: There is no complete evaluation.
    """
    folder = workdir / "evaluation"
    artefacts.read_manifest(folder, "evaluation")
    evaluation = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    pairs, scores = read_scores(folder / "scores", f"{evaluation['main_task']}_test")
    return ReportContent(
        meta=read_meta(workdir / "tables"),
        evaluation=evaluation,
        pairs=pairs,
        scores=scores,
        trainings=[
            Training(model, read_curves(workdir / name / "metrics.jsonl"))
            for name, model in _TRAINED.items()
            if (workdir / name / "metrics.jsonl").is_file()
        ],
        stages=read_stages(workdir),
        leaks=_leaks(workdir / "leaks", workdir / "graph"),
    )


def _leaks(folder: Path, graph: Path) -> dict[str, Any] | None:
    if not folder.is_dir():
        return None
    audited = artefacts.read_manifest(folder, "leaks").meta["graph"]
    if audited != artefacts.read_manifest(graph, "graph").meta["version"]:
        return None
    return artefacts.read_json(folder / "audit.json", "passed", "kinds")


def read_curves(path: Path) -> dict[str, Curve]:
    """Training loss, and every AUC of the validations (or their score where there is none)."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    train = [row for row in rows if row["split"] == "train"]
    val = [row for row in rows if row["split"] == "val"]
    names = sorted({name for row in val for name in row if "auc" in name}) or [_CHOSEN_BY]
    curves = {"training loss": _curve(train, "loss")}
    return curves | {name: _curve([row for row in val if name in row], name) for name in names}


def read_stages(workdir: Path) -> list[StageRecord]:
    """The finished stages in the order they ran; none without `star run`."""
    records = [
        artefacts.read_json(path, "state", "stage", "seconds", "config")
        for path in workdir.glob(f"*/{artefacts.STAGE}")
    ]
    done = sorted((r for r in records if r["state"] == "done"), key=lambda r: r["finished"])
    return [StageRecord(r["stage"], r["seconds"], r["config"]) for r in done]


def _curve(rows: list[dict[str, Any]], name: str) -> Curve:
    return Curve(
        np.asarray([row["step"] for row in rows], np.float64),
        np.asarray([row[name] for row in rows], np.float64),
    )
