"""Trainings that stay compatible with an older version."""

import dataclasses
import logging
import shutil

import jax
import numpy as np
import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.table import read_table
from star_jax.embeddings.transforms.files import read_transform, write_transform
from star_jax.embeddings.transforms.maps import linear
from star_jax.embeddings.transforms.transform import Step, Transform
from star_jax.graph.encoder import GraphEncoderConfig
from star_jax.graph.samplers.fanouts import FanoutConfig
from star_jax.jobs import export_graph, train_graph
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.parallel.mesh import MeshConfig
from star_jax.pipeline.graph_compatible import CompatibleConfig, OldVersion, describe_compatible
from star_jax.pipeline.graph_engines import EngineConfig
from star_jax.pipeline.graph_model import open_trained, read_model_file
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.plan import PlanConfig
from star_jax.train.reporter import Reporter
from tests.jobs import graph_runs, older_version, tiny_graph


@pytest.fixture(scope="module")
def older(market, tmp_path_factory):
    """Vectors of width 8 of a model that learned."""
    workdir = graph_runs.begin(market, tmp_path_factory.mktemp("older"))
    train_graph.run(tiny_graph.config(num_steps=60), workdir)
    export_graph.run(GraphExportConfig(visible="train"), workdir)
    return older_version.write(workdir / "old", workdir / "graph_embeddings")


def wider(old, num_steps, **fields):
    """A new version, wider than the old one."""
    model = tiny_graph.config().model
    encoder = dataclasses.replace(model.encoder, dim=12)
    compatible = {name: fields.pop(name) for name in list(fields) if name in COMPATIBLE}
    return tiny_graph.config(
        model=dataclasses.replace(model, encoder=encoder),
        seed=1,
        plan=PlanConfig(num_steps=num_steps, budget_s=None, validate_epochs=2.0),
        compatible=CompatibleConfig(old=str(old), **compatible),
        **fields,
    )


COMPATIBLE = {field.name for field in dataclasses.fields(CompatibleConfig)}


@pytest.fixture(scope="module")
def joint(older, market, tmp_path_factory):
    """A new version that learned with its maps, exported."""
    workdir = graph_runs.begin(market, tmp_path_factory.mktemp("joint"))
    train_graph.run(wider(older, 150, settled=0.6), workdir)
    export_graph.run(GraphExportConfig(), workdir)
    return workdir


def test_debug(joint):
    for row in graph_runs.rows(joint, "val"):
        print({k: v for k, v in row.items() if "align" in k or k in ("step", "score")})
    for row in graph_runs.rows(joint, "train")[::20]:
        print({k: v for k, v in row.items() if "align" in k or "loss" in k})
    print(graph_runs.meta(joint))
    t = read_transform(joint / "transform")
    print(t.sizes(), t.mode)
