"""`star registry`, on the folders of finished runs."""

import importlib
import json
import re
import sys

import numpy as np
import pytest

from star_jax import artefacts
from star_jax.embeddings.registry.registry import Registry
from star_jax.embeddings.transforms.files import read_transform, write_transform
from star_jax.embeddings.transforms.maps import linear
from star_jax.embeddings.transforms.transform import SHARED, Step, Transform
from star_jax.pipeline.signals import Signal, Signals, without_each
from tests.embeddings.registry.artefact import contract, link, write
from tests.jobs import finished_run

SIGNALS = Signals(
    signals={
        name: Signal(owner=f"{name}-team", description=name, parts=(f"node:{name}",))
        for name in ("job", "skill")
    }
)


@pytest.fixture
def registry(star, tmp_path):
    """Runs `star registry` on a registry that holds one run; adds another with `two`."""

    def run(*args):
        return star("registry", *args, "--registry", tmp_path / "r")

    finished_run.make(tmp_path / "one", "one", signals=SIGNALS)
    assert run("add", "--workdir", tmp_path / "one", "--name", "toy").code == 0
    return run


@pytest.fixture
def two(registry, tmp_path):
    """A registry with two runs."""
    finished_run.make(tmp_path / "two", "two", auc=0.9, seed=1)
    registry("add", "--workdir", tmp_path / "two", "--name", "toy", "--code", "c0ffee")
    return registry


def test_a_run_becomes_versions_with_their_lineage(two, tmp_path):
    names = ["toy-text-model", "toy-text", "toy-graph-model", "toy-graph"]
    opened = Registry(tmp_path / "r")
    refs = [f"{name}@{number}" for number in (1, 2) for name in names]
    assert list(opened.state().versions) == refs
    for ref in ("toy-text", "toy-graph"):
        model = opened.version(f"{ref}-model@2")
        assert opened.version(f"{ref}@2").parents["model"] == model.digest
    for name in names:
        record = opened.record(f"{name}@2")
        assert (record["config"]["seed"], record["code"]) == (1, "c0ffee")
        assert record["parents"]["tables"] == "tables of two"
    said = {
        name: opened.reports(f"{name}@2")["metrics"]["tasks"]["apply"]["auc_near"] for name in names
    }
    assert said == pytest.approx(dict(zip(names, [0.7, 0.7, 0.9, 0.9], strict=True)))
    again = two("add", "--workdir", tmp_path / "two", "--name", "toy")
    assert [line.split(":")[0] for line in again.out.splitlines()] == refs[4:]
    assert len(opened.events()) == 8


def test_from_two_runs_to_a_version_that_serves_an_old_consumer(two, tmp_path):
    assert two("promote", "toy-graph@1").out.startswith("toy-graph@1: graph_embeddings, active, ")
    assert two("consumer", "add", "ads", "toy-graph", "--owner", "ann").code == 0
    refused = two("promote", "toy-graph@2")
    assert refused.code == 2
    assert "consumer ads (ann), trained on toy-graph@1: no chain of at most 5" in refused.errors[0]
    assert "not served" not in two("list").out
    opened = Registry(tmp_path / "r")
    new, old = opened.version("toy-graph@2"), opened.version("toy-graph@1")
    link(tmp_path / "t", new, old)
    two("add", "--artefact", tmp_path / "t", "--name", "toy-map")
    transform = opened.version("toy-map@1")
    contract(tmp_path / "c", new, old, transform)
    two("add", "--artefact", tmp_path / "c", "--name", "toy-contract")
    done = two("promote", "toy-graph@2")
    states = [re.sub(r", \w{12}$", "", line) for line in done.out.splitlines()]
    assert states == [
        "toy-graph@2: graph_embeddings, active",
        "toy-graph@1: graph_embeddings, deprecated",
    ]
    assert two("consumer", "list").out.splitlines()[1].split()[1:] == ["toy-graph@1", "ann", "yes"]
    assert two("chain", "toy-graph", "toy-graph@1").out == f"{opened.folder('toy-map@1')}\n"
    assert two("retire", "toy-graph@1", "--delete-vectors").code == 0
    assert not (tmp_path / "r" / "objects" / old.digest).exists()
    assert two("verify").out.startswith("10 versions and 14 events are as written; ")


