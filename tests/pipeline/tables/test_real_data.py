"""The sets of real data, where they are at hand."""

import json
import os
from pathlib import Path

import duckdb
import numpy as np
import pytest

from star_jax.jobs.import_tables import ImportConfig, run
from star_jax.pipeline.sender_ranking import sender_ranking
from star_jax.pipeline.tables import read
from star_jax.shapes import NO_TIME

DATA = Path(os.environ.get("STAR_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.fixture(scope="module", params=["seqa_tiny", "seqa", "jobviews"])
def imported(request, tmp_path_factory):
    source = DATA / request.param
    if not source.is_dir():
        pytest.skip(f"{source} is not here")
    workdir = tmp_path_factory.mktemp(request.param)
    run(ImportConfig(source=source), workdir)
    return source, workdir / "tables"


def test_pairs_say_what_the_files_say(imported):
    source, out = imported
    connection = duckdb.connect(":memory:")
    for split in read.SPLITS:
        raw = connection.execute(
            "SELECT p.*, length(trim(x.text)) > 0 AS has_text "
            f"FROM '{source}/eval/pairs_{split}.parquet' p "
            f"LEFT JOIN '{source}/texts/member.parquet' x ON p.member_text = x.text_id "
        ).fetchnumpy()
        pairs = read.read_pairs(out, "apply", split)
        key = np.lexsort((raw["neg_type"], raw["job"], raw["t"], raw["member"]))
        own = np.lexsort((pairs.negative, pairs.receiver, pairs.t, pairs.sender))
        assert np.array_equal(raw["member"][key], pairs.sender[own])
        assert np.array_equal(raw["job"][key], pairs.receiver[own])
        assert np.sum(raw["label"]) == pairs.label.sum()
        assert np.array_equal(raw["t"][key], pairs.t[own])
        assert np.sum(raw["has_text"]) == (pairs.sender_text >= 0).sum()
        assert np.all(pairs.receiver_text >= 0)
    connection.close()


def test_rankings_have_the_sizes_of_the_reference(imported):
    source, out = imported
    reference = json.loads((source / "reference.json").read_text())
    ranking = read.read_ranking(out, "apply", "test")
    assert ranking is not None
    assert len(ranking.sender) == reference["rank_queries"]
    assert len(ranking.candidates) == reference["rank_candidates"]
    assert read.read_meta(out).reference == reference


def test_senders_are_ordered_by_activity_as_in_the_reference(imported):
    source, out = imported
    reference = json.loads((source / "reference.json").read_text()).get("rank_members_for_job")
    if reference is None:
        pytest.skip("no reference for this direction")
    pairs = read.read_pairs(out, "apply", "test")
    asked = sender_ranking(out, read.read_meta(out), "apply", "test", pairs, 1 << 24)
    assert asked is not None
    assert len(asked.asked.candidates) == reference["queries"]
    assert len(asked.asked.sender) == reference["candidates"]
    alike = np.zeros((reference["candidates"], reference["queries"]), np.float32)
    found = asked.metrics(alike)
    # The reference breaks the many ties of counts by some order and draws its chance once; these
    # are expectations.
    chance = 2 / reference["queries"] ** 0.5
    ties = 0.003 if reference["queries"] > 1000 else 0.1
    for name, prefix, slack in (("activity", "active_", ties), ("random", "", chance)):
        for metric, value in reference["methods"][name].items():
            assert found[f"{prefix}sender_{metric}"] == pytest.approx(value, abs=slack)


def test_postings_keep_their_attributes_whatever_the_time(imported):
    _, out = imported
    meta = read.read_meta(out)
    own = [edge.name for edge in meta.edge_types if edge.sender == "job"]
    assert own
    for name in own:
        edges = read.read_edges(out, name)
        assert np.all(edges.t == NO_TIME)
        assert np.all(edges.split == 0)
