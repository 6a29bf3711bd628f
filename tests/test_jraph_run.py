"""The reference path over segments through the whole of `star run`, against the dense path."""

import dataclasses
import json
import shutil

import pytest

from configs.run import tiny
from star_jax.jobs.run import RunConfig, run
from star_jax.parallel.mesh import MeshConfig
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.plan import PlanConfig


def few_steps(path) -> RunConfig:
    """The tiny market and its config; compiling is the cost, so one device and few steps."""
    config = tiny.get_config()
    one = MeshConfig(data=1)
    graph = config.train_graph
    encoder = dataclasses.replace(graph.model.encoder, path=path)
    return dataclasses.replace(
        config,
        train_text=dataclasses.replace(
            config.train_text, plan=PlanConfig(num_steps=2, budget_s=None), mesh=one
        ),
        train_graph=dataclasses.replace(
            graph,
            model=dataclasses.replace(graph.model, encoder=encoder),
            plan=PlanConfig(num_steps=6, budget_s=None),
            # A larger epsilon keeps Adam from enlarging rounding: it divides by the gradient.
            optimizer=OptimizerConfig(learning_rate=3e-3, eps=1e-3),
            mesh=one,
        ),
    )


def leaves(value, path=""):
    """Path -> number or text of every entry."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, inner in items for k, v in leaves(inner, f"{path}/{key}").items()}
    return {path: value}


@pytest.mark.slow
def test_both_paths_end_with_the_same_metrics(tmp_path, caplog):
    dense, jraph = tmp_path / "dense", tmp_path / "jraph"
    run(few_steps("dense"), dense)
    shutil.copytree(dense, jraph)
    caplog.clear()
    caplog.set_level("INFO")
    run(few_steps("jraph"), jraph)
    said = caplog.messages
    skipped = [line.split("] ")[1].split(":")[0] for line in said if "unchanged, skipped" in line]
    assert skipped == ["import", "train-text", "export-text", "build-graph"]
    assert sum("model.encoder.path" in line and "doing it anew" in line for line in said) == 2
    expected, got = (
        leaves(json.loads((folder / "report" / "metrics.json").read_text(encoding="utf-8")))
        for folder in (dense, jraph)
    )
    assert got.keys() == expected.keys()
    compared = [path for path in expected if path.startswith(("/models/graph", "/models/text+"))]
    assert len(compared) >= 10
    for path, value in expected.items():
        assert got[path] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-3)), (
            path
        )