def test_maps_in_a_row_are_written_as_one(two, tmp_path):
    finished_run.make(tmp_path / "three", "three")
    two("add", "--workdir", tmp_path / "three", "--name", "toy")
    opened = Registry(tmp_path / "r")
    maps = [linear(np.diag([scale, 1]).astype(np.float32), None) for scale in (2, 3)]
    for number, own in enumerate(maps, start=1):
        new, old = (opened.version(f"toy-graph@{n}").digest for n in (number + 1, number))
        step = {SHARED: (Step(own, renormalise=False),)}
        write_transform(tmp_path / "t", Transform("ridge", new, old, step), {})
        two("add", "--artefact", tmp_path / "t", "--name", "toy-map")
    done = two("chain", "toy-graph@3", "toy-graph@1", "--output", tmp_path / "one-map")
    folders = [str(opened.folder(f"toy-map@{number}")) for number in (2, 1)]
    assert done.out.splitlines() == folders
    other = two("chain", "toy-graph@3", "toy-graph@1", "--output", tmp_path / "three")
    assert f"--output {tmp_path / 'three'} is there and holds no transform; " in other.errors[0]
    two("add", "--artefact", tmp_path / "one-map", "--name", "toy-map")
    assert opened.chain("toy-graph@3", "toy-graph@1") == [opened.folder("toy-map@3")]
    vectors = np.array([[1, 1], [5, 7]], np.float32)
    found = read_transform(opened.folder("toy-map@3")).apply("job", vectors)
    np.testing.assert_array_equal(found, [[6, 1], [30, 7]])
    same = two("chain", "toy-graph@1", "toy-graph@1", "--output", tmp_path / "none")
    assert "toy-graph@1 and toy-graph@1 have the same content, needed two" in same.errors[0]


def test_a_version_is_shown_with_all_that_is_known(two, tmp_path):
    two("promote", "toy-graph@1")
    two("consumer", "add", "ads", "toy-graph", "--owner", "ann")
    two("promote", "toy-graph@2", "--force", "--reason", "ads agreed")
    opened = Registry(tmp_path / "r")
    model = opened.version("toy-graph-model@2").digest[:12]
    lines = two("show", "toy-graph").out.splitlines()
    assert lines[0] == "toy-graph@2: graph_embeddings, active"
    assert "code      star_jax 0.1.0, c0ffee" in lines
    assert f"made from model {model} (toy-graph-model@2)" in lines
    assert any(re.fullmatch(r"forced    event 11 .*: promote toy-graph@2 \(ads agreed\)", line)
               for line in lines)  # fmt: skip
    assert any("forced    consumer ads (ann), trained on toy-graph@1: no chain" in x for x in lines)
    assert "metrics of text+graph on toy, test split" in lines
    assert "  apply auc_near 0.9000  [0.7000, 1.1000]" in lines
    assert "auc_near_warm_member" not in "\n".join(lines)
    assert ["gender", "FEMALE", "40", "0.8900", "-0.0200", "no"] in [x.split() for x in lines]
    assert "consumer  ads of ann" in two("show", "toy-graph@1").out
    assert "used by   toy-graph@2 as model" in two("show", "toy-graph-model@2").out
    assert two("log").out.splitlines()[-1].startswith("  broke: consumer ads (ann), trained on")
    head, *listed, unserved = two("list", "toy-graph").out.splitlines()
    assert head.split()[:4] == ["version", "kind", "state", "aliases"]
    assert [line.split()[:4] for line in listed] == [
        ["toy-graph@1", "graph_embeddings", "deprecated", "previous"],
        ["toy-graph@2", "graph_embeddings", "active", "active"],
    ]
    assert [line.split()[-1] for line in listed] == ["ads", "-"]
    assert unserved.startswith("not served: consumer ads (ann), trained on toy-graph@1: no chain")
    assert two("consumer", "list").out.splitlines()[1].split()[1:] == ["toy-graph@1", "ann", "no"]


def test_two_versions_are_compared_field_by_field(two, tmp_path):
    lines = two("diff", "toy-graph@1", "toy-graph@2").out.splitlines()
    assert "config.seed: 0 -> 1 (+1)" in lines
    assert 'code: null -> "c0ffee"' in lines
    assert "metrics.tasks.apply.auc_near: 0.8 -> 0.9 (+0.1)" in lines
    assert any(line.startswith("cohorts.gender=FEMALE.auc: 0.79 -> 0.89") for line in lines)
    assert any(line.startswith("made from.model: ") and "(toy-graph-model@2)" in line
               for line in lines)  # fmt: skip
    assert not any("config.rate" in line or "meta." in line for line in lines)
    same = two("diff", "toy-graph@1", "toy-graph@1").out
    assert same == "toy-graph@1 and toy-graph@1 differ in nothing that was recorded\n"


def test_what_one_side_alone_has_is_one_line(registry, tmp_path):
    embeddings = write(tmp_path / "e", "graph_embeddings", model="m", graph="g")
    registry("add", "--artefact", embeddings, "--name", "toy-graph")
    lines = registry("diff", "toy-graph@1", "toy-graph@2").out.splitlines()
    for part in ("config", "metrics", "cohorts"):
        assert [line for line in lines if line.startswith(part)] == [
            f'{part}: "recorded" -> "not recorded"'
        ]


