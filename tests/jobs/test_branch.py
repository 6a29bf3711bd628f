"""`star branch` and `star build-graph` with signals, on the graph market."""

import dataclasses
import json

import jax
import pytest

from star_jax import artefacts, trees
from star_jax.config import InputError
from star_jax.graph.build import BuildOptions
from star_jax.graph.engines.host import HostEngine
from star_jax.graph.heads import NodeTask
from star_jax.graph.model import init_model
from star_jax.graph.store import GraphStore
from star_jax.jobs import branch, build_graph
from star_jax.jobs.build_graph import GraphBuildConfig
from star_jax.pipeline.graph_data import GraphData
from star_jax.pipeline.graph_model import open_store
from star_jax.pipeline.graph_training import describe
from star_jax.pipeline.signals import Signal, Signals, read_signals, write_signals
from star_jax.pipeline.tables.read import read_meta
from tests.graph.test_append import town
from tests.jobs import graph_runs, tiny_graph
from tests.jobs.test_build_graph import write_tables

CONFIG = tiny_graph.config(num_steps=2)


@pytest.fixture
def workdir(market, tmp_path):
    """A copy of the market with the signals of all that it has."""
    workdir = graph_runs.begin(market, tmp_path / "w")
    branch.init(workdir, "ann", tmp_path / "all.json")
    return workdir


def build(workdir, signals, **fields):
    """Builds the graph anew; returns it."""
    options = BuildOptions(memory_limit_gib=0.5, num_threads=1)
    build_graph.run(GraphBuildConfig(options=options, signals=signals, **fields), workdir)
    return open_store(workdir, "vectors")


def group(workdir):
    """Writes the same parts as four signals; returns the file."""
    manifest = read_signals(workdir.parent / "all.json")
    names = {"node:skill": "skill", "edge:job__needs__skill": "skill", "text:member": "words"}
    names |= {"edge:member__has__skill": "skill", "dense:member.years": "years"}
    parts: dict[str, tuple[str, ...]] = dict.fromkeys(("rest", "skill", "words", "years"), ())
    for signal in manifest.signals.values():
        for part in signal.parts:
            parts[names.get(part, "rest")] += (part,)
    grouped = {
        name: Signal(owner="ann", description=name, parts=each) for name, each in parts.items()
    }
    write_signals(Signals(signals=grouped), workdir.parent / "grouped.json")
    return workdir.parent / "grouped.json"


def graph_bytes(store):
    manifest = artefacts.read_manifest(store.folder, "graph")
    return sum(file["bytes"] for file in manifest.files.values())


def num_parameters(workdir, store):
    file = describe(CONFIG, workdir, store, read_meta(workdir / "tables"))
    return trees.count(jax.eval_shape(lambda: init_model(file.build(), 0))[0])


def test_all_signals_make_the_graph_of_all_that_was_imported(workdir):
    before = open_store(workdir, "vectors").meta
    after = build(workdir, workdir.parent / "all.json").meta
    assert before.signals == {}
    assert after.version == before.version
    assert after.signals["skill"] == ("node:skill",)
    assert after.signals["member"] == ("node:member", "text:member", "dense:member.years")
    assert dataclasses.replace(after, signals={}) == before


def test_the_graph_holds_what_its_signals_need_and_gives_batches(workdir):
    manifest = read_signals(workdir.parent / "all.json")
    kept = {name: manifest.signals[name] for name in ("job", "member__apply__job")}
    write_signals(Signals(signals=kept), workdir.parent / "two.json")
    store = build(workdir, workdir.parent / "two.json")
    assert list(store.meta.schema.nodes) == ["member", "job", "recruiter"]  # The tasks' ends.
    assert set(store.meta.num_edges) == {"member__apply__job", "job__rev_apply__member"}
    assert list(store.text_versions) == ["job"]
    assert store.dense["member"].shape == (40, 0)
    names = sorted(path.name for path in (store.folder / "nodes").iterdir())
    assert names == ["job", "member", "recruiter"]
    meta = read_meta(workdir / "tables")
    file = describe(CONFIG, workdir, store, meta)
    data = GraphData(CONFIG, workdir, file, store, meta, 1, HostEngine(store))
    subgraph = next(data.batches(6)).tasks["apply"].sender
    assert set(subgraph.hops[0]) == {"job__rev_apply__member"}


def test_when_training_ends_is_no_matter_of_signals(tmp_path):
    """Applications alone are of the training split, and the fourth member is younger than they."""
    write_tables(tmp_path, town())
    age = Signal(owner="ann", description="age", parts=("dense:member.age",))
    write_signals(Signals(signals={"age": age}), tmp_path / "age.json")
    build_graph.run(GraphBuildConfig(signals=tmp_path / "age.json"), tmp_path)
    meta = GraphStore.open(tmp_path / "graph", None).meta
    assert (list(meta.schema.nodes), meta.num_edges) == (["member"], {})
    assert meta.dense_stats == {"member": {"age": (3.0, 2.0)}}


