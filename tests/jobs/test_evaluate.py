"""`star evaluate` on a finished run whose scorers know the truth."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.evaluation.auc import roc_auc
from star_jax.evaluation.stacking import Ends, fit_stack
from star_jax.jobs import evaluate
from star_jax.pipeline.sender_ranking import sender_ranking
from star_jax.pipeline.tables.read import read_meta, read_pairs
from tests.jobs.fake_run import CONFIG, TASK, evaluate_with_fakes, fake_scorers, make_run, metrics


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        world = evaluate_with_fakes(workdir, patch)
    return workdir, world


def found_in(workdir):
    return metrics(workdir, "evaluation")


def test_metrics_are_those_of_the_scores_on_disk(evaluated):
    workdir, world = evaluated
    table = pq.read_table(workdir / "evaluation" / "scores" / f"{TASK}_test.parquet").to_pydict()
    label, negative = np.asarray(table["label"]) == 1, np.asarray(table["negative"])
    rows = label | (negative == "uniform")
    strict = found_in(workdir)["tasks"][TASK]["test"]["strict_time"]
    models = found_in(workdir)["tasks"][TASK]["test"]["models"]
    assert models["text+graph"]["auc_near"] > models["graph"]["auc_near"]
    for name, auc in [
        ("text", models["text"]["auc_uniform"]),
        ("text+graph strict_time", strict["text+graph"]["auc_uniform"]),
    ]:
        assert roc_auc(label[rows], np.asarray(table[name])[rows]) == pytest.approx(auc, abs=1e-4)
    queries = pq.read_table(workdir / "evaluation" / "scores" / f"{TASK}_test_queries.parquet")
    recall = np.mean(queries["graph recall@10"].to_numpy())
    assert models["graph"]["recall@10"] == pytest.approx(recall, abs=1e-4)
    tables = workdir / "tables"
    of_senders = {
        split: sender_ranking(
            *(tables, read_meta(tables), TASK, split),
            read_pairs(tables, TASK, split),
            CONFIG.sender_pairs,
        )
        for split in ("val", "test")
    }
    val, test = of_senders["val"], of_senders["test"]
    assert val is not None
    assert test is not None
    grid = fake_scorers(world)[1](workdir, "graph_model", "split")
    weights = val.fit(grid.score_grid(TASK, val.asked, "val"))
    taught = found_in(workdir)["taught"][TASK]["senders"]["text+graph"]
    assert taught == pytest.approx(weights._asdict())
    expected = test.metrics(grid.score_grid(TASK, test.asked, "test"), weights)
    assert "weighed_sender_recall@10" in expected
    for metric, value in expected.items():
        assert models["text+graph"][metric] == pytest.approx(value, abs=1e-4)
    of_val = found_in(workdir)["tasks"][TASK]["val"]["models"]["text+graph"]
    assert "sender_recall@10" not in of_val


def test_models_are_stacked_as_the_validation_split_teaches(evaluated):
    workdir, _ = evaluated
    weights = found_in(workdir)["taught"][TASK]["stacked"]
    models = ("text", "graph", "text+graph")
    assert list(weights)[:4] == ["bias", "text", "text * warm_sender", "text * warm_receiver"]
    splits = {}
    for split, seen in (("val", ["train"]), ("test", ["train", "val"])):
        table = pq.read_table(workdir / "evaluation" / "scores" / f"{TASK}_{split}.parquet")
        kept = {"sender", "receiver", "label", *models, "stacked"} & {*table.column_names}
        columns = {name: table[name].to_numpy() for name in kept}
        events = [
            pq.read_table(
                workdir / "tables" / "pairs" / TASK / f"{s}.parquet", filters=[("label", "==", 1)]
            )
            for s in seen
        ]
        columns |= {
            f"warm_{end}": np.isin(
                columns[end], np.concatenate([each[end].to_numpy() for each in events])
            )
            for end in ("sender", "receiver")
        }
        splits[split] = columns
    scores = {s: {name: of[name] for name in models} for s, of in splits.items()}
    ends = {s: Ends(of["warm_sender"], of["warm_receiver"]) for s, of in splits.items()}
    stack = fit_stack(scores["val"], ends["val"], splits["val"]["label"] == 1)
    assert weights == pytest.approx({"bias": stack.bias, **stack.weights})
    expected = stack.logits(scores["test"], ends["test"])
    np.testing.assert_allclose(splits["test"]["stacked"], expected, rtol=1e-6, atol=1e-6)
    assert "stacked" not in splits["val"]  # Where it was fitted it says nothing.
    assert "recall@10" in found_in(workdir)["tasks"][TASK]["test"]["models"]["stacked"]


def test_evaluation_says_what_else_must_be_known(evaluated):
    workdir, _ = evaluated
    found = found_in(workdir)
    assert found["text_training"]["num_epochs"] == 0.43
    assert "recall@10" not in found["tasks"][TASK]["test"]["strict_time"]["graph"]
    assert not found["tasks"][TASK]["val"]["strict_time"]
    for name, values in found["tasks"][TASK]["test"]["models"].items():
        for key, (low, high) in found["intervals"][name].items():
            assert low <= values[key] <= high
    gain = found["gains"][0]
    models = found["tasks"][TASK]["test"]["models"]
    assert (gain["model"], gain["over"], gain["metric"]) == ("text+graph", "text", "auc_uniform")
    expected = models["text+graph"]["auc_uniform"] - models["text"]["auc_uniform"]
    assert gain["gain"] == pytest.approx(expected, abs=1.1e-4)
    columns = {c["column"] for c in found["cohorts"]["text+graph"]["cohorts"]}
    assert columns == {"gender", "urgency", "gender × urgency"}  # noqa: RUF001 # As shown.
    assert set(found["calibration"]["graph"]) == {"as_sampled", "shifted"}


def test_strict_time_is_of_the_main_task_alone(tmp_path, monkeypatch):
    text, graph = fake_scorers(make_run(tmp_path))
    tables = tmp_path / "tables"
    for kind in ("pairs", "rank"):
        shutil.copytree(tables / kind / TASK, tables / kind / "reply")
    described = dict(artefacts.read_manifest(tables, "tables").meta)
    described["tasks"] = described["tasks"] | {"reply": described["tasks"][TASK]}
    artefacts.seal(tables, "tables", described)

    class BothTasks(graph):
        tasks = (TASK, "reply")

        def score(self, pairs, split, task):
            return super().score(pairs, split, TASK)

    monkeypatch.setattr(evaluate, "TextPairScorer", text)
    monkeypatch.setattr(evaluate, "GraphPairScorer", BothTasks)
    evaluate.run(CONFIG, tmp_path)
    found = found_in(tmp_path)["tasks"]
    assert found[TASK]["test"]["strict_time"].keys() == {"graph", "text+graph"}
    assert found["reply"]["test"]["models"].keys() == {"graph", "text+graph", "stacked"}
    assert not found["reply"]["test"]["strict_time"]
    monkeypatch.setattr(evaluate, "GraphPairScorer", graph)
    evaluate.run(CONFIG, tmp_path)  # Of models that were trained on one task.
    assert not found_in(tmp_path)["tasks"]["reply"]


def keep_positives(workdir, split):
    path = workdir / "tables" / "pairs" / TASK / f"{split}.parquet"
    pairs = pq.read_table(path)
    pq.write_table(pairs.filter(pairs["label"].to_numpy() == 1), path)
    manifest = workdir / "tables" / artefacts.MANIFEST
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["files"][f"pairs/{TASK}/{split}.parquet"]["bytes"] = path.stat().st_size
    manifest.write_text(json.dumps(content), encoding="utf-8")


def test_pairs_without_negatives_are_an_error_only_where_the_report_needs_them(
    tmp_path, monkeypatch, caplog
):
    text, graph = fake_scorers(make_run(tmp_path))
    monkeypatch.setattr(evaluate, "TextPairScorer", text)
    monkeypatch.setattr(evaluate, "GraphPairScorer", graph)
    keep_positives(tmp_path, "val")
    evaluate.run(CONFIG, tmp_path)
    assert list(found_in(tmp_path)["tasks"][TASK]) == ["test"]
    assert "have 90 positives and 0 negatives, needed both: not measured" in caplog.text
    keep_positives(tmp_path, "test")
    with pytest.raises(InputError, match=r"the test pairs of task apply in .* needed both"):
        evaluate.run(CONFIG, tmp_path)
