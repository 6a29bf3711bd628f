import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from star_jax import artefacts
from star_jax.config import InputError, from_json, load_config, to_json
from star_jax.embeddings.table import read_table
from star_jax.jobs import export_text, mine_negatives, run, train_text
from star_jax.jobs.export_text import TextExportConfig
from star_jax.jobs.mine_negatives import MineConfig
from star_jax.losses.distill import DistillConfig
from star_jax.parallel.mesh import MeshConfig
from star_jax.pipeline.mining.choose import ChoiceConfig
from star_jax.pipeline.tables.read import read_pairs
from star_jax.pipeline.text_scoring import TextPairScorer
from star_jax.text.objective import ObjectiveConfig
from tests.jobs import tiny_text
from tests.pipeline.text_market import write_tables

EXPORT = TextExportConfig(mesh=MeshConfig(data=1), batch_tokens=2048, num_lengths=1)
CHOICE = ChoiceConfig(num_negatives=2, skip_top=1, window=6)
MINE = MineConfig(choice=CHOICE, block_requests=16, block_documents=8)


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """A text model as it begins, its vectors and what was mined with them."""
    workdir = tmp_path_factory.mktemp("mined")
    write_tables(workdir / "tables", with_texts=False)  # Hence nothing is trained.
    train_text.run(tiny_text.config(), workdir)
    write_tables(workdir / "tables")
    export_text.run(EXPORT, workdir)
    mine_negatives.run(MINE, workdir)
    return workdir


def meta(workdir):
    return artefacts.read_manifest(workdir / "hard_negatives", "hard_negatives").meta


def by_definition(workdir, rule):
    """{group: jobs}, positive by positive, by the cosine of the exported vectors."""
    pairs = read_pairs(workdir / "tables", "apply", "train")
    jobs, members = (read_table(workdir / "text_embeddings", n).vectors for n in ("job", "member"))
    positive = pairs.label == 1
    pool = sorted({*pairs.receiver[positive].tolist()})
    found, counts = {}, Counter()
    for row in np.flatnonzero(positive):
        parts = [members[i] for i in (pairs.sender_text[row], pairs.sender_resume[row]) if i >= 0]
        request = sum(parts) / np.linalg.norm(sum(parts))
        barred = {*pairs.receiver[positive & (pairs.sender == pairs.sender[row])].tolist()}
        barred |= {*pairs.receiver[pairs.group == pairs.group[row]].tolist()}
        score = {j: float(jobs[j] @ request) for j in pool if j not in barred}
        ranked = sorted(score, key=lambda j: (-round(score[j], 5), j))[:7]
        own = float(jobs[pairs.receiver[row]] @ request)
        left = [j for j in ranked[1:] if rule(score[j], own)]
        counts += Counter(num_candidates=len(ranked), num_short=len(left) < 2)
        found[int(pairs.group[row])] = left[:2]
    return found, counts


def test_the_best_that_pass_the_filters_in_the_layout_of_pairs(mined):
    expected, counts = by_definition(mined, lambda score, own: score < own - 0.05 * abs(own))
    pairs = read_pairs(mined / "tables", "apply", "train")
    hard = read_pairs(mined / "hard_negatives", "apply", "train")
    found = {group: [] for group in expected}
    for group, job in zip(hard.group.tolist(), hard.receiver.tolist(), strict=True):
        found[group].append(job)
    assert found == expected
    assert {*hard.label.tolist()} == {0}
    assert {*hard.negative.tolist()} == {"hard"}
    np.testing.assert_array_equal(hard.receiver_text, hard.receiver)  # Text i is of job i.
    own = np.array([np.flatnonzero((pairs.group == g) & (pairs.label == 1))[0] for g in hard.group])
    for name in ("sender", "sender_text", "sender_resume", "t"):
        np.testing.assert_array_equal(getattr(hard, name), getattr(pairs, name)[own])
    described = meta(mined)
    assert described["model"] == artefacts.digest(mined / "text")
    assert described["tables"] == artefacts.digest(mined / "tables")
    assert described["num_negatives"] == len(hard.label) > 0
    assert {name: described[name] for name in counts} == dict(counts)
    accounted = described["num_negatives"] + sum(described["removed"].values())
    assert accounted == described["num_candidates"]
    assert described["removed"]["skip_top"] == described["num_positives"] == len(expected)


