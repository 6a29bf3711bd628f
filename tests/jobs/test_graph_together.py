"""One graph training by two real processes, of which each samples for its own devices."""

import json
import shutil

import numpy as np
import pytest

from star_jax import artefacts
from tests.jobs.together import GRAPH_TRAINING, finish

EQUAL = ("step", "loss", "gradient_norm", "bce", "auc_near", "auc_uniform", "score")


def reported(folder):
    lines = (folder / "graph_model" / "metrics.jsonl").read_text().splitlines()
    return list(map(json.loads, lines))


@pytest.fixture(scope="module")
def alone(market, tmp_path_factory):
    """What one process with two devices reports, with samples from the host."""
    folder = tmp_path_factory.mktemp("alone") / "market"
    shutil.copytree(market, folder)
    finish(folder, 1, "train-graph", GRAPH_TRAINING.format(engine="host"), devices=2)
    return reported(folder)


@pytest.mark.parametrize("engine", ["host", "mesh"])
def test_two_processes_train_as_one_does(alone, market, tmp_path, engine):
    folder = tmp_path / "market"
    shutil.copytree(market, folder)
    logs = finish(folder, 2, "train-graph", GRAPH_TRAINING.format(engine=engine))
    rows = reported(folder)
    assert len(rows) == len(alone) == 6
    for found, expected in zip(rows, alone, strict=True):
        names = [name for name in EQUAL if name in expected]
        np.testing.assert_allclose(
            [found[name] for name in names], [expected[name] for name in names], rtol=1e-5
        )
        if found["split"] == "train":
            assert found["padding"] == expected["padding"]
    artefacts.verify(folder / "graph_model")
    assert "train-graph 100 %" in logs[0]
    assert "train-graph" not in logs[1]  # One log.
