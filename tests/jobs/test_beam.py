"""Bulk jobs on Apache Beam: the same bytes as without it, and what is left when a worker fails."""

import logging
import re
import shutil
from pathlib import Path

import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.jobs import export_text
from tests.jobs import tiny_export

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
