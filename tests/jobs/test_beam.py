"""Bulk jobs on Apache Beam: the same bytes as without it, and what is left when a worker fails."""

import json
import logging
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.jobs import build_graph, export_text
from star_jax.jobs.build_graph import GraphBuildConfig
from star_jax.pipeline.beam import engine, graph
from star_jax.pipeline.text_parts import WorkerConfig
from tests.graph.test_build import small
from tests.graph.worlds import Edge, Text
from tests.jobs import tiny_export
from tests.jobs.test_build_graph import write_tables

# By its class: the default runner would first try to download another.
HERE = ("runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner",)
TWO_PROCESSES = (*HERE, "direct_num_workers=2", "direct_running_mode=multi_processing")

needs_beam = pytest.mark.extra("beam")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder before any export of texts, and what one without Beam gives."""
    workdir = tiny_export.begin(tmp_path_factory.mktemp("texts"))
    export_text.run(tiny_export.config(), workdir)
    expected = artefacts.digest(workdir / "text_embeddings")
    shutil.rmtree(workdir / "text_embeddings")
    return workdir, expected


@pytest.mark.parametrize(
    ("beam", "message"),
    [
        (("direct_num_workers=2",), "beam direct_num_workers=2 names no runner"),
        (("--runner=FnApiRunner",), "beam '--runner=FnApiRunner' must be name=value"),
    ],
)
def test_options_that_no_pipeline_takes(beam, message):
    with pytest.raises(ValueError, match=message):
        tiny_export.config(beam=beam)


@needs_beam
@pytest.mark.slow
@pytest.mark.parametrize("beam", [HERE, TWO_PROCESSES], ids=["here", "two_processes"])
def test_texts_go_on_where_a_worker_failed_and_are_the_same(exported, tmp_path, caplog, beam):
    workdir = Path(shutil.copytree(exported[0], tmp_path / "own"))
    config = tiny_export.config(beam=beam)
    scratch = workdir / ".text_vectors"
    real = export_text.Parts.share_plan

    def in_the_way(parts):
        real(parts)
        parts.paths[2].mkdir()  # No worker can put a file there.

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_text.Parts, "share_plan", in_the_way)
        with pytest.raises(InputError, match=r"^text part 2: IsADirectoryError: .*goes on") as info:
            export_text.run(config, workdir)
    assert "\n" not in str(info.value)
    assert not (workdir / "text_embeddings").exists()
    (wrong,) = scratch.glob("*/part-000002.npy")
    wrong.rmdir()
    left = {path: path.stat().st_mtime_ns for path in scratch.glob("*/part-*.npy")}

    def noting(plan):
        real(plan)
        assert set(plan.to_do()) == {i for i, path in enumerate(plan.paths) if path not in left}

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(export_text.Parts, "share_plan", noting)
        patch.setattr(export_text, "clear", lambda _: None)
        export_text.run(config, workdir)
    assert re.search(rf"Beam encoded {6 - len(left)} parts", caplog.text)
    assert artefacts.digest(workdir / "text_embeddings") == exported[1]
    assert {path: path.stat().st_mtime_ns for path in left} == left


def many_edges():
    """A world whose parts, pieces and relations have all kinds of borders."""
    rng = np.random.default_rng(0)
    world = small()
    world.nodes = {
        "member": [None, *(100 * rng.integers(0, 50, 98)).tolist(), None],
        "job": (100 * rng.integers(0, 50, 40)).tolist(),
    }

    def times(n):
        return [None if t < 5 else 100 * int(t) for t in rng.integers(0, 60, n)]

    def edges(num_receivers, n):
        receivers = np.minimum(rng.geometric(0.1, n), num_receivers) - 1  # Some have very many.
        columns = (rng.integers(0, 100, n), receivers, rng.integers(1, 4, n), rng.integers(0, 4, n))
        rows = zip(*(column.tolist() for column in columns), times(n), times(n), strict=True)
        return [Edge(s, r, t, t and gone and t + gone, float(w), x) for s, r, w, x, t, gone in rows]

    world.edges = {
        "member__apply__job": edges(40, 700),
        "member__knows__member": edges(100, 500),
        "member__saved__job": [],
    }
    world.texts["member"] = [
        Text(int(entity), t, kind)
        for entity, t, kind in zip(
            rng.integers(0, 100, 300),
            times(300),
            rng.choice(["profile", "resume"], 300),
            strict=True,
        )
    ]
    world.categorical = {"job": {"kind": rng.integers(0, 10, 40).tolist()}}
    world.dense = {"member": {"age": rng.normal(size=100).tolist()}}
    return world


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with tables in many row groups, and the digest of their graph without Beam."""
    workdir = tmp_path_factory.mktemp("built")
    tables = write_tables(workdir, many_edges())
    for path in [*tables.edges.values(), *tables.texts.values()]:
        pq.write_table(pq.read_table(path), path, row_group_size=64)
    meta = artefacts._read(workdir / "tables").meta
    # Ordinals, whose span decides the unit of age.
    artefacts.seal(workdir / "tables", "tables", meta | {"time_unit": "ordinal"})
    build_graph.run(GraphBuildConfig(), workdir)
    return workdir, artefacts.digest(workdir / "graph")