def test_costs_are_what_is_saved_without_the_signal(workdir):
    path = group(workdir)
    store = build(workdir, path)
    head, *rows, whole = branch.cost_table(path, CONFIG, workdir)
    assert head == ["signal", "owner", "num_edges", "num_bytes", "num_parameters"]
    total = graph_bytes(store), num_parameters(workdir, store)
    assert whole[2:] == [str(sum(store.meta.num_edges.values()) // 2), *map(str, total)]
    assert [row[0] for row in rows] == list(read_signals(path).signals)
    files = branch.ablate(path, workdir.parent / "ablation")
    for (name, owner, edges, *cost), file in zip(rows, files, strict=True):
        assert (owner, file) == ("ann", str(workdir.parent / "ablation" / f"without_{name}.json"))
        left = build(workdir, workdir.parent / "ablation" / f"without_{name}.json")
        saved = total[0] - graph_bytes(left), total[1] - num_parameters(workdir, left)
        assert cost == [str(each) for each in saved], name
        attributes = ("job__needs__skill", "member__has__skill")
        if name != "rest":
            skill = sum(store.meta.num_edges[key] for key in attributes)
            assert int(edges) == (skill if name == "skill" else 0)


def test_a_column_that_is_predicted_costs_its_classifier(workdir):
    manifest = read_signals(workdir.parent / "all.json")
    job = manifest.signals["job"]
    site = dataclasses.replace(job, parts=("categorical:job.site",))
    rest = dataclasses.replace(job, parts=tuple(p for p in job.parts if p not in site.parts))
    path = workdir.parent / "site.json"
    write_signals(Signals(signals=manifest.signals | {"job": rest, "site": site}), path)
    store = build(workdir, path)
    task = NodeTask(node_type="job", column="site")
    config = dataclasses.replace(
        CONFIG, model=dataclasses.replace(CONFIG.model, node_tasks=(task,))
    )
    rows = {name: cost for name, _, *cost in branch.cost_table(path, config, workdir)}
    file = describe(config, workdir, store, read_meta(workdir / "tables"))
    params, _ = jax.eval_shape(lambda: init_model(file.build(), 0))
    assert rows["all together"][2] == str(trees.count(params))
    assert rows["site"][2] == str(trees.count(trees.select(params, r"classifier_job_site/.*")))


def test_costs_of_another_graph_are_refused(workdir):
    path = workdir.parent / "less.json"
    manifest = read_signals(workdir.parent / "all.json")
    del manifest.signals["recruiter__post__job"]
    write_signals(manifest, path)
    with pytest.raises(InputError, match=r"graph was built from other signals than .*less\.json"):
        branch.cost_table(path, CONFIG, workdir)


def test_the_command_line(star, workdir, monkeypatch):
    monkeypatch.chdir(workdir.parent)
    content = json.loads((workdir.parent / "all.json").read_text())
    for name, gone in (("a", "skill"), ("b", "recruiter__post__job")):
        signals = {key: value for key, value in content["signals"].items() if key != gone}
        signals["member"] = content["signals"]["member"] | {"owner": name}
        (workdir.parent / f"{name}.json").write_text(json.dumps({"signals": signals}))
    outcome = star("branch", "diff", "all.json", "a.json")
    assert outcome.out.splitlines() == [
        "- skill (ann): skill nodes and their features [node:skill]",
        '~ member: owner: "ann" -> "a"',
    ]
    assert star("branch", "diff", "a.json", "a.json").out.endswith("have the same signals\n")
    outcome = star("branch", "merge", "all.json", "a.json", "b.json", "--output", "m.json")
    assert (outcome.code, outcome.out) == (2, "")
    assert '1 conflicts: signal member was changed by both, differently (owner: "a" -> "b")' in (
        outcome.err
    )
    assert not (workdir.parent / "m.json").exists()
    outcome = star("branch", "merge", "a.json", "all.json", "b.json", "--output", "m.json")
    assert outcome.code == 2  # Both changed what a says of members.
    outcome = star("branch", "merge", "all.json", "a.json", "all.json", "--output", "m.json")
    assert outcome.out.splitlines()[-1] == "m.json: 8 signals"
    assert read_signals(workdir.parent / "m.json") == read_signals(workdir.parent / "a.json")
    outcome = star("branch", "init", "--workdir", "w", "--owner", "x", "--output", "m.json")
    assert outcome.errors == ["star: error: m.json is there already; give another --output"]
    assert star("branch", "diff", "a.json", "b.json", "--x", "y").code == 2
    assert star("branch", "diff", "a.json").code == 2


def test_costs_are_a_table(star, workdir, monkeypatch):
    monkeypatch.chdir(workdir.parent)
    path = group(workdir)
    (workdir.parent / "config.py").write_text(
        "from tests.jobs import tiny_graph\n\n\ndef get_config():\n    return tiny_graph.config()\n"
    )
    command = ("branch", "cost", "grouped.json", "config.py", "--workdir", "w")
    outcome = star(*command, "--model.encoder.dim", "16")
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["signal", "owner", "num_edges", "num_bytes", "num_parameters"]
    config = tiny_graph.config()
    wider = dataclasses.replace(config.model.encoder, dim=16)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, encoder=wider))
    expected = branch.cost_table(path, config, workdir)
    assert lines[1].split() == expected[1]
    assert lines[-1].split() == " ".join(expected[-1]).split()
