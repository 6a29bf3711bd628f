"""A training whose step samples by itself is the training that the host's samples give."""

import dataclasses
import logging

import numpy as np
import pytest

from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.jobs import train_graph
from star_jax.parallel.mesh import MeshConfig
from star_jax.pipeline.graph_engines import EngineConfig
from tests.jobs import graph_runs, tiny_graph

MESH = EngineConfig(kind="mesh", slack=8.0)


@pytest.mark.slow
def test_a_step_that_samples_is_a_step_on_the_host_s_samples(market, tmp_path, caplog):
    """Its identity tables are updated by the rows that it draws."""
    model = dataclasses.replace(tiny_graph.config().model, features=tiny_graph.BY_ROWS)
    caplog.set_level(logging.INFO)
    found = {}
    for name, engine in (("host", EngineConfig()), ("mesh", MESH)):
        workdir = graph_runs.begin(market, tmp_path / name)
        config = tiny_graph.config(num_steps=3, engine=engine, mesh=MeshConfig(data=2), model=model)
        train_graph.run(config, workdir)
        rows = graph_runs.rows(workdir, "train")
        found[name] = [[row[n] for n in ("loss", "gradient_norm", "neighbours")] for row in rows]
        cut = [row.get("num_cut") for row in rows]
        assert cut == ([None] * 3 if name == "host" else [0.0] * 3)
    np.testing.assert_allclose(found["mesh"], found["host"], rtol=2e-5)
    assert "graph on 2 device(s)" in caplog.text


def test_an_engine_without_a_sampler_is_refused_at_once():
    with pytest.raises(
        ValueError, match=r"sampler\.kind 'ppr_walks' with engine.kind=mesh, needed one"
    ):
        tiny_graph.config(engine=MESH, sampler=SamplerConfig(kind="ppr_walks"))
    with pytest.raises(ValueError, match=r"slack 0\.5 must be >= 1"):
        EngineConfig(kind="mesh", slack=0.5)


@pytest.mark.slow
@pytest.mark.extra("deepgnn")
def test_a_training_through_deepgnn_ends_where_the_host_s_ends(market, tmp_path):
    found = {}
    for kind in ("host", "deepgnn"):
        workdir = graph_runs.begin(market, tmp_path / kind)
        config = tiny_graph.config(
            num_steps=80, engine=EngineConfig(kind=kind), tasks=("apply",), batch_size=32
        )
        train_graph.run(config, workdir)
        row = graph_runs.rows(workdir, "val")[-1]
        found[kind] = [row[f"auc_{negatives}"] for negatives in ("near", "uniform")]
        assert (workdir / "deepgnn").exists() == (kind == "deepgnn")
    np.testing.assert_allclose(found["deepgnn"], found["host"], atol=0.02)
    assert min(found["deepgnn"]) > 0.75
    losses = [graph_runs.losses(tmp_path / kind) for kind in found]
    assert losses[0] != losses[1]  # Their draws are not the same.
