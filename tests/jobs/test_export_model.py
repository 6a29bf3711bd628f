"""The exit without other libraries: what is written, and that nothing unproved stays."""

import dataclasses
import importlib.util
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from star_jax import artefacts
from star_jax.config import InputError, from_json, to_json
from star_jax.jobs import export_model
from star_jax.jobs.export_model import ModelExportConfig
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline.model_source import texts_by_kind
from star_jax.pipeline.text_model import open_trained
from star_jax.text.pooling import PoolingConfig
from tests.jobs import trained_text
from tests.pipeline.text_market import write_tables
from tests.text.fixtures import FOLDER

OWN = ModelExportConfig(verify="self", num_texts=3, shard_bytes=20_000)


def load(folder):
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def begin(workdir, base, **fields):
    write_tables(workdir / "tables")
    trained_text.write(workdir / "text", base, **fields)
    return workdir


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    workdir = begin(tmp_path_factory.mktemp("mistral"), FOLDER / "tiny_mistral")
    export_model.run(OWN, workdir)
    return workdir


@pytest.fixture
def copied(exported, tmp_path):
    """Trained, not exported."""
    for name in ("tables", "text"):
        shutil.copytree(exported / name, tmp_path / name)
    return tmp_path


def adapters(workdir):
    """Torch module -> (A, B) of the trained model, in our layout."""
    trained = open_trained(workdir / "text", make_mesh(MeshConfig(data=1)))
    layers = jax.tree.map(np.asarray, trained.variables["lora"]["encoder"]["layers"])
    theirs = {
        "self_attn.q_proj": layers["attention_in"]["q_proj"],
        "self_attn.v_proj": layers["attention_in"]["v_proj"],
        "mlp.down_proj": layers["mlp_out"]["down_proj"],
    }
    return {
        f"layers.{i}.{name}": (pair["a"][i], pair["b"][i])
        for name, pair in theirs.items()
        for i in range(3)
    }


def test_the_adapter_has_peft_names_and_layout(exported):
    folder = exported / "model_export" / "peft"
    stored = load(folder)
    expected = {}
    for module, (a, b) in adapters(exported).items():
        expected[f"base_model.model.{module}.lora_A.weight"] = a.T
        expected[f"base_model.model.{module}.lora_B.weight"] = b.T
    assert set(stored) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(stored[name], value)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (2, 5, "FEATURE_EXTRACTION")
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == str((FOLDER / "tiny_mistral").resolve())


@pytest.mark.parametrize("name", ["huggingface", "sentence-transformers"])
def test_merged_tensors_are_the_bases_with_adapters_added(exported, name):
    folder = exported / "model_export" / name
    stored, base = load(folder), load(FOLDER / "tiny_mistral")
    of_modules = adapters(exported)
    assert set(stored) == set(base)
    for tensor, value in base.items():
        a, b = of_modules.get(tensor.removesuffix(".weight"), (None, None))
        expected = value if a is None else value + 2.5 * (a.astype(np.float64) @ b).T
        assert stored[tensor].dtype == np.float32
        np.testing.assert_allclose(stored[tensor], expected, rtol=0, atol=0 if a is None else 1e-6)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in base.values())
    for tensor, file in index["weight_map"].items():
        with safe_open(folder / file, framework="numpy") as opened:
            assert tensor in opened.keys()  # noqa: SIM118 - no mapping
            assert opened.metadata() == {"format": "pt"}
    sizes = [sum(v.nbytes for v in load_file(file).values()) for file in folder.glob("model-*")]
    assert max(sizes) <= 20_000


def test_the_manifest_says_how_it_was_verified(exported):
    meta = artefacts.read_manifest(exported / "model_export", "model_export").meta
    assert meta["verified_by"] == "self"
    assert meta["model"] == artefacts.digest(exported / "text")
    assert set(meta["checks"]) == {*OWN.formats, "scorer"}
    for name in OWN.formats:
        check = meta["checks"][name]
        assert check["library"] is None
        assert check["effect"] > 0.1
        assert check["reread"] <= 1e-5
    config = json.loads((exported / "model_export/huggingface/config.json").read_text())
    assert config == json.loads((FOLDER / "tiny_mistral/config.json").read_text())


