import json
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest

from star_jax import artefacts
from star_jax.config import InputError, from_json, to_json
from star_jax.evaluation.auc import roc_auc
from star_jax.jobs import evaluate, report
from star_jax.pipeline.measurements import MeasureConfig
from tests.jobs.fake_run import CONFIG, TASK, evaluate_with_fakes, logits, metrics

REFERENCE = {  # As in a reference.json: the keys a report must have.
    "methods": {
        "hybrid": {
            "auc_uniform": 0.7565,
            "auc_uniform_warm_member": 0.7982,
            "auc_near": 0.6026,
            "auc_near_warm_member": 0.6262,
            "recall@10": 0.1499,
            "recall@100": 0.5249,
            "ndcg@10": 0.1179,
        },
        "random": {"recall@10": 0.006, "recall@100": 0.0714, "ndcg@10": 0.0044},
    },
    "methods_val": {"hybrid": {"auc_uniform": 0.7}},
    "rank_members_for_job": {
        "queries": 1517,
        "methods": {"activity": {"recall@100": 0.34}, "random": {"recall@100": 0.0143}},
    },
    "seconds": 88.7,
}
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("planted")
    with pytest.MonkeyPatch.context() as patch:
        world = evaluate_with_fakes(workdir, patch)
        patch.setattr(report.sys, "argv", ["star", "run", "a config.py", "--workdir", "<here>"])
        report.run(report.ReportConfig(max_map_points=50), workdir)
    return workdir, world


