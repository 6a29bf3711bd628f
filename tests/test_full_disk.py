"""A disk that fills up in the later stages: one line, and the folder as it was before."""

import shutil

import pytest

from star_jax.jobs import evaluate
from tests.jobs.fake_run import fake_scorers, make_run
from tests.pipeline import graph_market
from tests.test_bad_inputs import ROOT, check, full_disk, snapshot

CONFIG = ROOT / "configs/run/tiny.py"


@pytest.mark.parametrize("limit_bytes", [0, 64, 512])
def test_a_full_disk_while_building_the_graph(star, tmp_path, limit_bytes):
    graph_market.write(tmp_path)
    shutil.rmtree(tmp_path / "graph")
    before = snapshot(tmp_path)
    with full_disk(limit_bytes):
        outcome = star("build-graph", CONFIG, "--workdir", tmp_path)
    check(outcome, r"File too large|No space left")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("limit_bytes", [0, 512])
def test_a_full_disk_while_evaluating_and_reporting(star, tmp_path, monkeypatch, limit_bytes):
    workdir = tmp_path / "w"
    text, graph = fake_scorers(make_run(workdir))
    monkeypatch.setattr(evaluate, "TextPairScorer", text)
    monkeypatch.setattr(evaluate, "GraphPairScorer", graph)
    for command in ("evaluate", "report"):
        before = snapshot(workdir)
        with full_disk(limit_bytes):
            outcome = star(command, CONFIG, "--workdir", workdir)
        check(outcome, r"File too large|No space left")
        assert snapshot(workdir) == before
        if command == "evaluate":
            assert star(command, CONFIG, "--workdir", workdir).code == 0
