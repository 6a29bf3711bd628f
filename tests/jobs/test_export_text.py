"""`star export-text`: what is encoded, by whom, and what is left after a kill."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from star_jax import artefacts
from star_jax.config import InputError, from_json, to_json
from star_jax.embeddings.quantise import quantise
from star_jax.embeddings.table import RANGES, read_table
from star_jax.jobs import export_text
from star_jax.jobs.export_text import TextExportConfig
from star_jax.parallel.mesh import MeshConfig
from star_jax.pipeline import text_encoding
from star_jax.pipeline.tables.read import read_texts
from star_jax.pipeline.text_encoding import BulkEncoder
from star_jax.pipeline.text_parts import WorkerConfig
from tests.jobs import tiny_export
from tests.pipeline.text_market import NUM_JOBS, NUM_MEMBERS

ROOT = Path(__file__).parents[2]
NUM_DIFFERENT = 31  # Texts of the market.


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """What XLA has compiled serves all exports, those in processes of their own too."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    names = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    yield {name.upper(): str(value) for name, value in names.items()}
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An export that nothing disturbed."""
    workdir = tiny_export.begin(tmp_path_factory.mktemp("whole"))
    export_text.run(tiny_export.config(), workdir)
    return workdir


@pytest.fixture
def begun(whole, tmp_path):
    """The same before any export."""
    workdir = Path(shutil.copytree(whole, tmp_path / "begun"))
    shutil.rmtree(workdir / "text_embeddings")
    return workdir


@pytest.fixture
def encoded(monkeypatch):
    """Notes how many texts each export encodes."""
    noted = []
    parts = BulkEncoder.parts

    def noting(self, variables, given, on_batch):
        given = [np.asarray(records) for records in given]
        noted.extend(len(records) for records in given)
        return parts(self, variables, given, on_batch)

    monkeypatch.setattr(BulkEncoder, "parts", noting)
    return noted


def arrays(workdir, folder="text_embeddings"):
    return {
        path.relative_to(workdir / folder).as_posix(): path.read_bytes()
        for path in sorted((workdir / folder).rglob("*"))
        if path.is_file() and path.name != artefacts.MANIFEST
    }


def meta(workdir, folder="text_embeddings"):
    return artefacts.read_manifest(workdir / folder, "text_embeddings").meta


def start(workdir, config, moment, compiled):
    environment = os.environ | compiled | {"PYTHONPATH": str(ROOT)}
    script = str(Path(tiny_export.__file__))
    return subprocess.Popen(
        [sys.executable, script, str(workdir), to_json(config), moment],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def hidden(workdir):
    return [path.name for path in workdir.iterdir() if path.name.startswith(".")]


def test_shards_carry_the_keys_of_their_texts(whole):
    tokens = np.load(whole / "text_tokens" / "keys.npy")
    assert len(set(tokens.tolist())) == NUM_DIFFERENT
    for node_type, num_texts in (("member", 2 * NUM_MEMBERS), ("job", NUM_JOBS)):
        shards = sorted((whole / "text_embeddings" / node_type).glob("keys-*.npy"))
        keys = np.concatenate([np.load(path) for path in shards])
        of_text = np.load(whole / "text_tokens" / "records" / f"{node_type}.npy")
        assert len(keys) == num_texts
        np.testing.assert_array_equal(keys, tokens[of_text])
        texts = read_texts(whole / "tables", node_type).text
        assert len(set(keys.tolist())) == len(set(texts))
    manifest = artefacts.read_manifest(whole / "text_embeddings", "text_embeddings")
    assert "member/keys-00002.npy" in manifest.files
    assert not hidden(whole)


def test_a_complete_export_is_left_alone(whole, encoded, caplog):
    before = artefacts.digest(whole / "text_embeddings")
    with caplog.at_level(logging.INFO):
        export_text.run(tiny_export.config(), whole)
    assert "is complete already" in caplog.text
    assert artefacts.digest(whole / "text_embeddings") == before
    assert encoded == []
    assert not hidden(whole)


def test_only_new_texts_are_encoded_and_the_others_keep_their_vectors(
    whole, begun, encoded, caplog
):
    """The market again, with one job text more and one changed."""
    texts = read_texts(begun / "tables", "job").text
    change_job_texts(begun, {0: "a new job", 5: "another new job"})
    with caplog.at_level(logging.INFO):
        export_text.run(tiny_export.config(reuse=whole / "text_embeddings"), begun)
    assert sum(encoded) == 2
    left = NUM_DIFFERENT - sum(texts.count(texts[row]) == 1 for row in (0, 5))
    assert f"{left + 2} different texts: {left} skipped by hash, 2 to encode" in caplog.text
    old, new = (read_table(w / "text_embeddings", "job").vectors for w in (whole, begun))
    same = np.setdiff1d(np.arange(NUM_JOBS), [0, 5])
    np.testing.assert_array_equal(new[same], old[same])
    assert (new[[0, 5]] != old[[0, 5]]).any(axis=1).all()
    np.testing.assert_array_equal(
        read_table(begun / "text_embeddings", "member").vectors,
        read_table(whole / "text_embeddings", "member").vectors,
    )


def change_job_texts(workdir, changes):
    path = workdir / "tables" / "texts" / "job.parquet"
    table = pq.read_table(path)
    texts = [changes.get(i, text) for i, text in enumerate(table["text"].to_pylist())]
    at = table.column_names.index("text")
    pq.write_table(table.set_column(at, "text", pa.array(texts)), path)
    content = artefacts._read(workdir / "tables")
    artefacts.seal(workdir / "tables", content.kind, content.meta)


def test_another_model_takes_no_vector(whole, begun, encoded, caplog):
    """It pools otherwise, nothing else: the same weights must not mislead."""
    path = begun / "text" / "model.json"
    model = json.loads(path.read_text(encoding="utf-8"))
    model["tower"]["pooling"]["token"] = "mean"
    path.write_text(json.dumps(model), encoding="utf-8")
    artefacts.seal(begun / "text", "text_model", artefacts._read(begun / "text").meta)
    export_text.run(tiny_export.config(reuse=whole / "text_embeddings"), begun)
    assert "differs in pooling, tower: none of its vectors is taken" in caplog.text
    assert sum(encoded) == NUM_DIFFERENT


def test_a_retrained_scorer_keeps_all_vectors(begun, whole, encoded):
    content = artefacts._read(begun / "text")
    artefacts.seal(begun / "text", "text_model", content.meta | {"num_steps": 7})
    export_text.run(tiny_export.config(reuse=whole / "text_embeddings"), begun)
    assert encoded == []
    assert meta(begun)["model"] != meta(whole)["model"]
    assert arrays(begun) == arrays(whole)


def test_a_changed_byte_of_a_reused_file_is_refused_by_name(begun, whole, tmp_path):
    old = Path(shutil.copytree(whole / "text_embeddings", tmp_path / "old"))
    content = bytearray((old / "job" / "vectors-00000.npy").read_bytes())
    content[-3] ^= 1
    (old / "job" / "vectors-00000.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"job/vectors-00000.npy does not have the sha256"):
        export_text.run(tiny_export.config(reuse=old), begun)
    assert not (begun / "text_embeddings").exists()


def test_parts_do_not_change_a_vector_nor_does_another_padding_by_much(begun, whole):
    config = tiny_export.config(part_texts=100, num_lengths=3, mesh=MeshConfig(data=2))
    export_text.run(config, begun)
    for name in ("member", "job"):
        got, expected = (read_table(w / "text_embeddings", name).vectors for w in (begun, whole))
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_workers_share_the_parts_and_the_last_one_writes(begun, whole, encoded, caplog):
    for index, num_parts in ((1, 3), (0, 3)):
        assert not (begun / "text_embeddings").exists()
        worker = WorkerConfig(index=index, count=2)
        with caplog.at_level(logging.INFO):
            export_text.run(tiny_export.config(worker=worker), begun)
        if index:
            assert len(encoded) == num_parts
            assert "3 parts are still to come from other processes" in caplog.text
    assert sum(encoded) == NUM_DIFFERENT
    assert arrays(begun) == arrays(whole)
    assert not hidden(begun)


@pytest.mark.slow
def test_processes_killed_in_a_part_and_in_the_tables(begun, whole, compiled, encoded):
    """Two at the same time: the one that lives must not write tables with a gap."""
    workers = [tiny_export.config(worker=WorkerConfig(index=i, count=2)) for i in range(2)]
    moments = ("never", "in a part")
    processes = [start(begun, w, m, compiled) for w, m in zip(workers, moments, strict=True)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL], errors
    assert not (begun / "text_embeddings").exists()
    assert len(list((begun / ".text_vectors").glob("*/part-*.npy"))) == 3 + 1
    assert len(list((begun / ".text_vectors").glob("*/*.partial"))) == 1

    process = start(begun, workers[1], "in the tables", compiled)
    errors = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, errors
    assert (begun / ".text_embeddings.partial").exists()
    assert not (begun / "text_embeddings").exists()

    export_text.run(workers[1], begun)
    assert encoded == []
    assert arrays(begun) == arrays(whole)
    assert meta(begun) == meta(whole)
    assert not hidden(begun)


def test_killed_when_all_was_written(begun, whole, monkeypatch, encoded):
    def killed(scratch):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export_text, "clear", killed)
        with pytest.raises(KeyboardInterrupt):
            export_text.run(tiny_export.config(), begun)
    assert hidden(begun) == [".text_vectors"]
    encoded.clear()
    export_text.run(tiny_export.config(), begun)
    assert encoded == []
    assert arrays(begun) == arrays(whole)
    assert not hidden(begun)


def test_narrow_vectors_stand_beside_the_wide_ones(begun, whole):
    precision = ("float32", "int8", "uint8", "binary", "ubinary")
    export_text.run(tiny_export.config(reuse=whole / "text_embeddings", precision=precision), begun)
    folder = begun / "text_embeddings"
    wide = {n: np.asarray(read_table(folder, n).vectors) for n in ("member", "job")}
    together = np.concatenate(list(wide.values()))
    ranges = np.stack([together.min(axis=0), together.max(axis=0)])
    np.testing.assert_array_equal(np.load(folder / RANGES), ranges)
    for name, vectors in wide.items():
        np.testing.assert_array_equal(vectors, read_table(whole / "text_embeddings", name).vectors)
        for kind in precision[1:]:
            codes = read_table(folder, name, precision=kind).vectors
            np.testing.assert_array_equal(codes, quantise(vectors, kind, ranges))
        near = read_table(folder, name, precision="int8", dequantised=True).vectors
        assert (np.abs(near - vectors) <= (ranges[1] - ranges[0]) / 255 + 1e-6).all()


def test_narrow_vectors_alone_by_given_ranges(begun, whole, tmp_path):
    size = read_table(whole / "text_embeddings", "job").vectors.shape[1]
    given = np.stack([np.full(size, -1, np.float32), np.full(size, 1, np.float32)])
    np.save(tmp_path / "mine.npy", given)
    export_text.run(
        tiny_export.config(
            reuse=whole / "text_embeddings", precision=("int8",), ranges=tmp_path / "mine.npy"
        ),
        begun,
    )
    expected = quantise(
        np.asarray(read_table(whole / "text_embeddings", "job").vectors), "int8", given
    )
    got = read_table(begun / "text_embeddings", "job", precision="int8").vectors
    np.testing.assert_array_equal(got, expected)
    with pytest.raises(InputError, match=r"vectors-00000.npy is missing.*there are int8-00000.npy"):
        read_table(begun / "text_embeddings", "job")
    np.save(tmp_path / "mine.npy", given[:, 1:])
    with pytest.raises(InputError, match=r"mine.npy has shape .* needed \(2, 32\)"):
        export_text.run(
            tiny_export.config(precision=("int8",), ranges=tmp_path / "mine.npy"), begun
        )


def test_batches_are_padded_while_the_device_works(begun, monkeypatch):
    """The first result is not taken before a third batch, of a third part, has been made."""
    third, made = threading.Event(), []
    pad, take = text_encoding.pad_tokens, BulkEncoder._take

    def noting_pad(*args):
        made.append(threading.current_thread().name)
        if len(made) == 3:
            third.set()
        return pad(*args)

    def waiting_take(self, *args):
        assert third.wait(60.0)  # Only two had been asked for.
        return take(self, *args)

    monkeypatch.setattr(text_encoding, "pad_tokens", noting_pad)
    monkeypatch.setattr(BulkEncoder, "_take", waiting_take)
    export_text.run(tiny_export.config(), begun)
    assert made == ["ahead"] * 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"part_texts": 0}, "part_texts 0 must be >= 1"),
        ({"platt_pairs": -1}, "platt_pairs -1 must be >= 0"),
        ({"prior": 1.0}, "prior 1.0 must be a share between 0 and 1"),
        ({"precision": ()}, r"precision \(\) must name one or more of"),
        ({"precision": ("int8", "int8")}, "each once"),
        ({"ranges": Path("r.npy")}, r"ranges r.npy is for .* precision \('float32',\)"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TextExportConfig(**fields)


def test_bad_workers_are_refused():
    with pytest.raises(ValueError, match="index 2 is not one of 2 workers"):
        WorkerConfig(index=2, count=2)
    with pytest.raises(ValueError, match="index None and count 2: give both or none"):
        WorkerConfig(count=2)
    assert WorkerConfig().share() == (0, 1)


def test_configs_round_trip():
    config = tiny_export.config(precision=("int8",), reuse=Path("a"), ranges=Path("b"))
    assert from_json(TextExportConfig, to_json(config)) == config
