"""The whole path on a small market: killed in every stage, and searched for who opted out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tokenizers

from star_jax.embeddings.table import read_ids
from star_jax.pipeline.tables.schema_file import schema_json
from star_jax.text.random_base import TOKENIZER
from tests.consent_search import search
from tests.jobs import graph_runs
from tests.pipeline.tables import mini
from tests.train import stored

ROOT = Path(__file__).parent.parent
CONFIG = """
import dataclasses
from pathlib import Path

from configs.run import tiny
from star_jax.jobs.import_tables import ImportConfig


def get_config():
    # Few relations and one task: compiling is the cost.
    config = dataclasses.replace(tiny.get_config(), tables=ImportConfig(source=Path({source!r})))
    # Adam divides by the size of a gradient: a larger eps keeps it from enlarging rounding.
    optimizer = dataclasses.replace(config.train_graph.optimizer, eps=1e-3)
    graph = dataclasses.replace(config.train_graph, optimizer=optimizer)
    return dataclasses.replace(config, train_graph=graph)
"""
STAGES = (
    *("import", "train-text", "export-text", "build-graph", "train-graph", "export-graph"),
    *("train-graph-only", "export-graph-only", "evaluate", "report"),
)


def _python(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )


class Undisturbed(NamedTuple):
    config: Path
    workdir: Path
    words: dict[str, list[str]]  # As `mini.mark` says.


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tables = mini.tables()
    words = mini.mark(tables)
    data = mini.write(folder / "data", tables)
    (data / "schema.json").write_text(schema_json(mini.schema()), encoding="utf-8")
    config = folder / "run.py"
    config.write_text(CONFIG.format(source=str(data)), encoding="utf-8")
    _star_run(config, folder / "whole")
    return Undisturbed(config, folder / "whole", words)


def _star_run(config, workdir, *overrides):
    done = _python("-m", "star_jax", "run", config, "--workdir", workdir, *overrides)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(workdir / "report" / "metrics.json")
    return done


def _vectors(workdir):
    return {
        path.relative_to(workdir): np.load(path)
        for path in sorted(workdir.glob("*/*/vectors-*.npy"))
    }


@pytest.mark.slow
def test_who_opted_out_is_in_no_artefact_and_who_stayed_is(undisturbed):
    decode = tokenizers.Tokenizer.from_str(TOKENIZER).decode
    out, stays = (undisturbed.words[name] for name in (mini.OUT_ID, mini.IN_ID))
    decoded: set[str] = set()
    found = search(
        undisturbed.workdir,
        [*out, *stays],
        decoders=[lambda ids: decode(ids.tolist())],
        decoded=decoded,
    )
    assert decoded >= {"checkpoint", "array_record", "parquet", "npy"}
    assert not {needle: files for needle, files in found.items() if files and needle in out}
    folders = {file.split("/")[0] for file in found[mini.IN_ID]}
    assert folders >= {"tables", "text_embeddings", "graph_embeddings", "graph_only_embeddings"}
    texts = [word for word in stays if word.startswith("zq")]
    assert len(texts) >= 3
    for word in texts:
        assert any(file.startswith("text_tokens/") for file in found[word]), word
    for name in ("text_embeddings", "graph_embeddings", "graph_only_embeddings"):
        ids = set(read_ids(undisturbed.workdir / name, "member"))
        assert len(ids) == mini.NUM_MEMBERS - 1
        assert mini.IN_ID in ids


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_with_the_same_numbers(undisturbed, tmp_path):
    config, whole, killed = undisturbed.config, undisturbed.workdir, tmp_path / "killed"
    done = _python(Path(__file__).parent / "jobs/killed_run.py", config, killed, *STAGES)
    died = [f"{-signal.SIGKILL} {name}" for name in STAGES]
    assert done.stdout.splitlines() == died, done.stderr
    resumed = _star_run(config, killed)
    assert "unchanged, skipped" in resumed.stderr

    metrics = [json.loads((w / "report/metrics.json").read_text("utf-8")) for w in (whole, killed)]
    assert metrics[0] == metrics[1]
    assert set(metrics[0]["models"]) == {"text", "graph", "text+graph", "stacked"}
    for model in ("text", "graph_model", "graph_only_model"):
        losses = graph_runs.losses(whole, model)
        assert losses
        assert graph_runs.losses(killed, model) == losses
    expected, got = _vectors(whole), _vectors(killed)
    assert expected.keys() == got.keys()
    assert len(expected) >= 5
    for path, vectors in expected.items():
        np.testing.assert_array_equal(got[path], vectors, err_msg=str(path))
    assert not [path for path in killed.iterdir() if path.name.startswith(".")]

    again = _star_run(config, killed)
    assert again.stderr.count("unchanged, skipped") == len(STAGES)


@pytest.mark.slow
def test_a_run_stopped_in_training_begins_no_other_stage_and_goes_on(undisturbed, tmp_path):
    config, whole, stopped = undisturbed.config, undisturbed.workdir, tmp_path / "stopped"
    command = [sys.executable, "-m", "star_jax", "run", config, "--workdir", stopped]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    log = stopped / "text" / "metrics.jsonl"
    while not (log.is_file() and '"train"' in log.read_text(encoding="utf-8")):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 143, said
    assert "stopped by SIGTERM after step" in said.splitlines()[-1]
    assert {path.name for path in stopped.iterdir()} <= {
        "tables",
        "text_tokens",
        "text",
        "compiled",
    }
    assert not (stopped / "text" / "manifest.json").exists()

    done = _python("-m", "star_jax", "train-text", config, "--workdir", stopped)
    assert done.returncode == 0, done.stderr
    ends = [stored.newest(folder / "text" / "checkpoints") for folder in (stopped, whole)]
    assert stored.digest(ends[0]) == stored.digest(ends[1])


@pytest.mark.slow
def test_the_path_over_jraph_ends_with_the_metrics_of_the_dense_path(undisturbed, tmp_path):
    config, whole, jraph = undisturbed.config, undisturbed.workdir, tmp_path / "jraph"
    shutil.copytree(whole, jraph)
    done = _star_run(config, jraph, "--train_graph.model.encoder.path", "jraph")
    assert done.stderr.count("unchanged, skipped") == STAGES.index("train-graph")
    model = json.loads((jraph / "graph_model" / "model.json").read_text("utf-8"))
    assert model["model"]["encoder"]["path"] == "jraph"
    for name in ("graph_model", "graph_only_model"):
        losses = [graph_runs.losses(workdir, name) for workdir in (whole, jraph)]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
        scores = [[r["score"] for r in graph_runs.rows(w, "val", name)] for w in (whole, jraph)]
        np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)
    dense, segments = (
        json.loads((w / "report/metrics.json").read_text("utf-8"))["models"] for w in (whole, jraph)
    )
    assert dense["text"] == segments["text"]
    for name in ("graph", "text+graph"):
        assert dense[name].keys() == segments[name].keys()
        for metric, value in dense[name].items():
            assert segments[name][metric] == pytest.approx(value, abs=0.01), (name, metric)
    expected, got = _vectors(whole), _vectors(jraph)
    assert expected.keys() == got.keys()
    for path, vectors in expected.items():
        np.testing.assert_allclose(got[path], vectors, atol=1e-3, err_msg=str(path))