def test_the_ablation_of_signals_goes_with_a_version(registry, star, tmp_path):
    signals = finished_run.write_signals(tmp_path / "all.json", SIGNALS)
    for name, others in without_each(SIGNALS).items():
        finished_run.make(tmp_path / "runs" / f"without_{name}", name, auc=0.75, signals=others)
    report = ("branch", "report", signals, "--workdir", tmp_path / "one", "--runs")
    output = ("--output", tmp_path / "a.json")
    assert star(*report, tmp_path / "runs", *output).out == (
        f"{tmp_path / 'a.json'}: without job, skill\n"
    )
    assert registry("attach", "toy-graph@1", "--ablation", tmp_path / "a.json").code == 0
    lines = [line.split() for line in registry("show", "toy-graph@1").out.splitlines()]
    assert ["(all)", "0.8000", "0.2500", "14"] in lines
    assert ["skill", "skill-team", "-0.0500", "+0.0000", "14"] in lines
    again = registry("attach", "toy-graph@1", "--ablation", tmp_path / "a.json")
    assert again.errors == ["star: error: toy-graph@1 has a report ablation, which never changes"]


def test_an_ablation_of_other_runs_is_refused(star, tmp_path):
    signals = finished_run.write_signals(tmp_path / "all.json", SIGNALS)
    finished_run.make(tmp_path / "one", "one", signals=SIGNALS)
    report = ("branch", "report", signals, "--output", tmp_path / "a.json", "--runs")
    none = star(*report, tmp_path, "--workdir", tmp_path / "one")
    assert f"{tmp_path} has no run of without_job, without_skill; `star br" in none.errors[0]
    finished_run.make(tmp_path / "without_job", "x", signals=SIGNALS)
    other = star(*report, tmp_path, "--workdir", tmp_path / "one")
    assert "graph was built from the signals job, skill, needed skill; run" in other.errors[0]
    finished_run.make(tmp_path / "without_job", "x", signals=without_each(SIGNALS)["job"])
    path = tmp_path / "without_job" / "evaluation" / "metrics.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"toy"', '"tax"'), encoding="utf-8")
    other = star(*report, tmp_path, "--workdir", tmp_path / "one")
    assert f"without_job has dataset 'tax', {tmp_path / 'one'} has 'toy'," in other.errors[0]
    assert not (tmp_path / "a.json").exists()


def test_branch_ablate_writes_a_manifest_for_each(star, tmp_path):
    signals = finished_run.write_signals(tmp_path / "all.json", SIGNALS)
    done = star("branch", "ablate", signals, "--output", tmp_path / "out")
    assert done.out.splitlines() == [
        str(tmp_path / "out" / f"without_{name}.json") for name in ("job", "skill")
    ]


def test_what_does_not_belong_together_is_not_added(registry, tmp_path):
    folder = finished_run.make(tmp_path / "two", "two")
    write(folder / "graph_only_model", "graph_model", "new")
    other = registry("add", "--workdir", folder, "--name", "toy")
    assert "evaluation is of other models than" in other.errors[0]
    artefacts.seal(folder / "evaluation", "evaluation", {"dataset": "toy"})
    other = registry("add", "--workdir", folder, "--name", "toy")
    assert "evaluation is of other models than" in other.errors[0]
    artefacts.remove(folder / "evaluation")
    write(folder / "text", "text_model", "new")
    other = registry("add", "--workdir", folder, "--name", "toy")
    assert "text_embeddings was written by another model than" in other.errors[0]
    assert "run `star export-text` again" in other.errors[0]
    artefacts.remove(folder / "text_embeddings")
    artefacts.remove(folder / "graph_embeddings")
    other = registry("add", "--workdir", folder, "--name", "toy")
    assert "two has none of text_embeddings, graph_embeddings; run `star exp" in other.errors[0]
    assert len(registry("log").out.splitlines()) == 4


