"""What `train-graph` takes and refuses."""

import dataclasses
import shutil

import numpy as np
import pytest

from star_jax import artefacts
from star_jax.config import InputError, from_json, to_json
from star_jax.embeddings.table import read_table
from star_jax.graph.decoders import DecoderConfig
from star_jax.graph.match import MatchConfig
from star_jax.graph.samplers.adaptive import AdaptiveConfig
from star_jax.graph.samplers.sampler import PprConfig, SamplerConfig
from star_jax.jobs import export_graph, train_graph
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.parallel.mesh import MeshConfig
from star_jax.pipeline import graph_training
from star_jax.pipeline.graph_model import read_model_file
from star_jax.pipeline.graph_scoring import GraphPairScorer
from star_jax.pipeline.hard_negatives import FOLDER, HARD, KIND
from star_jax.pipeline.tables.read import PairTable, read_pairs
from star_jax.pipeline.tables.write import write_pairs
from tests.jobs import graph_runs, tiny_graph

SOFTMAX_MODEL = dataclasses.replace(
    tiny_graph.config().model,
    decoder=DecoderConfig(kind="softmax", match=MatchConfig(enabled=False)),
)

BY_ROWS_MODEL = dataclasses.replace(tiny_graph.config().model, features=tiny_graph.BY_ROWS)


@pytest.mark.slow
def test_two_devices_train(market, tmp_path):
    workdir = graph_runs.begin(market, tmp_path / "two")
    train_graph.run(tiny_graph.config(num_steps=2, mesh=MeshConfig(data=2)), workdir)
    assert [step for step, *_ in graph_runs.losses(workdir)] == [1, 2]


def test_trains_against_the_receivers_of_the_batch(market, tmp_path):
    workdir = graph_runs.begin(market, tmp_path / "softmax")
    config = tiny_graph.config(num_steps=30, model=SOFTMAX_MODEL, popularity_correction=True)
    train_graph.run(config, workdir)
    first, *_, last = (row["loss_apply"] for row in graph_runs.rows(workdir, "train"))
    assert last < 0.9 * first


def test_without_text_and_with_fresh_negatives(market, tmp_path):
    workdir = graph_runs.begin(market, tmp_path / "graph")
    config = tiny_graph.config(
        num_steps=2, negatives="uniform", num_negatives=2, receiver_view="all"
    )
    train_graph.run(graph_training.without_text(config), workdir)
    shutil.rmtree(workdir / "text_embeddings")  # Other texts do not make another graph alone.
    assert read_model_file(workdir / "graph_only_model").sampling.receiver_keys is None
    export_graph.run(export_graph.without_text(GraphExportConfig(mesh=MeshConfig(data=1))), workdir)
    assert graph_runs.meta(workdir, "graph_only_model")["text"] is False
    assert len(graph_runs.losses(workdir, "graph_only_model")) == 2
    assert read_table(workdir / "graph_only_embeddings", "job").vectors.shape == (60, 8)
    scores = GraphPairScorer(workdir, "graph_only_model", "split").score(
        read_pairs(workdir / "tables", "apply", "test"), "test", "apply"
    )
    assert np.isfinite(scores).all()


def test_with_mined_negatives(market, tmp_path):
    workdir = graph_runs.begin(market, tmp_path / "mined")
    config = tiny_graph.config(num_steps=2, hard_negatives=1, tasks=("apply",))
    with pytest.raises(InputError, match=r"hard_negatives is not a complete artefact"):
        train_graph.run(config, workdir)
    pairs = read_pairs(workdir / "tables", "apply", "train")
    rows = np.flatnonzero(pairs.label == 1)
    mined = PairTable(*(column[rows] for column in pairs))._replace(
        receiver=((pairs.receiver[rows] + 1) % 60).astype(np.int32),
        label=np.zeros(len(rows), np.int8),
        negative=np.full(len(rows), HARD),
    )
    with artefacts.writing(workdir / FOLDER, KIND) as folder:
        write_pairs(mined, folder / "pairs" / "apply" / "train.parquet")
        about = {"tables": artefacts.digest(workdir / "tables"), "task": "apply"}
        artefacts.set_meta(folder, about)
    train_graph.run(config, workdir)
    train_graph.run(dataclasses.replace(config, hard_negatives=0, output="plain"), workdir)
    assert graph_runs.losses(workdir) != graph_runs.losses(workdir, "plain")
    first, second = (
        artefacts.read_manifest(workdir / name, "graph_model").meta["num_epochs"]
        for name in ("graph_model", "plain")
    )
    other = dataclasses.replace(config, tasks=("contact",), output="other")
    with pytest.raises(InputError, match=r"hard_negatives 1 are of task apply, which is not among"):
        train_graph.run(other, workdir)
    assert first == pytest.approx(0.75 * second)  # Groups of four, where they were of three.


def test_trains_and_exports_over_ranked_neighbours(market, tmp_path):
    workdir = graph_runs.begin(market, tmp_path / "ppr")
    sampler = SamplerConfig(kind="ppr", ppr=PprConfig(epsilon=1e-3, types=("job", "skill")))
    train_graph.run(tiny_graph.config(num_steps=2, sampler=sampler), workdir)
    channels = read_model_file(workdir / "graph_model").sampling.channels
    assert channels == {
        f"{near}__ppr__{seed}": 3 for near in ("job", "skill") for seed in ("member", "recruiter")
    }
    assert all(row["neighbours"] > 48 for row in graph_runs.rows(workdir, "train"))
    export_graph.run(GraphExportConfig(mesh=MeshConfig(data=1)), workdir)
    vectors = read_table(workdir / "graph_embeddings", "member").vectors
    assert np.isfinite(vectors).all()
    assert np.std(vectors, axis=0).min() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"adaptive": AdaptiveConfig(), "sampler": SamplerConfig(kind="full")},
            "adaptive with sampler.kind=full, which takes all neighbours anyway",
        ),
        ({"batch_size": 0}, "batch_size 0 must be >= 1"),
        ({"hard_negatives": -1}, "hard_negatives -1 must be >= 0"),
        (
            {"popularity_correction": True},
            "popularity_correction is for model.decoder.kind=softmax, it is mlp",
        ),
        ({"positive_weight": 0.0}, "positive_weight 0.0 must be > 0"),
        (
            {"positive_weight": 2.0, "model": SOFTMAX_MODEL},
            "positive_weight 2.0 with model.decoder.kind=softmax, whose loss has positives alone",
        ),
        (
            {"mesh": MeshConfig(fsdp=3), "model": BY_ROWS_MODEL},
            "mesh.fsdp 3 with model.features.identity_update=adam, needed a divisor of 128",
        ),
        ({"task_weights": (("applly", 1.0),)}, None),
    ],
)
def test_wrong_configs_are_refused(market, change, message):
    if message is None:
        with pytest.raises(InputError, match="task_weights names 'applly', needed one of"):
            train_graph.run(tiny_graph.config(**change), market)
    else:
        with pytest.raises(ValueError, match=message):
            tiny_graph.config(**change)


def test_fewer_hops_than_layers_are_refused():
    with pytest.raises(ValueError, match="fanouts have 2 hops, needed 1"):
        tiny_graph.config(fanouts=type(tiny_graph.config().fanouts)(total=(4, 2)))


def test_the_config_survives_json():
    config = tiny_graph.config()
    assert from_json(GraphTrainConfig, to_json(config)) == config
