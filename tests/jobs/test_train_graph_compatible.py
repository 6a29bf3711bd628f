"""Trainings whose model comes with maps to the vectors of an older version."""

import dataclasses

import jax
import numpy as np
import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.transforms.files import read_transform
from star_jax.jobs import export_graph, train_graph
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline.graph_compatible import CompatibleConfig
from star_jax.pipeline.graph_engines import EngineConfig
from star_jax.pipeline.graph_model import open_trained
from star_jax.train.exchange import ExchangeConfig
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.plan import PlanConfig
from star_jax.train.reporter import Reporter
from tests.jobs import graph_runs, tiny_graph
from tests.pipeline import older_version

NUM_STEPS, VALIDATE_EVERY, DIE_AT = 40, 10, 25
# Rates that do not depend on the length; with so large an eps, what is rounding stays small.
OPTIMIZER = OptimizerConfig(
    learning_rate=0.1, eps=1e-2, schedule="constant", max_warmup_fraction=0.0
)


def config(older, num_steps=NUM_STEPS, mode="joint", **fields):
    """A version that is wider than the older one; without dropout, which devices draw apart."""
    model = tiny_graph.config().model
    model = dataclasses.replace(
        model,
        encoder=dataclasses.replace(model.encoder, dim=12, dropout=0.0),
        decoder=dataclasses.replace(model.decoder, dropout=0.0),
    )
    compatible = {"old": str(older), "mode": mode, "settled": 0.5, **fields.pop("compatible", {})}
    return tiny_graph.config(
        model=model,
        optimizer=OPTIMIZER,
        tasks=("apply",),
        plan=PlanConfig(num_steps=num_steps, budget_s=None, validate_epochs=VALIDATE_EVERY / 10),
        compatible=CompatibleConfig(**compatible),
        **fields,
    )


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    return older_version.write(tmp_path_factory.mktemp("older") / "embeddings")


@pytest.fixture(scope="module")
def joint(older, market, tmp_path_factory):
    """Trained and exported."""
    workdir = graph_runs.begin(market, tmp_path_factory.mktemp("joint"))
    train_graph.run(config(older), workdir)
    export_graph.run(GraphExportConfig(), workdir)
    return workdir


def test_the_maps_settle_before_a_checkpoint_is_the_best(joint):
    rows = graph_runs.rows(joint, "val")
    assert [row["step"] for row in rows] == [0, 10, 20, 30, 40]
    assert rows[-1]["alignment"] < 0.6 * rows[0]["alignment"]
    meta = graph_runs.meta(joint)
    accepted = [row for row in rows if row["step"] >= 0.5 * NUM_STEPS]
    best = max(accepted, key=lambda row: row["score"])
    assert (meta["best_step"], meta["best_score"]) == (best["step"], best["score"])
    losses = [row["loss_alignment"] for row in graph_runs.rows(joint, "train")]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_the_export_writes_the_maps_beside_the_vectors(joint, older):
    transform = read_transform(joint / "transform")
    assert transform.mode == "joint"
    assert transform.new == artefacts.digest(joint / "graph_embeddings")
    assert transform.old == artefacts.digest(older)
    assert transform.sizes() == {"member": (12, 8), "job": (12, 8)}
    lengths = []
    for table in ("member", "job"):
        ours = older_version.by_id(joint / "graph_embeddings", table)
        theirs = older_version.by_id(older, table)
        mapped = transform.apply(table, np.stack([ours[name] for name in theirs]))
        lengths += np.linalg.norm(mapped - np.stack(list(theirs.values())), axis=1).tolist()
    rows = {row["step"]: row for row in graph_runs.rows(joint, "val")}
    validated = rows[graph_runs.meta(joint)["best_step"]]["alignment"]
    assert np.mean(lengths) == pytest.approx(validated, rel=0.3)  # Of other views of the nodes.


def test_an_interrupted_training_goes_on_to_the_same_maps(
    joint, older, market, tmp_path, monkeypatch
):
    workdir = graph_runs.begin(market, tmp_path / "interrupted")
    log = Reporter.log

    def dying_log(self, now, split, metrics):
        log(self, now, split, metrics)
        if (now, split) == (DIE_AT, "train"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Reporter, "log", dying_log)
    with pytest.raises(KeyboardInterrupt):
        train_graph.run(config(older), workdir)
    monkeypatch.setattr(Reporter, "log", log)
    train_graph.run(config(older), workdir)
    assert graph_runs.losses(workdir) == graph_runs.losses(joint)
    assert (
        graph_runs.rows(workdir, "val")[-1]["alignment"]
        == (graph_runs.rows(joint, "val")[-1]["alignment"])
    )
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    found, expected = (
        open_trained(folder, "graph_model", mesh).variables for folder in (workdir, joint)
    )
    assert set(found["params"]["compatible"]) == {"member", "job"}
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
def test_eight_devices_that_sample_give_what_one_gives(joint, older, market, tmp_path):
    workdir = graph_runs.begin(market, tmp_path / "mesh")
    engine = EngineConfig(kind="mesh", slack=8.0)
    train_graph.run(config(older, 3, engine=engine, mesh=MeshConfig(data=4, fsdp=2)), workdir)
    for found, expected in zip(
        graph_runs.rows(workdir, "train"), graph_runs.rows(joint, "train")[:3], strict=True
    ):
        for name in ("loss", "gradient_norm", "loss_alignment", "alignment"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_one_map_for_all_through_a_chain_on_devices_that_meet_seldom(older, market, tmp_path):
    workdir = graph_runs.begin(market, tmp_path / "multi")
    chain = older_version.write_chain(tmp_path, older)
    before = [artefacts.digest(folder) for folder in chain]
    multi = {"shared": True, "chain": tuple(map(str, chain))}
    made = config(
        older,
        2,
        mode="joint_multi",
        compatible=multi,
        mesh=MeshConfig(data=2),
        exchange=ExchangeConfig(every=2),
    )
    train_graph.run(made, workdir)
    assert [artefacts.digest(folder) for folder in chain] == before
    first, last = graph_runs.rows(workdir, "train")
    assert last["loss_alignment"] < first["loss_alignment"]
    trained = open_trained(workdir, "graph_model", make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    assert trained.file.compatible is not None
    assert trained.file.compatible.mode == "joint_multi"
    (matrix,) = trained.variables["params"]["compatible"].values()
    assert matrix.shape == (12, 8)


def test_another_older_version_is_another_training(older, market, tmp_path):
    workdir = graph_runs.begin(market, tmp_path / "changed")
    folder = older_version.write(tmp_path / "older")
    (workdir / "graph_model").mkdir()
    made = config(folder)
    train_graph.note_begun(
        workdir / "graph_model" / train_graph.JOB, made, train_graph.begun_with(made, workdir)
    )
    older_version.write(folder, unit_norm=True)
    with pytest.raises(InputError, match=r"was begun with compatible\.old"):
        train_graph.run(made, workdir)