def test_names_and_consumers_come_and_go(registry, tmp_path):
    assert registry("alias", "toy-graph@1", "canary").code == 0
    assert registry("unalias", "toy-graph", "canary").out == "toy-graph@canary is no more\n"
    registry("consumer", "add", "ads", "toy-graph@1", "--owner", "ann")
    removed = registry("consumer", "remove", "ads", "toy-graph")
    assert removed.out == "ads of toy-graph is no more\n"
    done = registry("deprecate", "toy-graph@1", "--reason", "a mistake")
    assert done.out.startswith("toy-graph@1: graph_embeddings, deprecated, ")
    assert registry("log").out.endswith(": deprecate toy-graph@1 (a mistake)\n")
    stray = tmp_path / "r" / "objects" / "beef"
    stray.write_bytes(b"x")
    said = registry("verify").out.splitlines()
    assert said[1:] == [f"{stray} belongs to no version: a killed command left it"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["add", "--name", "x"], "needs --workdir of a run, or --artefact FOLDER"),
        (["add"], "required: --name; see `star registry add --help`"),
        (["promote", "toy-graph@1", "--force"], "--force and --reason TEXT go together"),
        (["promote", "toy-graph@1", "--reason", "x"], "--force and --reason TEXT go together"),
        (["promote", "toy-graph@1", "--max-chain", "0"], "--max-chain 0, needed at least 1"),
        (["promote", "toy"], "version toy: needed one of the names toy-graph, toy-graph-model, "),
        (["consumer", "add", "ads", "toy-graph@1"], "add needs CONSUMER REF --owner OWNER"),
        (["consumer", "remove", "ads"], "consumer remove needs CONSUMER NAME"),
        (["consumer", "remove", "ads", "toy-graph"], "ads of toy-graph is not registered"),
        (["unalias", "toy-graph", "canary"], "toy-graph has no alias canary"),
        (["attach", "toy-graph@1", "--ablation", "no.json"], "no.json does not exist, needed"),
        (["attach", "toy-graph@1", "--ablation", __file__], "is not what `star branch report` wr"),
    ],
)
def test_wrong_arguments_end_in_one_line(registry, args, message):
    outcome = registry(*args)
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert message in outcome.errors[0]


def test_damage_is_named_by_its_file(registry, tmp_path):
    assert registry("alias", "toy-graph@1", "canary").out == "toy-graph@canary is toy-graph@1\n"
    path = next((tmp_path / "r" / "objects").rglob("rows.bin"))
    path.write_bytes(path.read_bytes()[::-1])
    outcome = registry("verify")
    assert outcome.code == 2
    assert f"1 files are damaged: {path} does not have the sha256" in outcome.errors[0]
    assert (
        registry("verify", "toy-graph@canary").code == (path.parent.name in _digest(tmp_path)) * 2
    )


def _digest(tmp_path):
    return Registry(tmp_path / "r").version("toy-graph@1").digest


@pytest.mark.extra("mlflow")
@pytest.mark.slow  # MLflow makes its tables by all of their migrations.
@pytest.mark.filterwarnings("ignore")  # Of MLflow's own libraries.
@pytest.mark.parametrize("kind", ["sqlite", "files"])
def test_versions_are_logged_to_mlflow(two, tmp_path, monkeypatch, kind):
    mlflow = importlib.import_module("mlflow")
    monkeypatch.chdir(tmp_path)  # Where MLflow puts the files of runs.
    uri = {"sqlite": f"sqlite:///{tmp_path}/mlflow.db", "files": f"file://{tmp_path}/store"}[kind]
    if kind == "files":
        refused = two("mlflow", "toy-graph@1", "--tracking-uri", uri)
        assert "MLFLOW_ALLOW_FILE_STORE" in refused.errors[0]
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    two("promote", "toy-graph@1")
    log = ("mlflow", "toy-graph@1", "--tracking-uri", uri)
    said = two(*log)
    assert re.fullmatch(r"toy-graph@1 is version 1 of toy-graph, run \w+\n", said.out), said.err
    assert two(*log).out == said.out  # A second time nothing is made.
    two("promote", "toy-graph@2", "--force", "--reason", "now")
    assert "is version 2 of toy-graph" in two("mlflow", "toy-graph@2", *log[2:]).out
    two(*log)
    client = mlflow.MlflowClient(uri, uri)
    opened = Registry(tmp_path / "r")
    active = client.get_model_version_by_alias("toy-graph", "active")
    assert (str(active.version), active.tags["star_jax.state"]) == ("2", "active")
    previous = client.get_model_version_by_alias("toy-graph", "previous")
    assert previous.tags["star_jax.state"] == "deprecated"
    run = client.get_run(active.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1", "rate": "0.1"}
    assert run.data.metrics["apply/auc_near"] == pytest.approx(0.9)
    assert run.data.metrics["apply/recall_at_10"] == 0.25
    parents = opened.version("toy-graph@2").parents
    assert {
        name.removeprefix("star_jax.parent."): value
        for name, value in run.data.tags.items()
        if name.startswith("star_jax.parent.")
    } == parents
    record = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/record.json")
    assert record == opened.record("toy-graph@2")


def test_mlflow_is_named_where_it_is_not(registry, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    outcome = registry("mlflow", "toy-graph@1", "--tracking-uri", "sqlite:///x.db")
    assert "star registry mlflow needs MLflow; install the extra: pip ins" in outcome.errors[0]


def test_everything_is_json_on_disk(registry, tmp_path):
    for path in (tmp_path / "r").rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