@needs_beam
@pytest.mark.parametrize("part_rows", [100, 1, 10_000])
def test_a_graph_is_the_same_however_it_is_sorted(built, tmp_path, part_rows):
    workdir = Path(shutil.copytree(built[0], tmp_path / "own"))
    shutil.rmtree(workdir / "graph")
    build_graph.run(GraphBuildConfig(beam=HERE, part_rows=part_rows), workdir)
    assert artefacts.digest(workdir / "graph") == built[1]
    assert sorted(path.name for path in workdir.iterdir()) == ["graph", "tables"]


@needs_beam
@pytest.mark.slow
def test_a_graph_goes_on_where_a_worker_failed(built, tmp_path, monkeypatch):
    workdir = Path(shutil.copytree(built[0], tmp_path / "own"))
    config = GraphBuildConfig(beam=TWO_PROCESSES, part_rows=100)
    scratch = workdir / ".graph_parts"
    prepare = graph.BeamSource.prepare

    def with_something_in_the_way(source, text_kind):
        kinds = artefacts.content_digest(json.dumps(sorted(text_kind.items())).encode())[:8]
        folder = source._plan.folder / f"sorted-{kinds}"
        (folder / "edges/job/000002.npy").mkdir(parents=True)
        prepare(source, text_kind)

    with monkeypatch.context() as patch:
        patch.setattr(graph.BeamSource, "prepare", with_something_in_the_way)
        expected = r"^part edges/job/000002: IsADirectoryError: .*goes on with what is missing$"
        with pytest.raises(InputError, match=expected):
            build_graph.run(config, workdir)
    (wrong,) = scratch.glob("*/sorted-*/edges/job/000002.npy")
    wrong.rmdir()
    left = {path: path.stat().st_mtime_ns for path in scratch.rglob("*.*") if path.is_file()}
    assert {path.suffix for path in left} >= {".parquet"}

    def kept(folder):
        assert folder == scratch
        assert {path: path.stat().st_mtime_ns for path in left} == left

    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "remove", kept)
        build_graph.run(config, workdir)
        patch.setattr(engine, "_run", lambda *_: pytest.fail("all parts are there"))
        build_graph.run(config, workdir)
    assert artefacts.digest(workdir / "graph") == built[1]
    assert len(list(scratch.glob("*/sorted-*/edges/job/*.npy"))) == 7


@needs_beam
def test_a_row_group_that_cannot_be_read_is_named(built, tmp_path):
    workdir = Path(shutil.copytree(built[0], tmp_path / "own"))
    path = workdir / "tables/edges/member__apply__job.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["weight"]), path)
    artefacts.seal(workdir / "tables", "tables", artefacts._read(workdir / "tables").meta)
    expected = r"^survey of row group edges/member__apply__job/0: BinderException: .*weight"
    with pytest.raises(InputError, match=expected):
        build_graph.run(GraphBuildConfig(beam=HERE), workdir)


@pytest.mark.parametrize("command", ["import", "build-graph", "export-text"])
def test_without_beam_the_message_says_what_to_install(command, star, tmp_path, monkeypatch):
    """Before anything else: that there are no tables comes later."""
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "star_jax.pipeline.beam.steps", raising=False)
    module, name = {
        "import": ("import_tables", "ImportConfig"),
        "build-graph": ("build_graph", "GraphBuildConfig"),
        "export-text": ("export_text", "TextExportConfig"),
    }[command]
    config = tmp_path / "config.py"
    job = f"from star_jax.jobs.{module} import {name}"
    config.write_text(f"{job}\n\n\ndef get_config():\n    return {name}()\n")
    given = ["--workdir", tmp_path / "none", "--beam", "runner=FnApiRunner", "x=1"]
    if command == "import":
        given += ["--source", tmp_path / "none"]
    outcome = star(command, config, *given)
    assert outcome.code == 2
    assert outcome.errors == [
        "star: error: --beam needs the extra beam, which is not installed: "
        "pip install 'star_jax[beam]'"
    ]


@needs_beam
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("runner=Nonsense",), r"^beam --runner=Nonsense: Unexpected pipeline runner"),
        ((*HERE, "direct_num_workers=many"), r"--direct_num_workers: invalid int value: 'many'$"),
    ],
)
def test_what_beam_does_not_understand_is_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        engine.for_each(options, "piece", ["one"], lambda: print)
    assert "\n" not in str(error.value)


@needs_beam
def test_the_options_that_are_shown_are_those_of_beam():
    from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
        PipelineOptions,
    )

    shown = re.findall(r"^    --beam (.*(?:\n        .*)*)", engine.__doc__ or "", re.MULTILINE)
    assert len(shown) == 4
    for text in shown:
        options = text.split()
        engine.check_options(options)
        parsed = PipelineOptions([f"--{option}" for option in options])
        known = parsed.get_all_options(drop_default=True)
        assert {option.partition("=")[0] for option in options} <= set(known), text


@needs_beam
def test_several_processes_do_not_each_start_a_pipeline(tmp_path):
    config = tiny_export.config(beam=HERE, worker=WorkerConfig(index=0, count=2))
    with pytest.raises(InputError, match="beam has workers of its own: start this command once"):
        export_text.run(config, tmp_path)
