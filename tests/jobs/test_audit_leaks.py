"""`audit-leaks` passes on the sampler as it is, and finds each rule that is switched off."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.graph.decoders import DecoderConfig
from star_jax.graph.match import MatchConfig
from star_jax.graph.samplers.sampler import PprConfig, SamplerConfig
from star_jax.jobs import audit_leaks
from star_jax.pipeline.canaries import KINDS
from star_jax.pipeline.graph_loader import PairSampler
from star_jax.pipeline.graph_text import GraphTextConfig
from star_jax.pipeline.tables.read import read_pairs
from star_jax.shapes import NO_TIME
from tests.jobs import graph_runs, tiny_graph
from tests.pipeline import text_in_graph


def audited(workdir):
    return json.loads((workdir / "leaks" / "audit.json").read_text())


@pytest.fixture
def workdir(market, tmp_path):
    return graph_runs.begin(market, tmp_path / "audit")


@pytest.mark.parametrize("decoder", ["mlp", "softmax"])
def test_the_sampler_leaks_nothing(workdir, decoder):
    match = MatchConfig(enabled=decoder == "mlp", width=8, text_width=12)
    model = dataclasses.replace(
        tiny_graph.config().model, decoder=DecoderConfig(kind=decoder, hidden_size=8, match=match)
    )
    audit_leaks.run(tiny_graph.config(model=model), workdir)
    found = audited(workdir)
    assert found["passed"]
    assert tuple(found["kinds"]) == KINDS
    for kind in found["kinds"].values():
        assert kind["reachable"] > 0
        assert kind["reached"] == {}
    future = found["kinds"]["future"]
    assert future["loss"] == future["loss_planted"]
    assert future["loss"][1] > 0
    assert not (workdir / ".leaks").exists()
    graph = artefacts.read_manifest(workdir / "graph", "graph").meta["version"]
    assert artefacts.read_manifest(workdir / "leaks", "leaks").meta["graph"] == graph


def test_a_training_that_encodes_its_texts_is_audited_with_its_encoder(market, tmp_path):
    workdir = text_in_graph.write(market, tmp_path / "audit")
    shutil.rmtree(workdir / "text_embeddings")  # Not read.
    encoder = GraphTextConfig(mode="lora", lm_train_nodes=8, num_lengths=1, chunk_rows=64)
    audit_leaks.run(tiny_graph.config(tasks=("apply",), text_encoder=encoder), workdir)
    future = audited(workdir)["kinds"]["future"]
    assert future["reachable"] > 0
    assert future["loss"] == future["loss_planted"]
    assert future["loss"][1] > 0


@pytest.mark.parametrize(
    ("kind", "change", "kinds"),
    [
        ("uniform", {"use_time": False}, {"future", "removed"}),
        ("uniform", {"visible_splits": 0b1111}, {"later_split"}),
        ("uniform", {"hides": ()}, {"target"}),
        ("ppr", {"use_time": False}, {"future"}),
    ],
)
def test_a_rule_that_is_off_is_found(workdir, monkeypatch, kind, change, kinds):
    def careless(store, task, hides, sampling, *, visible_splits, use_time=True, engine=None):
        options = {"visible_splits": visible_splits, "use_time": use_time, "hides": hides}
        options |= {"engine": engine} | change
        hides = options.pop("hides")
        return PairSampler(store, task, hides, sampling, **options)

    monkeypatch.setattr(audit_leaks, "PairSampler", careless)
    monkeypatch.setattr(audit_leaks, "_loss", lambda _: lambda _: [0.0, 0.0])  # Compiled above.
    sampler = SamplerConfig(kind=kind, ppr=PprConfig(epsilon=1e-3))
    with pytest.raises(InputError, match="leaks: ") as error:
        audit_leaks.run(tiny_graph.config(sampler=sampler), workdir)
    found = audited(workdir)
    assert not found["passed"]
    assert {name for name, each in found["kinds"].items() if each["problem"]} == kinds
    assert all(name in str(error.value) for name in kinds)
    if kind == "uniform":
        assert "canaries were sampled" in str(error.value)


def test_neighbours_by_rank_are_audited_by_what_they_change(workdir, monkeypatch):
    """Nothing but ranks is sampled: no table holds an edge that could be counted."""
    monkeypatch.setattr(audit_leaks, "_loss", lambda _: lambda _: [0.0, 0.0])
    sampler = SamplerConfig(kind="ppr", ppr=PprConfig(epsilon=1e-3))
    audit_leaks.run(tiny_graph.config(sampler=sampler, receiver_view="all"), workdir)
    (future,) = audited(workdir)["kinds"].values()
    assert future["reachable"] > 0
    assert future["problem"] == ""


def test_an_audit_that_could_find_nothing_fails(workdir, monkeypatch):
    plant = audit_leaks.canaries.plant

    def nowhere(*args, near, targets, **options):
        return plant(*args, near={}, targets=[], **options)

    monkeypatch.setattr(audit_leaks.canaries, "plant", nowhere)
    with pytest.raises(InputError, match="no canary can be reached even with the rules off"):
        audit_leaks.run(tiny_graph.config(), workdir)


def test_pairs_without_times_cannot_be_audited(workdir, monkeypatch):
    def without_times(*args):
        pairs = read_pairs(*args)
        return pairs._replace(t=np.full_like(pairs.t, NO_TIME))

    monkeypatch.setattr(audit_leaks, "read_pairs", without_times)
    with pytest.raises(InputError, match="the training pairs of apply have no times"):
        audit_leaks.run(tiny_graph.config(), workdir)