@pytest.fixture(scope="module")
def referenced(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("referenced")
    with pytest.MonkeyPatch.context() as patch:
        evaluate_with_fakes(workdir, patch, reference=REFERENCE, planted=False)
        report.run(report.ReportConfig(), workdir)
    return workdir


def test_report_holds_models_and_references_under_reference_keys(referenced):
    found = metrics(referenced)
    assert list(found) == ["dataset", "models", "references"]
    assert list(found["models"]) == ["text", "graph", "text+graph", "stacked"]
    given = REFERENCE["methods"]
    assert found["references"] == {
        "hybrid": given["hybrid"],
        "random": given["random"] | {"sender_recall@100": 0.0143},
        "activity": {"sender_recall@100": 0.34},
    }
    for values in found["models"].values():
        assert set(REFERENCE["methods"]["hybrid"]) <= set(values)
        assert all(isinstance(value, float) and 0 <= value <= 1 for value in values.values())
    keys = set(found["models"]["text"])
    both_sides = {f"{w}_{side}" for w in ("warm", "cold") for side in ("member", "job")}
    slices = {"slice_text", "slice_structure"}
    for kind in ("uniform", "near"):
        own = {k.removeprefix(f"auc_{kind}_") for k in keys if k.startswith(f"auc_{kind}_")}
        assert own == both_sides | slices
    assert (
        metrics(referenced, "evaluation")["tasks"][TASK]["val"]["references"]
        == (REFERENCE["methods_val"])
    )


def test_without_references_the_simple_methods_are_fitted_and_the_optimum_is_known(planted):
    workdir, world = planted
    found = metrics(workdir)
    assert list(found["references"]) == [
        "popularity",
        "tfidf_cosine",
        "item_knn",
        "mf_als",
        "random",
        "optimum",
    ]
    pairs = pq.read_table(workdir / "tables" / "pairs" / TASK / "test.parquet").to_pydict()
    sender, receiver = np.asarray(pairs["sender"]), np.asarray(pairs["receiver"])
    label, negative = np.asarray(pairs["label"]) == 1, np.asarray(pairs["negative"])
    rows = label | (negative == "near")
    truth = roc_auc(label[rows], logits(world, sender, receiver)[rows])
    assert found["references"]["optimum"]["auc_near"] == pytest.approx(truth, abs=1e-4)
    assert "recall@10" not in found["references"]["optimum"]
    events = [pq.read_table(workdir / "tables" / "pairs" / TASK / f"{s}.parquet") for s in SPLITS]
    picked = [t["receiver"].to_numpy()[t["label"].to_numpy() == 1] for t in events]
    for seen, split in ((1, "val"), (2, "test")):
        counts = np.bincount(np.concatenate(picked[:seen]), minlength=60)
        scores = pq.read_table(workdir / "evaluation" / "scores" / f"{TASK}_{split}.parquet")
        np.testing.assert_array_equal(scores["popularity"], counts[scores["receiver"].to_numpy()])
    cosine = found["references"]["tfidf_cosine"]["auc_uniform"]
    chance = found["references"]["random"]["auc_uniform"]
    assert cosine > 0.6 > chance  # Texts say the region, and the region decides.


class Page(HTMLParser):
    """Checks nesting, and collects ids, links and text."""

    VOID = ("meta", "br", "hr", "img", "input", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self._attributes(dict(attrs))

    def handle_startendtag(self, tag, attrs):
        self._attributes(dict(attrs))

    def _attributes(self, attrs):
        if "id" in attrs:
            self.ids.append(attrs["id"])
        for name in ("href", "src", "xlink:href", "aria-labelledby"):
            if name in attrs:
                self.links.append(attrs[name] if name != "aria-labelledby" else f"#{attrs[name]}")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_stands_alone_and_all_its_links_lead_somewhere(planted):
    text = (planted[0] / "report" / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "://" not in text
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        inner = link.startswith("#") and link[1:] in page.ids
        assert inner or link.startswith("data:image/png;base64,")
    assert "<script" not in text
    assert text.count('role="img"') == 9  # Intervals, ROC, reliability, 3 curves, 2 maps, times.


def test_page_shows_every_part(planted):
    page = Page((planted[0] / "report" / "index.html").read_text(encoding="utf-8"))
    text = " ".join(page.text)
    shown = [
        "toy <market>",  # Escaped in the source.
        "star run 'a config.py' --workdir '<here>'",
        "text+graph",
        "optimum",
        "FEMALE",
        'coloured by "in region"',
        "trained on 0.43 epochs",
        "opted out",
        "Config of train text",
        "Time of each stage",
        "strict time",
        "ndcg@10",
        "senders for a receiver",
        "active_sender_recall@100",
        "Stacked: all models together",
        "weighed_sender_recall@100",
    ]
    assert [part for part in shown if part not in text] == []


def test_a_set_with_one_kind_of_everything_still_has_a_page(tmp_path, monkeypatch):
    evaluate_with_fakes(tmp_path, monkeypatch, reference=REFERENCE, planted=False)
    manifest = tmp_path / "tables" / artefacts.MANIFEST
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["meta"]["cohorts"] = []
    content["meta"]["edge_types"] = content["meta"]["edge_types"][:1]
    manifest.write_text(json.dumps(content), encoding="utf-8")
    for path in tmp_path.glob(f"*/{artefacts.STAGE}"):
        path.unlink()
    (tmp_path / "text" / "metrics.jsonl").unlink()
    report.run(report.ReportConfig(), tmp_path)
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    for said in ("declares no cohort columns", "these stages ran one by one"):
        assert said in text


@pytest.mark.parametrize("graph", ["audited", "another"])
def test_a_leak_audit_of_this_graph_is_shown(tmp_path, monkeypatch, graph):
    evaluate_with_fakes(tmp_path, monkeypatch)
    with artefacts.writing(tmp_path / "graph", "graph") as partial:
        artefacts.set_meta(partial, {"version": "audited"})
    kinds = {
        "removed": {"reachable": 1234, "reached": {"by a": 7}, "problem": "seven were sampled"}
    }
    with artefacts.writing(tmp_path / "leaks", "leaks") as partial:
        artefacts.write_text(partial / "audit.json", json.dumps({"passed": False, "kinds": kinds}))
        artefacts.set_meta(partial, {"passed": False, "graph": graph})
    report.run(report.ReportConfig(max_map_points=50), tmp_path)
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    shown = ["Leak audit" in page, "1,234" in page, "seven were sampled" in page]
    assert shown == [graph == "audited"] * 3


def test_report_needs_an_evaluation(tmp_path):
    with pytest.raises(InputError, match=r"evaluation is not a complete artefact; run"):
        report.run(report.ReportConfig(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_reference_without_methods_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"toy <market> has seed, needed methods"):
        evaluate_with_fakes(tmp_path, monkeypatch, reference={"seed": 1})
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": 95.0}, "level 95.0 must be a share between 0 and 1"),
        ({"calibration_bins": 0}, "calibration_bins 0 must be >= 1"),
        ({"min_cohort_members": 1}, "min_cohort_members 1 must be >= 2"),
        ({"max_cohort_gap": -0.1}, r"max_cohort_gap -0.1 must be >= 0"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MeasureConfig(**change)
    with pytest.raises(ValueError, match=r"max_map_points 2 must be >= 3"):
        report.ReportConfig(max_map_points=2)


def test_configs_round_trip():
    assert from_json(evaluate.EvaluateConfig, to_json(CONFIG)) == CONFIG
    assert from_json(report.ReportConfig, to_json(report.ReportConfig())) == report.ReportConfig()
