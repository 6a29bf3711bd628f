"""The folders of a finished run, with a few bytes in the place of models and vectors."""

import json

from star_jax import artefacts
from star_jax.config import to_json
from star_jax.pipeline.signals import Signals, parts_by_signal
from tests.embeddings.registry.artefact import write

SEEN = "text", "graph", "text+graph"


def make(workdir, content="x", *, auc=0.8, signals=None, seed=0):
    """Writes what `star registry add` and `star branch report` read; returns the folder.

    Args:
      workdir: Where.
      content: Of models and vectors; other content is another run.
      auc: Of text+graph; the others have less.
      signals: That the graph was built from.
      seed: In the config of every stage.
    """
    parts = parts_by_signal(signals) if signals else {}
    write(workdir / "graph", "graph", version=f"graph of {content}", signals=parts)
    write(workdir / "text", "text_model", content, num_steps=7)
    text = artefacts.digest(workdir / "text")
    sizes = {"num_texts": {"job": 3}, "embedding_size": 8}
    write(workdir / "text_embeddings", "text_embeddings", content, model=text, **sizes)
    for name in ("graph_model", "graph_only_model"):
        write(workdir / name, "graph_model", f"{content} {name}", num_parameters=9)
    model = artefacts.digest(workdir / "graph_model")
    sizes = {"num_nodes": {"job": 3}, "embedding_size": 8}
    described = {"model": model, "graph": f"graph of {content}", **sizes}
    write(workdir / "graph_embeddings", "graph_embeddings", content, **described)
    _write_evaluation(workdir, auc)
    for path in workdir.glob("*"):
        record = {
            "stage": path.name,
            "config": {"seed": seed, "rate": 0.1},
            "inputs": {"tables": f"tables of {content}"},
            "state": "done",
            "seconds": 2.0,
            "finished": 0.0,
            "output": artefacts.digest(path),
        }
        artefacts.write_text(path / artefacts.STAGE, json.dumps(record))
    return workdir


def _write_evaluation(workdir, auc):
    cohort = {
        "column": "gender",
        "value": "FEMALE",
        "num_members": 40,
        "num_pairs": 90,
        "auc": auc - 0.01,
        "interval": [auc - 0.1, auc + 0.1],
        "gap": -0.02,
        "p_value": 0.5,
        "beyond_bound": False,
    }
    models = {
        name: {"auc_near": auc - 0.1 * less, "auc_near_warm_member": 0.5, "recall@10": 0.25}
        for less, name in enumerate(reversed(SEEN))
    }
    content = {
        "dataset": "toy",
        "main_task": "apply",
        "tasks": {"apply": {"test": {"models": models}, "val": {"models": models}}},
        "level": 0.95,
        "intervals": {name: {"auc_near": [auc - 0.2, auc + 0.2]} for name in SEEN},
        "cohorts": {name: {"cohorts": [cohort], "suppressed": {"gender": 1}} for name in SEEN},
    }
    with artefacts.writing(workdir / "evaluation", "evaluation") as folder:
        artefacts.write_text(folder / "metrics.json", json.dumps(content))
        names = ("text", "graph_only_model", "graph_model")
        scored = {name: artefacts.digest(workdir / name) for name in names}
        artefacts.set_meta(folder, {"dataset": "toy", "main_task": "apply", "models": scored})


def write_signals(path, signals: Signals):
    """Writes a manifest; returns its path."""
    path.write_text(to_json(signals), encoding="utf-8")
    return path