def test_without_the_libraries_nothing_is_done(copied, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else find(name)
    )
    monkeypatch.setitem(export_model.interop.PACKAGES, "huggingface", ("transformers",))
    config = ModelExportConfig(formats=("huggingface", "peft"))
    with pytest.raises(InputError, match=r"peft .*pip install -r requirements-interop.txt, or"):
        export_model.run(config, copied)
    assert {path.name for path in copied.iterdir()} == {"tables", "text"}


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("peft", "base_model.model.layers.2.mlp.down_proj.lora_B.weight"),
        ("huggingface", "layers.2.mlp.down_proj.weight"),
        ("sentence-transformers", "layers.1.input_layernorm.weight"),
    ],
)
def test_a_wrong_tensor_is_refused_and_leaves_nothing(copied, monkeypatch, name, tensor):
    step = {"peft": "write_adapter"}.get(name, "write_weights")
    write = getattr(export_model, step)

    def corrupting(folder, *args, **options):
        result = write(folder, *args, **options)
        (file,) = (f for f in folder.glob("*.safetensors") if tensor in load_file(f))
        save_file(load_file(file) | {tensor: load_file(file)[tensor] + np.float32(0.01)}, file)
        return result

    monkeypatch.setattr(export_model, step, corrupting)
    config = ModelExportConfig(formats=(name,), verify="self", num_texts=3)
    with pytest.raises(
        InputError, match=rf"{name}: what was written differs from W/text by \S+, needed"
    ):
        export_model.run(config, copied)
    assert {path.name for path in copied.iterdir()} == {"tables", "text"}


def test_a_model_that_is_its_base_is_refused(copied):
    shutil.rmtree(copied / "text")
    trained_text.write(copied / "text", FOLDER / "tiny_mistral", moved=0.0)
    with pytest.raises(InputError, match=r"peft: training moved no vector .*: not exported"):
        export_model.run(OWN, copied)


def test_published_bfloat16_stays_and_may_not_round_the_training_away(tmp_path):
    base = shutil.copytree(FOLDER / "tiny_mistral", tmp_path / "base")
    for file in base.glob("*.safetensors"):
        tensors = {n: v.astype(ml_dtypes.bfloat16) for n, v in load_file(file).items()}
        save_file(tensors, file)
    config = ModelExportConfig(formats=("huggingface",), verify="self", num_texts=3)
    workdir = begin(tmp_path / "w", base)
    export_model.run(config, workdir)
    folder = workdir / "model_export"
    assert {v.dtype for v in load(folder / "huggingface").values()} == {
        np.dtype(ml_dtypes.bfloat16)
    }
    check = artefacts.read_manifest(folder, "model_export").meta["checks"]["huggingface"]
    assert 1e-5 < check["reread"] < check["effect"] / 2
    shutil.rmtree(workdir / "text")
    trained_text.write(workdir / "text", base, moved=2e-4)
    with pytest.raises(InputError, match="its dtype rounds the training away"):
        export_model.run(config, workdir)


def test_full_training_replaces_the_tensors(tmp_path):
    workdir = begin(tmp_path, FOLDER / "tiny_bert", mode="full")
    with pytest.raises(InputError, match=r"peft holds adapters, .*--formats huggingface"):
        export_model.run(OWN, workdir)
    export_model.run(ModelExportConfig(formats=("huggingface",), verify="self"), workdir)
    stored = load(workdir / "model_export" / "huggingface")
    params = open_trained(workdir / "text", make_mesh(MeshConfig(data=1))).variables["params"]
    layers = params["encoder"]["layers"]
    name = "encoder.layer.1.intermediate.dense"
    for tensor, leaf in (("weight", "kernel"), ("bias", "bias")):
        np.testing.assert_array_equal(
            stored[f"{name}.{tensor}"], layers["mlp_in"]["up_proj"][leaf][1].T
        )


