import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from star_jax import artefacts
from star_jax.config import InputError, from_json, to_json
from star_jax.embeddings.table import read_ids, read_table
from star_jax.jobs import export_text, train_text
from star_jax.jobs.export_text import TextExportConfig
from star_jax.jobs.train_text import TextTrainConfig
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline import text_training
from star_jax.pipeline.tables.read import read_pairs, read_ranking, read_texts
from star_jax.pipeline.text_calibration import fit_calibration, read_calibration
from star_jax.pipeline.text_encoder import TextEncoder
from star_jax.pipeline.text_model import open_trained
from star_jax.pipeline.text_scoring import TextPairScorer
from star_jax.text.bi_encoder import encode
from star_jax.text.lora import LoraConfig
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.packing import Tokens
from star_jax.text.pooling import PoolingConfig
from star_jax.text.tower import TowerConfig, build_tokenizer
from star_jax.train.plan import PlanConfig
from tests.jobs import tiny_text
from tests.pipeline.text_market import write_tables

EXPORT = TextExportConfig(
    mesh=MeshConfig(data=1), batch_tokens=2048, num_lengths=1, part_texts=16, shard_rows=20
)


def begin(folder, **fields):
    write_tables(folder / "tables", **fields)
    return folder


def rows(workdir, split):
    lines = (workdir / "text" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def losses(workdir):
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in rows(workdir, "train")]


