"""Trainings, evaluations and exports on meshes of all three axes: what one device gives."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from star_jax.embeddings.table import read_table
from star_jax.jobs import export_graph, export_text, train_graph, train_text
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.jobs.export_text import TextExportConfig
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline.graph_engines import EngineConfig
from star_jax.pipeline.graph_scoring import GraphPairScorer
from star_jax.pipeline.tables.read import read_pairs, read_ranking
from star_jax.train.optimizers import OptimizerConfig
from tests.jobs import graph_runs, tiny_graph, tiny_text
from tests.pipeline.text_market import write_tables

ONE = MeshConfig(data=1)
MANY = MeshConfig(fsdp=2, tensor=2)
# With so large an eps, what is nothing but rounding stays small: plain Adam makes much of it.
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, eps=1.0)


@pytest.fixture(autouse=True)
def kernels_are_large(monkeypatch):
    """Else nothing here would be split over `fsdp`."""
    monkeypatch.setattr("star_jax.parallel.rules._SMALL", 64)


@pytest.fixture
def batches_are_small(monkeypatch):
    """Else one device would do all that is drawn."""
    monkeypatch.setattr("star_jax.pipeline.graph_embedding._MOST_SEEDS", 8)
    monkeypatch.setattr("star_jax.pipeline.graph_scoring._BATCH_PAIRS", 24)
    monkeypatch.setattr("star_jax.pipeline.graph_scoring._BLOCK_PAIRS", 16)


def figures(workdir, output):
    """Of all steps and validations, but for times."""
    return [
        (row["step"], {name: row[name] for name in names if name in row})
        for split, names in (
            ("train", ("loss", "gradient_norm")),
            ("val", ("bce", "score", "auc_uniform", "auc_near")),
        )
        for row in graph_runs.rows(workdir, split, output)
    ]


def same(found, expected):
    assert len(found) == len(expected)
    for (step, ours), (other, theirs) in zip(found, expected, strict=True):
        assert (step, set(ours)) == (other, set(theirs))
        for name, value in ours.items():
            np.testing.assert_allclose(value, theirs[name], rtol=1e-5, atol=1e-5, err_msg=name)


def text_run(folder, mesh):
    write_tables(folder / "tables")
    train_text.run(tiny_text.config(num_steps=3, mesh=mesh, optimizer=OPTIMIZER), folder)
    return folder


def text_export(workdir, mesh):
    export_text.run(TextExportConfig(mesh=mesh, batch_tokens=2048, num_lengths=1), workdir)
    return np.concatenate(
        [read_table(workdir / "text_embeddings", name).vectors for name in ("job", "member")]
    )


@pytest.mark.slow
def test_the_text_half_gives_on_a_mesh_what_it_gives_on_one_device(tmp_path):
    """A model of one device is exported on many, and one of many on one."""
    one, many = (text_run(tmp_path / name, mesh) for name, mesh in (("one", ONE), ("many", MANY)))
    found = figures(many, "text")
    same(found, figures(one, "text"))
    assert len(found) > 3
    vectors = [text_export(one, ONE), text_export(many, ONE)]
    shutil.rmtree(one / "text_embeddings")
    vectors.append(text_export(one, MANY))
    for other in vectors[1:]:
        np.testing.assert_allclose(other, vectors[0], atol=1e-5)


def graph_config(mesh, engine):
    model = tiny_graph.config().model
    model = dataclasses.replace(
        model,  # Devices draw their own dropout.
        encoder=dataclasses.replace(model.encoder, dropout=0.0),
        decoder=dataclasses.replace(model.decoder, dropout=0.0),
    )
    return tiny_graph.config(
        num_steps=2,
        mesh=mesh,
        engine=engine,
        model=model,
        tasks=("apply",),
        optimizer=OPTIMIZER,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("batches_are_small")
def test_the_graph_half_gives_on_a_mesh_what_it_gives_on_one_device(market, tmp_path):
    """There its step samples, from graphs that are copied along `data` and `tensor`."""
    one, many = (graph_runs.begin(market, tmp_path / name) for name in ("one", "many"))
    train_graph.run(graph_config(ONE, EngineConfig()), one)
    engine = EngineConfig(kind="mesh", graph_axes="fsdp", slack=8.0)
    train_graph.run(graph_config(MANY, engine), many)
    same(figures(many, "graph_model"), figures(one, "graph_model"))
    for expected, found in zip(*(results(one, mesh) for mesh in (ONE, MANY)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def results(workdir, mesh):
    """Vectors of all nodes in both ways, and scores by both rules, of one model on a mesh."""
    found = []
    for inference in ("sampled", "layerwise"):
        export_graph.run(GraphExportConfig(mesh=mesh, inference=inference, part_nodes=32), workdir)
        tables = [read_table(workdir / "graph_embeddings", name) for name in ("job", "member")]
        found += [table.vectors for table in tables]
    pairs = read_pairs(workdir / "tables", "apply", "test")
    ranking = read_ranking(workdir / "tables", "apply", "test")
    assert ranking is not None
    for rule in ("split", "time"):
        scorer = GraphPairScorer(workdir, "graph_model", rule, make_mesh(mesh))
        split = [leaf for leaf in jax.tree.leaves(scorer.trained.variables) if is_split(leaf)]
        assert bool(split) == (mesh.fsdp > 1)
        found.append(scorer.score(pairs, "test", "apply"))
        if rule == "split":
            found.append(scorer.score_grid("apply", ranking, "test"))
    return found


def is_split(leaf):
    return not leaf.sharding.is_fully_replicated