def test_texts_that_cleaning_changes_twice_are_no_sample(copied):
    tables = copied / "tables"
    described = artefacts.read_manifest(tables, "tables").meta
    path = tables / "texts" / "job.parquet"
    texts = pq.read_table(path)
    twice = ["R&amp;amp;D nurse", *texts["text"].to_pylist()[1:]]
    at = texts.schema.get_field_index("text")
    pq.write_table(texts.set_column(at, "text", pa.array(twice)), path)
    artefacts.seal(tables, "tables", described)
    jobs = texts_by_kind(tables)["job"]
    assert not [text for text in jobs if text.startswith("R&")]
    assert len(jobs) == len(set(twice)) - 1


def test_one_tower_leaves_with_its_adapters(tmp_path):
    towers = dataclasses.replace(trained_text.LORA, tower_adapters=True)
    workdir = begin(tmp_path, FOLDER / "tiny_mistral", lora=towers)
    with pytest.raises(InputError, match="tower None: needed one of job, profile, resume for a"):
        export_model.run(OWN, workdir)
    export_model.run(dataclasses.replace(OWN, formats=("peft",), tower="profile"), workdir)
    stored = load(workdir / "model_export" / "peft")
    trained = open_trained(workdir / "text", make_mesh(MeshConfig(data=1)))
    query = trained.variables["lora"]["encoder"]["layers"]["attention_in"]["q_proj"]
    name = "base_model.model.layers.1.self_attn.q_proj"
    np.testing.assert_array_equal(stored[f"{name}.lora_A.weight"], query["a"][1][:, 2:4].T)
    np.testing.assert_array_equal(stored[f"{name}.lora_B.weight"], query["b"][1][2:4].T)
    meta = artefacts.read_manifest(workdir / "model_export", "model_export").meta
    assert meta["tower"] == "profile"


def test_a_tower_of_shared_adapters_is_refused(copied):
    with pytest.raises(InputError, match=r"tower job: needed one of .*, none for any other"):
        export_model.run(dataclasses.replace(OWN, tower="job"), copied)


def test_what_cannot_be_exported_is_refused_first(copied):
    shutil.rmtree(copied / "text")
    pooling = PoolingConfig(norm_each_layer=True)
    trained_text.write(copied / "text", FOLDER / "tiny_mistral", pooling=pooling)
    with pytest.raises(InputError, match="norm_each_layer True cannot be said"):
        export_model.run(OWN, copied)
    shutil.rmtree(copied / "text")
    trained_text.write(copied / "text", "random")
    with pytest.raises(InputError, match="base random has no files"):
        export_model.run(OWN, copied)
    assert not (copied / "model_export").exists()


def test_learned_pooling_leaves_as_vectors_alone(copied):
    shutil.rmtree(copied / "text")
    pooling = PoolingConfig(layers="learned")
    trained_text.write(copied / "text", FOLDER / "tiny_mistral", pooling=pooling)
    with pytest.raises(InputError, match=r"layers learned\) has learned parameters, which no"):
        export_model.run(OWN, copied)


def test_adapters_of_a_rounded_base_are_not_merged(copied, monkeypatch):
    def rounded(folder, *args):
        trained = open_trained(folder, *args)
        return trained._replace(tower=dataclasses.replace(trained.tower, base_quantisation="int8"))

    monkeypatch.setattr("star_jax.pipeline.model_source.open_trained", rounded)
    with pytest.raises(InputError, match=r"rounded weights .* give --formats peft"):
        export_model.run(OWN, copied)
    export_model.run(dataclasses.replace(OWN, formats=("peft",)), copied)
    meta = artefacts.read_manifest(copied / "model_export", "model_export").meta
    assert meta["trained_on_rounded_base"]


def test_bad_configs_are_refused():
    for fields, message in [
        ({"formats": ()}, "needs at least one"),
        ({"formats": ("peft", "peft")}, "each once"),
        ({"num_texts": 0}, "num_texts 0 must be >= 1"),
        ({"shard_bytes": 0}, "shard_bytes 0 must be >= 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            ModelExportConfig(**fields)
    assert from_json(ModelExportConfig, to_json(OWN)) == OWN
