"""The exit by the libraries themselves: each folder is loaded as its users load it."""

import json
import shutil

import numpy as np
import pytest

from star_jax import artefacts
from star_jax.jobs import export_model
from star_jax.jobs.export_model import ModelExportConfig
from star_jax.pipeline import interop
from star_jax.pipeline.text_encoder import TextEncoder
from star_jax.text.pooling import PoolingConfig
from tests.jobs import trained_text
from tests.pipeline.text_market import write_tables
from tests.text.fixtures import FAMILIES, FOLDER

pytestmark = [
    pytest.mark.extra("interop"),
    pytest.mark.filterwarnings("ignore"),  # Of the libraries, which change by the month.
]

POOLINGS = [
    ("tiny_mistral", "last", "last"),
    ("tiny_mistral", "mean", "last"),
    ("tiny_mistral", "weighted_mean", (0, 2, 2)),
    ("tiny_bert", "first", "last"),
    ("tiny_bert", "weighted_mean", "last"),
    ("tiny_bert", "mean", "all"),
]


def export(workdir, **fields):
    export_model.run(ModelExportConfig(num_texts=6, **fields), workdir)
    return artefacts.read_manifest(workdir / "model_export", "model_export").meta


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request, tmp_path_factory):
    """With the family's own pooling."""
    workdir = tmp_path_factory.mktemp(request.param)
    write_tables(workdir / "tables")
    trained_text.write(workdir / "text", FOLDER / request.param)
    return workdir, export(workdir)


def test_every_format_is_what_its_library_computes(exported):
    _, meta = exported
    assert set(meta["verified_by"]) == {"torch", "transformers", "peft", "sentence-transformers"}
    for name in ("peft", "huggingface", "sentence-transformers"):
        check = meta["checks"][name]
        assert check["library"] <= 1e-5
        assert check["effect"] > 0.1


def test_sentence_transformers_encodes_as_text_encoder(exported):
    """From `W/text` on one side, from the exported folder on the other."""
    from sentence_transformers import (  # pyright: ignore[reportMissingImports]
        SentenceTransformer,
    )

    workdir, _ = exported
    folder = workdir / "model_export" / "sentence-transformers"
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = TextEncoder.open(workdir / "text")
    texts = ["likes red", "python nurse", "a"]
    for name in ("encode", "encode_query", "encode_document"):
        expected = getattr(theirs, name)(texts)
        got = getattr(ours, name)(texts)
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert dict(theirs.prompts) == ours.prompts


@pytest.mark.parametrize(("base", "token", "layers"), POOLINGS)
def test_every_pooling_it_can_say(tmp_path, base, token, layers):
    write_tables(tmp_path / "tables")
    pooling = PoolingConfig(token=token, layers=layers)
    trained_text.write(tmp_path / "text", FOLDER / base, pooling=pooling)
    meta = export(tmp_path, formats=("sentence-transformers",))
    assert meta["checks"]["sentence-transformers"]["library"] <= 1e-5


def test_an_adapter_for_causal_models(exported, tmp_path):
    workdir, _ = exported
    if "mistral" not in workdir.name:
        pytest.skip("an encoder is no causal model")
    for name in ("tables", "text"):
        shutil.copytree(workdir / name, tmp_path / name)
    meta = export(tmp_path, formats=("peft",), adapter_form="causal_lm")
    assert meta["checks"]["peft"]["library"] <= 1e-5
    config = json.loads((tmp_path / "model_export/peft/adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"


def test_wrong_keys_are_seen_through_the_library(exported):
    """PEFT drops keys that it does not know and goes on with the base."""
    workdir, _ = exported
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(workdir / "model_export" / "peft", workdir / "wrong")
    file = folder / "adapter_model.safetensors"
    save_file({name.replace(".model.", ".nodel."): v for name, v in load_file(file).items()}, file)
    rows = [np.array([1, 7, 9, 2])]
    base = FOLDER / next(name for name in FAMILIES if name in workdir.name)
    right = interop.adapter_vectors(workdir / "model_export" / "peft", base, rows)
    wrong = interop.adapter_vectors(folder, base, rows)
    assert np.abs(right - wrong).max() > 0.01
