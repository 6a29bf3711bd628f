"""Reading Hugging Face folders; what does not fit is named."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from bench import text_loading
from star_jax.config import InputError
from star_jax.parallel import rules as parallel_rules
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import FSDP_RULES, Rule, shardings
from star_jax.text.families import TokenLimits
from star_jax.text.tower import TowerConfig, build_tower, load_params, param_shapes
from star_jax.text.weights import read_encoder
from tests.text.fixtures import FAMILIES, FOLDER

LIMITS = TokenLimits(job=40, profile=40, resume=40, other=40)


@pytest.fixture
def folder(tmp_path):
    """A writable copy of the tiny BERT."""
    return shutil.copytree(FOLDER / "tiny_bert", tmp_path / "base")


def load(folder, mesh=None, **changes):
    config = TowerConfig(base=str(folder), limits=LIMITS, **changes)
    return load_params(config, build_tower(config), mesh)


def load_in_pieces(folder, mesh, rules):
    """Some hundred bytes at a time: every leaf is cut, also within its layers."""
    tower = build_tower(TowerConfig(base=str(folder), limits=LIMITS))
    shapes = param_shapes(tower)["encoder"]
    like = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        shardings(shapes, mesh, rules),
    )
    return {"encoder": read_encoder(folder, tower.shape, like, piece_bytes=1000)}, like


def rewrite(folder, change):
    """Saves the folder's tensors again, changed."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", FAMILIES)
def test_kernels_are_transposed_and_stacked(name):
    stored = {}
    for file in (FOLDER / name).glob("*.safetensors"):
        stored |= load_file(file)
    layers = load(FOLDER / name)["encoder"]["layers"]
    query = {
        "tiny_mistral": "layers.{}.self_attn.q_proj.weight",
        "tiny_bert": "encoder.layer.{}.attention.self.query.weight",
    }[name]
    for i in range(3):
        np.testing.assert_array_equal(
            layers["attention_in"]["q_proj"]["kernel"][i], stored[query.format(i)].T
        )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("split", [(1, 1, ()), (1, 8, (8,)), (4, 2, (2,))], ids=str)
def test_any_mesh_and_any_pieces_give_the_same_weights(name, split):
    data, fsdp, numbers = split
    # The tiny leaves are below the size at which FSDP_RULES split: these rules split them.
    rules = (
        Rule(r".*(up_proj|q_proj)/kernel", PartitionSpec(None, None, "fsdp")),
        Rule(r".*(down_proj|o_proj)/kernel", PartitionSpec(None, "fsdp")),
        Rule(r"embed/.*", PartitionSpec("fsdp")),
        Rule(r".*", PartitionSpec()),
    )
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp))
    got, like = load_in_pieces(FOLDER / name, mesh, rules)
    assert_equal(got, load(FOLDER / name))
    jax.tree.map(assert_placed, got["encoder"], jax.tree.map(lambda leaf: leaf.sharding, like))
    parts = {
        len({str(shard.index) for shard in leaf.addressable_shards})
        for leaf in jax.tree.leaves(got)
    }
    assert parts == {1, *numbers}


def assert_placed(leaf, where):
    assert leaf.sharding == where


@pytest.mark.parametrize("base", ["random", "tiny_mistral"])
def test_loading_places_by_the_rules(base, monkeypatch):
    monkeypatch.setattr(parallel_rules, "_SMALL", 1)
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    folder = base if base == "random" else FOLDER / base
    got = load(folder, mesh)
    jax.tree.map(assert_placed, got, shardings(got, mesh, FSDP_RULES))
    assert {leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(got)} == {False}
    assert_equal(got, load(folder))


@pytest.mark.slow
def test_memory_stays_within_a_tensor(tmp_path):
    """50 MB in a process of its own, its memory seen from outside; the plain way is not within."""
    largest = text_loading.write(tmp_path, text_loading.SMALL)
    memory = text_loading.measure(tmp_path, "star", 1)
    assert 49e6 < memory.arrays < 52e6
    assert memory.load <= text_loading.BOUND * largest
    plain = text_loading.measure(tmp_path, "plain", 1)
    assert plain.load > text_loading.BOUND * largest
    assert plain.hash == memory.hash


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_names_with_and_without_prefix_and_of_old(folder, prefix):
    expected = load(folder)
    heads = {
        "cls.predictions.bias": np.zeros(3, np.float32),
        prefix + "pooler.dense.weight": np.zeros((16, 16), np.float32),
        prefix + "embeddings.position_ids": np.zeros((1, 40), np.int64),
    }

    def rename(tensors):
        old = {
            prefix
            + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for name, value in tensors.items()
        }
        return old | heads

    rewrite(folder, rename)
    assert_equal(load(folder), expected)


def test_one_file_or_shards(tmp_path):
    folder = shutil.copytree(FOLDER / "tiny_mistral", tmp_path / "base")
    expected = load(folder)
    tensors = {}
    for file in folder.glob("model-*.safetensors"):
        tensors |= {f"model.{name}": value for name, value in load_file(file).items()}
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    tensors["lm_head.weight"] = np.zeros((160, 16), np.float32)
    save_file(tensors, folder / "model.safetensors")
    assert_equal(load(folder), expected)


def test_bfloat16_files_and_parameters(folder):
    expected = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), load(folder))
    assert_equal(load(folder, param_dtype="bfloat16"), expected)
    rewrite(folder, lambda t: {name: v.astype(ml_dtypes.bfloat16) for name, v in t.items()})
    got = load(folder)
    assert_equal(got, jax.tree.map(lambda leaf: leaf.astype(np.float32), expected))
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype("float32")}


def without(tensors):
    return {name: v for name, v in tensors.items() if "layer.1.output.dense" not in name}


def with_more(tensors):
    return tensors | {"adapter.weight": np.zeros(3, np.float32)}


def with_other_shape(tensors):
    return tensors | {"embeddings.word_embeddings.weight": np.zeros((5, 16), np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without,
            r"2 missing \(encoder.layer.1.output.dense.bias, encoder.layer.1.output.dense.weight\)",
        ),
        (lambda tensors: {}, r"53 missing \(.*, \.\.\.\)"),
        (with_more, r"1 unknown \(adapter.weight\)"),
        (
            with_other_shape,
            r"1 misshapen \(embeddings.word_embeddings.weight \[5, 16\] needed \[120, 16\]\)",
        ),
        (lambda t: with_more(without(t)), "2 missing .*; 1 unknown"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(InputError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep_bytes", [0, 4, 100, 20_000])
def test_a_truncated_file_is_corrupt(folder, keep_bytes):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep_bytes])
    with pytest.raises(InputError, match=r"model.safetensors is corrupt: .") as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(tmp_path):
    folder = shutil.copytree(FOLDER / "tiny_mistral", tmp_path / "base")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00003.safetensors is missing, named in"):
        load(folder)
    index = folder / "model.safetensors.index.json"
    for content in ("{", json.dumps({"weight_map": None}), "[]"):
        index.write_text(content)
        with pytest.raises(InputError, match=r"index.json is no index of safetensors shards"):
            load(folder)
    index.unlink()
    with pytest.raises(InputError, match=r"holds no model.safetensors, whole or in shards"):
        load(folder)