def meta(workdir):
    return artefacts.read_manifest(workdir / "text", "text_model").meta


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A LoRA run, exported."""
    workdir = begin(tmp_path_factory.mktemp("lora"))
    train_text.run(tiny_text.config(num_steps=40), workdir)
    export_text.run(EXPORT, workdir)
    return workdir


@pytest.fixture(scope="module")
def encoder(trained):
    """Encodes one text at a time, unpadded."""
    model = open_trained(trained / "text", make_mesh(MeshConfig(data=1)))
    tokenizer = build_tokenizer(tiny_text.config().tower)

    def vector(text, kind):
        (ids,) = tokenizer.encode([text], kind)
        tokens = Tokens(jnp.asarray(ids)[None], jnp.full((1, 1), len(ids)))
        return np.asarray(encode(model.model, model.variables, tokens, None))[0]

    return vector


def test_learns_what_the_texts_say(trained):
    validation = rows(trained, "val")
    assert set(validation[0]) >= {"bce", "auc_uniform", "auc_near", "score"}
    assert validation[0]["score"] < 0.75
    assert meta(trained)["best_score"] > 0.9
    best = max(validation, key=lambda row: row["score"])
    assert meta(trained)["best_score"] == best["score"]
    assert best["score"] == pytest.approx((best["auc_uniform"] + best["auc_near"]) / 2)
    assert meta(trained)["num_epochs"] == pytest.approx(40 * 8 / 40)


def test_packed_chunks_learn_in_one_compiled_shape(tmp_path, monkeypatch):
    """Gradient cache, packed rows, learned pooling and narrow widths, all in one run."""
    steps, make_step = [], train_text.make_text_step

    def noting(*args, **options):
        steps.append(make_step(*args, **options))
        return steps[-1]

    monkeypatch.setattr(train_text, "make_text_step", noting)
    workdir = begin(tmp_path)
    config = tiny_text.config(
        num_steps=30,
        microbatch_size=8,
        pack_length=96,
        tower=TowerConfig(
            base="random",
            prompts="none",
            limits=tiny_text.LIMITS,
            pooling=PoolingConfig(token="mean", layers="learned"),
        ),
        objective=ObjectiveConfig(contrastive="infonce+semihard", widths=(32, 8)),
    )
    train_text.run(config, workdir)
    (step,) = steps
    assert step._update._cache_size() == 1
    validation, training = rows(workdir, "val"), rows(workdir, "train")
    assert set(validation[0]) >= {"auc_uniform@8", "auc_near@8"}
    assert set(training[0]) >= {"loss@32", "loss@8", "infonce", "semihard", "padding"}
    assert validation[-1]["score"] > validation[0]["score"] + 0.1
    assert len({row["padding"] for row in training}) > 1
    pooler = open_trained(workdir / "text", make_mesh(MeshConfig(data=1))).variables["pooler"]
    assert np.abs(pooler["layer_logits"]).max() > 0


def test_a_row_per_text_in_order_with_its_vector(trained, encoder):
    for node_type in ("member", "job"):
        texts = read_texts(trained / "tables", node_type)
        table = read_table(trained / "text_embeddings", node_type)
        np.testing.assert_array_equal(table.text_id, np.arange(len(texts.text)))
        np.testing.assert_array_equal(table.entity, texts.entity)
        np.testing.assert_array_equal(table.t, texts.t)
        ids = read_ids(trained / "text_embeddings", node_type)
        assert ids == [f"{node_type}-{entity}" for entity in texts.entity]
        for row in (0, 5, len(ids) - 1):
            expected = encoder(texts.text[row], texts.kind[row])
            np.testing.assert_allclose(table.vectors[row], expected, atol=2e-6)
    jobs = read_table(trained / "text_embeddings", "job").vectors
    np.testing.assert_array_equal(jobs[3], jobs[7])
    np.testing.assert_allclose(np.linalg.norm(jobs, axis=1), 1.0, rtol=1e-5)
    assert len(list((trained / "text_embeddings" / "member").iterdir())) == 3 * 3
    manifest = artefacts.read_manifest(trained / "text_embeddings", "text_embeddings").meta
    assert manifest["model"] == artefacts.digest(trained / "text")
    assert manifest["num_texts"] == {"member": 48, "job": 16}
    assert not (trained / ".text_vectors").exists()
    assert len({manifest["embedding_size"], jobs.shape[1]}) == 1


def test_the_export_says_what_a_logit_means(trained):
    """Class weights 1 and 2 at one negative per positive: two of three were positive (SPEC 2)."""
    rate = meta(trained)["positive_rate"]
    assert rate == pytest.approx(2 / 3)
    found = read_calibration(trained / "text_embeddings")
    assert found is not None
    assert found.shift == pytest.approx(np.log(1 / 16) - np.log(2))
    manifest = artefacts.read_manifest(trained / "text_embeddings", "text_embeddings").meta
    assert manifest["calibration"]["shift"] == found.shift
    pairs = read_pairs(trained / "tables", "apply", "val")
    uniform = (pairs.label == 1) | (pairs.negative == "uniform")
    logits = TextPairScorer.open(trained).score(pairs)[uniform]
    expected = fit_calibration(pairs.label[uniform] == 1, logits, prior=1 / 17, positive_rate=rate)
    assert found.num_pairs in (0, uniform.sum())
    assert found.slope == pytest.approx(expected.slope, rel=1e-3)
    assert found.intercept == pytest.approx(expected.intercept, rel=1e-3, abs=1e-3)


def test_scores_are_the_scorer_on_the_table(trained):
    """The head by its definition in numpy (SPEC 1.3)."""
    pairs = read_pairs(trained / "tables", "apply", "test")
    model = open_trained(trained / "text", make_mesh(MeshConfig(data=1)))
    head = jax.tree.map(np.asarray, model.variables["scorer"])
    tables = {n: read_table(trained / "text_embeddings", n).vectors for n in ("job", "member")}

    def logit(document, profile, resume):
        d = tables["job"][document]
        p, r = (
            tables["member"][row] if row >= 0 else np.zeros_like(d) for row in (profile, resume)
        )
        x = np.concatenate([d * p, d * r]) * len(d) ** 0.5
        x = np.concatenate([x, [profile >= 0, resume >= 0]])
        x = x @ head["hidden_0"]["kernel"] + head["hidden_0"]["bias"]
        x = np.where(x > 0, x, 0.01 * x)
        return x @ head["logit"]["kernel"][:, 0] + head["logit"]["bias"][0]

    columns = (pairs.receiver_text, pairs.sender_text, pairs.sender_resume)
    expected = [logit(*row) for row in zip(*columns, strict=True)]
    scorer = TextPairScorer.open(trained)
    np.testing.assert_allclose(scorer.score(pairs), expected, rtol=1e-4, atol=1e-5)

    ranking = read_ranking(trained / "tables", "apply", "test")
    assert ranking is not None
    grid = scorer.score_grid("apply", ranking)
    assert grid.shape == (len(ranking.sender), len(ranking.candidates))
    for q, c in [(0, 0), (3, 7), (4, 15)]:
        columns = (ranking.candidate_text[c], ranking.sender_text[q], ranking.sender_resume[q])
        np.testing.assert_allclose(grid[q, c], logit(*columns), rtol=1e-4, atol=1e-5)


def test_vectors_of_another_model_are_refused(trained, tmp_path):
    workdir = Path(shutil.copytree(trained, tmp_path / "copy"))
    content = artefacts.read_manifest(workdir / "text", "text_model")
    artefacts.seal(workdir / "text", "text_model", content.meta | {"best_step": 0})
    with pytest.raises(InputError, match=r"was made by text model .* run `star export-text` again"):
        TextPairScorer.open(workdir)


def test_a_finished_run_is_left_alone_and_another_config_refused(trained):
    before = artefacts.digest(trained / "text")
    train_text.run(tiny_text.config(num_steps=40), trained)
    assert artefacts.digest(trained / "text") == before
    with pytest.raises(InputError, match=r"plan.num_steps: 40 -> 41"):
        train_text.run(tiny_text.config(num_steps=41), trained)


def test_a_flipped_byte_of_the_checkpoint_is_refused_by_name(trained, tmp_path):
    workdir = Path(shutil.copytree(trained, tmp_path / "copy"))
    path = workdir / "text" / "checkpoints" / f"step-{meta(trained)['best_step']:08d}"
    file = max((path / "arrays" / "model").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(InputError, match=file.name):
        export_text.run(EXPORT, workdir)


@pytest.mark.slow
def test_a_killed_run_repeats_an_uninterrupted_one(tmp_path):
    whole, killed = begin(tmp_path / "whole"), begin(tmp_path / "killed")
    train_text.run(tiny_text.config(), whole)
    env = os.environ | {"PYTHONPATH": str(Path(tiny_text.__file__).parents[2])}
    done = subprocess.run([sys.executable, tiny_text.__file__, killed], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert losses(killed)[-1][0] == 7
    assert not (killed / "text" / "manifest.json").exists()
    train_text.run(tiny_text.config(), killed)
    assert losses(killed) == losses(whole)
    assert [r["score"] for r in rows(killed, "val")] == [r["score"] for r in rows(whole, "val")]
    assert meta(killed) == meta(whole)


def test_towers_have_adapters_of_their_own(tmp_path):
    """Trained in packed rows, exported with the adapters of each kind."""
    workdir = begin(tmp_path)
    config = tiny_text.config(
        lora=LoraConfig(rank=2, tower_adapters=True), pack_length=128, num_steps=12
    )
    train_text.run(config, workdir)
    train = [row["loss"] for row in rows(workdir, "train")]
    assert train[-1] < train[0]
    export_text.run(EXPORT, workdir)
    encoder = TextEncoder.open(workdir / "text")
    for node_type, kind in (("job", "job"), ("member", "profile")):
        table = read_table(workdir / "text_embeddings", node_type)
        texts = read_texts(workdir / "tables", node_type)
        (at,) = np.flatnonzero(np.array(texts.kind) == kind)[:1]
        expected = encoder.encode(texts.text[at], prompt_name=kind)
        np.testing.assert_allclose(table.vectors[at], expected, atol=1e-5)
        other = encoder.encode(texts.text[at], prompt_name="resume")
        assert np.abs(expected - other).max() > 1e-3
    with pytest.raises(ValueError, match=r"prompt_name None with a model of lora.tower_adapters"):
        encoder.encode("nurse")


@pytest.mark.parametrize("mode", ["frozen", "full"])
def test_the_other_modes_train_what_they_say(tmp_path, mode):
    workdir = begin(tmp_path, resumes=False)
    config = tiny_text.config(
        mode=mode, microbatch_size=8, mesh=MeshConfig(data=4, fsdp=2), num_steps=2
    )
    train_text.run(config, workdir)
    artefacts.seal(workdir / "text", "text_model", meta(workdir) | {"best_step": 2})
    opened = open_trained(workdir / "text", make_mesh(MeshConfig(data=1)))
    base = config.model(train_text.read_meta(workdir / "tables").tasks["apply"])
    start = train_text.initial(base, base.build(), config.seed, make_mesh(MeshConfig()))
    moved = {
        name: any(
            not np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(opened.variables[name]), jax.tree.leaves(tree), strict=True
            )
        )
        for name, tree in {**start.trainable, **start.frozen}.items()
    }
    assert moved == {"params": mode == "full", "scorer": True}
    assert len(losses(workdir)) == 2


def test_without_texts_nothing_is_trained_and_nothing_fails(tmp_path, caplog):
    workdir = begin(tmp_path, with_texts=False)
    train_text.run(tiny_text.config(), workdir)
    assert "no training pair has texts on both sides" in caplog.text
    assert meta(workdir)["trained"] is False
    export_text.run(EXPORT, workdir)
    scores = TextPairScorer.open(workdir).score(read_pairs(workdir / "tables", "apply", "test"))
    assert len(set(scores.tolist())) == 1


def test_other_tables_are_refused(tmp_path):
    workdir = begin(tmp_path, with_texts=False)
    train_text.run(tiny_text.config(), workdir)
    write_tables(workdir / "tables", with_texts=False, num_groups=3)
    with pytest.raises(InputError, match=r"was begun with tables .* remove that folder"):
        train_text.run(tiny_text.config(), workdir)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 24}, "batch_size 24 is not a multiple of microbatch_size 16"),
        ({"num_negatives": 2}, "microbatch_size 16 is not a multiple of a positive with"),
        ({"num_negatives": 0}, "num_negatives 0 must be >= 1"),
        ({"validation_pairs": 0}, "validation_pairs 0 must be >= 1"),
        (
            {"mode": "frozen", "tower": TowerConfig(pooling=PoolingConfig(layers="learned"))},
            r"mode frozen with tower.pooling that learns \(token None, layers learned\)",
        ),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_text.config(**fields)


@pytest.mark.parametrize(
    ("mining", "expected"),
    [
        ("global", {"num_groups": 16, "num_microbatches": 1, "num_chunks": 4, "num_pools": 1}),
        ("device", {"num_groups": 16, "num_microbatches": 1, "num_chunks": 4, "num_pools": 2}),
        ("micro", {"num_groups": 4, "num_microbatches": 4, "num_chunks": 1, "num_pools": 1}),
    ],
)
def test_where_negatives_are_found(mining, expected):
    config = tiny_text.config(batch_size=32, microbatch_size=8, mining=mining)
    shape = config.batch_shape(2)
    assert {name: getattr(shape, name) for name in expected} == expected


def test_too_few_validation_pairs_for_a_group(tmp_path):
    workdir = begin(tmp_path)
    with pytest.raises(InputError, match="validation_pairs 1 is below the size of a group"):
        train_text.run(tiny_text.config(validation_pairs=1), workdir)


def test_kinds_of_other_names_have_no_adapters(tmp_path):
    workdir = begin(tmp_path)
    tables = workdir / "tables"
    described = artefacts.read_manifest(tables, "tables").meta
    path = tables / "texts" / "job.parquet"
    texts = pq.read_table(path)
    kind = pa.array(["vacancy"] * len(texts))
    at = texts.schema.get_field_index("kind")
    pq.write_table(texts.set_column(at, "kind", kind), path)
    artefacts.seal(tables, "tables", described)
    config = tiny_text.config(lora=LoraConfig(tower_adapters=True))
    with pytest.raises(InputError, match="texts of job are not of the kind job; name it so"):
        train_text.run(config, workdir)


def test_who_applied_outside_of_the_pairs_is_no_negative(tmp_path, monkeypatch):
    """An edge of the graph's window is no pair of the train split."""
    workdir = begin(tmp_path)
    seen = []

    def note(pairs, records, shape, *, known, seed):
        seen.append(known)
        raise InputError("seen")

    monkeypatch.setattr(train_text, "BatchBuilder", note)
    monkeypatch.setattr(text_training, "known_positives", lambda *_: np.array([[0, 9]]))
    with pytest.raises(InputError, match="seen"):
        train_text.run(tiny_text.config(), workdir)
    assert seen[0].between(np.array([0]), np.array([9])).all()
    assert not seen[0].between(np.array([0]), np.array([8])).any()


def test_configs_round_trip():
    config = tiny_text.config(plan=PlanConfig(), tower=TowerConfig())
    assert from_json(TextTrainConfig, to_json(config)) == config