def test_by_the_scorer_with_its_probabilities(mined, tmp_path):
    workdir = shutil.copytree(mined, tmp_path / "w")
    choice = replace(CHOICE, skip_top=0, relative_margin=None, absolute_margin=0.01)
    mine_negatives.run(replace(MINE, score="scorer", choice=choice), workdir)
    hard = read_pairs(workdir / "hard_negatives", "apply", "train")
    pairs = read_pairs(workdir / "tables", "apply", "train")
    scorer = TextPairScorer.open(workdir)
    score = 1 / (1 + np.exp(-scorer.score(hard)))
    own = dict(zip(pairs.group[pairs.label == 1].tolist(), range(len(pairs.label)), strict=False))
    positive = 1 / (1 + np.exp(-scorer.score(pairs)[pairs.label == 1]))
    limit = positive[[own[group] for group in hard.group.tolist()]] - 0.01
    assert len(score) == meta(workdir)["num_negatives"] > 0
    assert (score < limit + 1e-6).all()


def test_training_takes_them_and_a_teacher(mined, tmp_path, caplog):
    caplog.set_level("INFO", "star_jax")
    workdir = tmp_path / "again"
    for name in ("tables", "hard_negatives"):
        shutil.copytree(mined / name, workdir / name)
    hard = read_pairs(workdir / "hard_negatives", "apply", "train")
    teacher = tmp_path / "teacher.parquet"
    scores = {
        "sender": [f"member-{i}" for i in hard.sender[:1]],
        "receiver": [f"job-{i}" for i in hard.receiver[:1]],
        "score": [-1.5],
    }
    pq.write_table(pa.table(scores), teacher)
    config = tiny_text.config(
        mode="frozen",
        num_steps=1,
        num_negatives=2,
        hard_negatives=1,
        teacher=teacher,
        objective=ObjectiveConfig(distill=DistillConfig(kind="mse")),
    )
    train_text.run(config, workdir)
    described = artefacts.read_manifest(workdir / "text", "text_model").meta
    pairs = read_pairs(workdir / "tables", "apply", "train")
    assert described["num_train_pairs"] == len(pairs.label) + len(hard.label)
    (row,) = [
        row
        for row in map(json.loads, (workdir / "text" / "metrics.jsonl").read_text().splitlines())
        if row["split"] == "train"
    ]
    assert row["num_pairs"] > 12  # Four groups of one positive, two negatives and a mined one.
    assert row["distill"] >= 0
    assert "scores of 1 pairs; 1 of" in caplog.text
    content = artefacts.read_manifest(workdir / "hard_negatives", "hard_negatives")
    artefacts.seal(workdir / "hard_negatives", "hard_negatives", content.meta | {"a": 1})
    with pytest.raises(InputError, match=r"was begun with hard_negatives .* remove that folder"):
        train_text.run(config, workdir)


def test_without_them_or_with_others_training_stops_before_it_begins(mined, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(mined / "tables", workdir / "tables")
    config = tiny_text.config(num_negatives=2, hard_negatives=1)
    needed = "hard_negatives is not a complete artefact; run `star mine-negatives` first"
    with pytest.raises(InputError, match=needed):
        train_text.run(config, workdir)
    shutil.copytree(mined / "hard_negatives", workdir / "hard_negatives")
    write_tables(workdir / "tables", num_groups=7)
    again = r"was mined for tables \w+, got \w+; run `star mine-negatives` again"
    with pytest.raises(InputError, match=again):
        train_text.run(config, workdir)
    assert not (workdir / "text").exists()


def test_a_run_trains_again_when_they_change():
    config = load_config(Path(run.__file__).parents[2] / "configs/run/tiny.py")
    (plain,) = [stage for stage in run.stages(config) if stage.name == "train-text"]
    assert plain.inputs == ("tables",)
    text = replace(config.train_text, hard_negatives=1, batch_size=12, microbatch_size=12)
    (stage,) = [s for s in run.stages(replace(config, train_text=text)) if s.name == "train-text"]
    assert stage.inputs == ("tables", "hard_negatives")


def test_nothing_to_mine_from(mined, tmp_path):
    workdir = shutil.copytree(mined, tmp_path / "w")
    write_tables(workdir / "tables", resumes=False)
    with pytest.raises(InputError, match="48 member texts that are not the 24 of"):
        mine_negatives.run(MINE, workdir)
    write_tables(workdir / "tables", with_texts=False)
    with pytest.raises(InputError, match="has no text of a job, nothing to mine from"):
        mine_negatives.run(MINE, workdir)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hard_negatives": -1}, "hard_negatives -1 must be >= 0"),
        ({"hard_negatives": 1}, "num_negatives 1 and hard_negatives 1, 3 pairs"),
        (
            {"objective": ObjectiveConfig(distill=DistillConfig(kind="mse"))},
            "teacher None with objective.distill.kind mse: one needs the other",
        ),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_text.config(**fields)
    with pytest.raises(ValueError, match="block_documents 0 must be >= 1"):
        MineConfig(block_documents=0)
    assert from_json(MineConfig, to_json(MINE)) == MINE
