"""Graph training and inference by two real processes; each samples for its own devices."""

import json
import shutil
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from star_jax import artefacts
from star_jax.parallel.mesh import MeshConfig
from tests.jobs import inference_together
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
    return folder


@pytest.mark.parametrize("engine", ["host", "mesh"])
def test_two_processes_train_as_one_does(alone, market, tmp_path, engine):
    folder = tmp_path / "market"
    shutil.copytree(market, folder)
    logs = finish(folder, 2, "train-graph", GRAPH_TRAINING.format(engine=engine))
    rows, by_one = reported(folder), reported(alone)
    assert len(rows) == len(by_one) == 6
    for found, expected in zip(rows, by_one, strict=True):
        names = [name for name in EQUAL if name in expected]
        np.testing.assert_allclose(
            [found[name] for name in names], [expected[name] for name in names], rtol=1e-5
        )
        if found["split"] == "train":
            assert found["padding"] == expected["padding"]
    artefacts.verify(folder / "graph_model")
    assert "train-graph 100 %" in logs[0]
    assert "train-graph" not in logs[1]  # One log.


def prepared(alone, folder):
    """With all that an evaluation asks for."""
    shutil.copytree(alone, folder)
    shutil.copytree(folder / "graph_model", folder / "graph_only_model")
    with artefacts.writing(folder / "text", "text_model") as partial:
        meta = {"num_steps": 1, "num_epochs": 1.0, "num_train_pairs": 1}
        artefacts.set_meta(partial, meta)
    return folder


def scores(folder):
    paths = sorted((folder / "evaluation" / "scores").glob("*.parquet"))
    assert len(paths) > 2
    return [pq.read_table(path) for path in paths]


def test_two_processes_export_and_score_what_one_does(alone, begin, tmp_path):
    """One is killed amid it, which ends the other; started again, they go on."""
    one, two = (prepared(alone, tmp_path / name) for name in ("one", "two"))
    inference_together.infer(one, MeshConfig(data=1))
    processes = begin("inference_together", two, "1")
    end = time.monotonic() + 240
    while not (two / "died").exists():
        assert time.monotonic() < end
        assert processes[0].poll() is None, (two / "0.log").read_text()
        time.sleep(0.1)
    died = time.monotonic()
    assert processes[0].wait(timeout=90) != 0
    assert time.monotonic() - died < 60
    assert "heartbeats):\n1\n" in (two / "0.log").read_text()
    assert list(two.rglob(".*.parts/*/part-*.npy"))
    codes = [process.wait(timeout=240) for process in begin("inference_together", two, "none")]
    logs = [(two / f"{index}.log").read_text() for index in range(2)]
    assert codes == [0, 0], "\n".join(logs)
    for name in inference_together.EXPORTS:
        assert artefacts.digest(two / name) == artefacts.digest(one / name), name
        assert not list(two.glob(f".{name}.*"))
    for found, expected in zip(*(scores(folder) for folder in (two, one)), strict=True):
        assert found.column_names == expected.column_names
        for name in found.column_names:
            ours, theirs = (table[name].to_pylist() for table in (found, expected))
            if isinstance(theirs[0], float):
                np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=name)
            else:
                assert ours == theirs
