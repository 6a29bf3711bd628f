"""Files of other libraries' formats, against what those libraries document."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as RawTokenizer

from star_jax.config import InputError
from star_jax.text.families import TokenLimits, read_shape
from star_jax.text.formats import sentences
from star_jax.text.formats.adapter import target_modules
from star_jax.text.formats.merged import write_weights
from star_jax.text.formats.pair_scorer import read_logits, write_scorer
from star_jax.text.formats.tokenizer_files import write_tokenizer
from star_jax.text.pooling import PoolingConfig
from star_jax.text.scorer import PairScorer, ScorerConfig
from star_jax.text.tower import TowerConfig, build_tokenizer
from tests.text.fixtures import FAMILIES, FOLDER, texts

SHAPES = {name: read_shape(FOLDER / name) for name in FAMILIES}
CAUSAL = PoolingConfig(token="last", layers="all", attention="causal")
LIMITS = TokenLimits(job=39, profile=39, resume=39, other=39)


@pytest.mark.parametrize(
    ("adapted", "others", "expected"),
    [
        (["layers.0.a.q", "layers.1.a.q"], {"layers.0.a.v", "lm_head"}, ["q"]),
        (["layer.0.out.dense"], {"layer.0.self.out.dense"}, ["0.out.dense"]),
        (["layer.0.self.out.dense"], {"layer.0.out.dense"}, ["self.out.dense"]),
        (["layer.0.mlp.dense"], {"pooler.dense"}, ["mlp.dense"]),
        (["layer.0.q"], {"layer.1.q"}, ["0.q"]),
    ],
)
def test_target_modules_mean_the_adapted_ones_alone(adapted, others, expected):
    """PEFT adapts each module whose name is an ending, or ends with a dot and one."""
    endings = target_modules(adapted, others | set(adapted))
    assert endings == expected
    matched = {
        name
        for name in others | set(adapted)
        if any(name == e or name.endswith(f".{e}") for e in endings)
    }
    assert matched == set(adapted)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tiny_mistral", {"norm_each_layer": True}, "pooling.norm_each_layer True cannot be said"),
        ("tiny_mistral", {"attention": "bidirectional"}, "pooling.attention bidirectional cannot"),
        ("tiny_mistral", {"final_norm_on_last": False}, "pooling.final_norm_on_last False cannot"),
        ("tiny_mistral", {"final_norm_on_last": False, "layers": (1, 2)}, None),
        ("tiny_mistral", {"norm_each_layer": True, "layers": "last"}, None),
        ("tiny_bert", {"attention": "bidirectional", "final_norm_on_last": False}, None),
    ],
)
def test_what_sentence_transformers_cannot_say_is_refused(name, changes, message):
    pooling = PoolingConfig(**vars(CAUSAL) | changes)
    if message is None:
        sentences.check_expressible(pooling, SHAPES[name])
        return
    with pytest.raises(InputError, match=message):
        sentences.check_expressible(pooling, SHAPES[name])


@pytest.mark.parametrize("layers", ["last", "all", (0, 3, 3), (2,)])
def test_the_layers_of_a_sentence_transformers_folder(tmp_path, layers):
    shape = SHAPES["tiny_mistral"]
    pooling = PoolingConfig(token="weighted_mean", layers=layers, attention="causal")
    config = json.loads((FOLDER / "tiny_mistral" / "config.json").read_text())
    config |= sentences.config_changes(pooling)
    (tmp_path / "config.json").write_text(json.dumps(config))
    prompts = {"job": "Größe: "}
    sentences.write_modules(tmp_path, pooling=pooling, shape=shape, prompts=prompts, max_length=9)
    modules = json.loads((tmp_path / "modules.json").read_text())
    names = [module["type"].removeprefix("sentence_transformers.models.") for module in modules]
    assert [module["path"] for module in modules] == [
        f"{i}_{name}" if i else "" for i, name in enumerate(names)
    ]
    read, read_prompts, limit = sentences.read_modules(tmp_path, shape)
    assert (read_prompts, limit) == (prompts, 9)
    expected = (1, 2, 3) if layers == "all" else layers
    assert read == PoolingConfig(token="weighted_mean", layers=expected, attention="causal")
    switches = json.loads((tmp_path / modules[-2]["path"] / "config.json").read_text())
    on = [key for key, value in switches.items() if value is True]
    assert on == ["pooling_mode_weightedmean_tokens", "include_prompt"]
    if layers == (0, 3, 3):
        stored = load_file(tmp_path / "1_WeightedLayerPooling" / "model.safetensors")
        np.testing.assert_array_equal(stored["layer_weights"], [1, 0, 0, 2])
        # Without the switch the library takes the last layer alone; so does our reader.
        shutil.copy(FOLDER / "tiny_mistral" / "config.json", tmp_path)
        assert sentences.read_modules(tmp_path, shape)[0].layers == "last"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_written_tokenizer_gives_our_ids_by_itself(tmp_path, name):
    tokenizer = build_tokenizer(TowerConfig(base=str(FOLDER / name), limits=LIMITS))
    added = write_tokenizer(tmp_path, FOLDER / name, tokenizer, 39)
    written = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    original = (FOLDER / name / "tokenizer.json").read_text(encoding="utf-8")
    assert (written == original) == (name == "tiny_bert")
    assert any("after every text" in words for words in added) == (name == "tiny_mistral")
    raw = RawTokenizer.from_str(written)
    raw.no_padding()
    raw.enable_truncation(39)
    rows = tokenizer.encode_after("", texts()["texts"], 39, tokenizer.truncation["job"])
    for text, row in zip(texts()["texts"], rows, strict=True):
        assert raw.encode(text).ids == row.tolist()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert raw.token_to_id(config["pad_token"]) == tokenizer.pad_id


def test_a_complete_tokenizer_config_stays_as_it_is(tmp_path):
    base = shutil.copytree(FOLDER / "tiny_bert", tmp_path / "base")
    content = '{"tokenizer_class": "BertTokenizer",   "pad_token": "[PAD]"}'
    (base / "tokenizer_config.json").write_text(content)
    tokenizer = build_tokenizer(TowerConfig(base=str(base), limits=LIMITS))
    assert write_tokenizer(tmp_path, base, tokenizer, 39) == []
    assert (tmp_path / "tokenizer_config.json").read_text() == content


def test_scorer_files_hold_the_layers(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"hidden_0": (10, 3), "logit": (3, 1)}
    params = {
        name: {"kernel": rng.normal(size=size), "bias": rng.normal(size=size[1:])}
        for name, size in sizes.items()
    }
    write_scorer(tmp_path, params, ScorerConfig(hidden=(3,)), 4)
    d, p, r = rng.normal(size=(3, 5, 4)).astype(np.float32)
    x = np.concatenate([2 * d * p, 2 * d * r, np.ones((5, 2))], axis=1)
    x = x @ params["hidden_0"]["kernel"] + params["hidden_0"]["bias"]
    x = np.where(x > 0, x, 0.01 * x)
    expected = (x @ params["logit"]["kernel"] + params["logit"]["bias"])[:, 0]
    both = np.ones(5, bool)
    np.testing.assert_allclose(read_logits(tmp_path, d, p, r, both, both), expected, rtol=1e-5)
    stored = load_file(tmp_path / "scorer.safetensors")
    assert {name: value.shape for name, value in stored.items()} == {
        "hidden_0.weight": (3, 10),
        "hidden_0.bias": (3,),
        "logit.weight": (1, 3),
        "logit.bias": (1,),
    }


@pytest.mark.parametrize(
    "config",
    [
        ScorerConfig(hidden=(4,) * 11, features=("product",)),
        ScorerConfig(hidden=(), features=("vectors", "difference", "request_product")),
    ],
    ids=["eleven layers", "all features"],
)
def test_the_files_say_what_the_scorer_computes(tmp_path, config):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3, 6, 4)).astype(np.float32)
    has_resume, has_profile = np.arange(6) % 2 > 0, np.arange(6) % 3 > 0
    inputs = (vectors[0], vectors[1], vectors[2], has_resume, has_profile)
    scorer = PairScorer(config)
    params = jax.jit(scorer.init)(jax.random.key(0), *inputs)["params"]
    write_scorer(tmp_path, params, config, 4)
    expected = jax.jit(scorer.apply)({"params": params}, *inputs)
    np.testing.assert_allclose(read_logits(tmp_path, *inputs), expected, rtol=1e-4, atol=1e-6)


def test_a_second_copy_of_the_embedding_is_the_trained_one(tmp_path):
    """Some files of T5 hold it twice; transformers ties the two to either."""
    base, folder = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    folder.mkdir()
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.block.0.weight")
    save_file(dict.fromkeys(names, table), base / "model.safetensors")
    updates = {"shared.weight": lambda value: value + 1.0}
    write_weights(folder, base, updates, shard_bytes=1 << 20)
    stored = load_file(folder / "model.safetensors")
    for name in names[:2]:
        np.testing.assert_array_equal(stored[name], table + 1.0)
    np.testing.assert_array_equal(stored[names[2]], table)
