"""Towers against transformers' states and poolings written out in numpy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.shapes import MISTRAL_7B
from star_jax import trees
from star_jax.config import InputError
from star_jax.text.attention import Visibility
from star_jax.text.bert import BertEncoder
from star_jax.text.families import BertShape, MistralShape, T5Shape, TokenLimits, read_shape
from star_jax.text.mistral import MistralEncoder
from star_jax.text.pooling import Layers, PoolingConfig, Token, TokenPool
from star_jax.text.t5 import T5Encoder
from star_jax.text.tower import (
    TextTower,
    TowerConfig,
    build_tower,
    init_pooler,
    load_params,
    param_shapes,
    read_base,
)
from tests.text.fixtures import FAMILIES, FOLDER, OTHERS, arrays, rows_of


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def load(name, **changes):
    config = TowerConfig(base=str(FOLDER / name), **changes)
    if "limits" not in changes:
        config = dataclasses.replace(
            config, limits=TokenLimits(job=40, profile=40, resume=40, other=40)
        )
    tower = build_tower(config)
    return tower, load_params(config, tower)


def encode(tower, params, tokens, mask):
    return jax.jit(lambda p, t, m: apply(tower, p, t, m))(params, tokens, mask)


def apply(tower, params, tokens, mask) -> Any:
    return tower.apply({"params": params}, rows_of(tokens, mask))


@pytest.mark.parametrize("family", FAMILIES + OTHERS)
def test_states_are_those_of_transformers(family):
    golden = arrays(family)
    tower, params = load(family)
    if isinstance(tower.shape, BertShape):
        encoder = BertEncoder(tower.shape, "none", "xla", jnp.float32)
    elif isinstance(tower.shape, T5Shape):
        encoder = T5Encoder(tower.shape, "none", "xla", jnp.float32)
    else:
        encoder = MistralEncoder(tower.shape, "causal", "none", "xla", jnp.float32)
    real = golden["mask"]
    first = TokenPool(jnp.zeros((len(real), 1), jnp.int32), None)
    encoded = jax.jit(lambda p, *inputs: encoder.apply({"params": p}, *inputs))(
        params["encoder"],
        golden["tokens"],
        Visibility(real, None),
        jnp.arange(real.shape[1])[None],
        first,
    )
    for state, expected in (
        (encoded.last, golden["states"][-1]),
        (encoded.normed, golden["final"]),
    ):
        np.testing.assert_allclose(state[real], expected[real], atol=1e-4)
    np.testing.assert_allclose(encoded.pooled[:, :, 0], golden["states"][:, :, 0], atol=1e-4)


def pooled_by_definition(golden, pooling):
    """SPEC 1.2 text by text, layer by layer, token by token."""
    vectors = []
    num_layers = len(golden["states"]) - 1
    layers = {"last": [num_layers], "all": range(1, num_layers + 1)}.get(
        pooling.layers, pooling.layers
    )
    for text, real in enumerate(golden["mask"]):
        count = int(real.sum())
        of_layers = []
        for layer in layers:
            last = layer == num_layers and pooling.final_norm_on_last
            states = (golden["final"] if last else golden["states"][layer])[text, :count]
            states = states.astype(np.float64)
            vector = {
                "last": lambda s: s[-1],
                "first": lambda s: s[0],
                "mean": lambda s: s.mean(0),
                "weighted_mean": lambda s: np.average(s, axis=0, weights=np.arange(len(s)) + 1.0),
            }[pooling.token](states)
            if pooling.norm_each_layer and pooling.layers != "last":
                vector = vector / np.sqrt(np.mean(vector**2))
            of_layers.append(vector)
        vector = np.mean(of_layers, axis=0)
        vectors.append(vector / np.linalg.norm(vector))
    return np.array(vectors)


CHOICES: list[tuple[Token, Layers, bool, bool]] = [
    ("last", "all", False, True),
    ("last", "last", False, True),
    ("mean", "last", False, True),
    ("mean", "all", True, True),
    ("weighted_mean", "last", False, False),
    ("weighted_mean", (0, 2), True, True),
    ("last", (1, 3), False, False),
    ("last", (3, 0), False, True),
]
POOLINGS = [
    PoolingConfig(token=token, layers=layers, norm_each_layer=norm, final_norm_on_last=final)
    for token, layers, norm, final in CHOICES
]


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_poolings_are_their_definitions(family, pooling):
    golden = arrays(family)
    tower, params = load(family, pooling=pooling)
    got = encode(tower, params, golden["tokens"], golden["mask"])
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, pooled_by_definition(golden, pooling), atol=1e-5)


def test_first_token_of_a_bidirectional_encoder():
    golden = arrays("tiny_bert")
    pooling = PoolingConfig(token="first", layers="last")
    tower, params = load("tiny_bert", pooling=pooling)
    got = encode(tower, params, golden["tokens"], golden["mask"])
    np.testing.assert_allclose(got, pooled_by_definition(golden, pooling), atol=1e-5)


def test_families_bring_their_defaults():
    mistral = read_base(TowerConfig(base="random"))
    assert mistral.pooling == PoolingConfig(token="last", layers="all", attention="causal")
    assert mistral.limits == TokenLimits(job=1800, profile=1024, resume=1800, other=1024)
    assert mistral.prompts == "instruct-1"
    limits = TokenLimits(job=32, profile=30, resume=20, other=10)
    bert = read_base(TowerConfig(base=str(FOLDER / "tiny_bert"), limits=limits))
    assert bert.pooling == PoolingConfig(token="mean", layers="last", attention="bidirectional")
    assert bert.prompts == "none"
    assert bert.limits == limits


def test_padding_changes_nothing(family):
    golden = arrays(family)
    tower, params = load(family)
    expected = encode(tower, params, golden["tokens"], golden["mask"])
    tokens = np.concatenate([golden["tokens"], np.full((3, 8), 99, np.int32)], axis=1)
    tokens = np.concatenate([tokens, np.full((1, 20), 98, np.int32)])
    mask = np.zeros(tokens.shape, bool)
    mask[:3, :12] = golden["mask"]
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    got = encode(tower, params, tokens, mask)
    np.testing.assert_allclose(got[:3], expected, atol=1e-5)
    np.testing.assert_array_equal(got[3], 0.0)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(apply(tower, p, tokens, mask)))))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    # The fourth row, all padding, adds nothing to them.
    embedded = grads["encoder"]["embed"]["embedding"]
    np.testing.assert_array_equal(embedded[98], 0.0)


def test_remat_changes_memory_and_nothing_else(family):
    golden = arrays(family)
    tokens, mask = (np.tile(golden[name], (4, 4))[:, :40] for name in ("tokens", "mask"))
    tokens, mask = jnp.asarray(tokens), jnp.ones(mask.shape, bool)
    grads, temporary_bytes = {}, {}
    for remat in ("none", "dots", "full"):
        tower, params = load(family, remat=remat)

        def loss(p, tower=tower):
            return jnp.sum(jnp.sin(apply(tower, p, tokens, mask)))

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        analysis: Any = compiled.memory_analysis()
        temporary_bytes[remat] = analysis.temp_size_in_bytes
        grads[remat] = compiled(params)
    for remat in ("dots", "full"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            grads[remat],
            grads["none"],
        )
    assert temporary_bytes["full"] < temporary_bytes["dots"] < temporary_bytes["none"]


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_bfloat16_keeps_float32_where_it_matters(family):
    golden = arrays(family)
    inputs = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
    wide, params = load(family)
    narrow, narrow_params = load(family, param_dtype="bfloat16", compute_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow_params)} == {jnp.dtype("bfloat16")}
    got = encode(narrow, narrow_params, *inputs)
    assert got.dtype == jnp.float32
    cosine = np.sum(np.asarray(got) * np.asarray(encode(wide, params, *inputs)), axis=1)
    assert cosine.min() > 0.995
    traced = jax.make_jaxpr(lambda p: apply(narrow, p, *inputs))(narrow_params)
    dtypes = {}
    for equation in equations(traced.jaxpr):
        names = {str(variable.aval.dtype) for variable in equation.outvars}
        dtypes.setdefault(equation.primitive.name, set()).update(names)
    assert dtypes["exp"] == {"float32"}  # Softmax.
    assert dtypes["rsqrt"] == {"float32"}  # Norms.
    assert dtypes["reduce_sum"] <= {"float32", "int32"}
    summed = {"float32"} if narrow.pooling.token == "mean" else set()  # A token is only taken.
    assert dtypes["dot_general"] == {"bfloat16"} | summed


def test_latent_pooling_has_a_float32_softmax():
    pooling = PoolingConfig(token="latent")
    tower, params = load(
        "tiny_bert", param_dtype="bfloat16", compute_dtype="bfloat16", pooling=pooling
    )
    golden = arrays("tiny_bert")
    inputs = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
    params = {**params, "pooler": init_pooler(tower, jax.random.key(0))}
    traced = jax.make_jaxpr(lambda p: apply(tower, p, *inputs))(params)
    softmax = {
        str(variable.aval.dtype)
        for equation in equations(traced.jaxpr)
        if equation.primitive.name == "exp"
        for variable in equation.outvars
    }
    assert softmax == {"float32"}


def test_padding_beyond_the_positions_of_a_bert_changes_nothing():
    """Rows are padded to a multiple of 8, which its positions need not be."""
    tower, params = load("tiny_bert")
    assert isinstance(tower.shape, BertShape)
    limit = tower.shape.max_positions
    tokens = np.full((1, limit + 3), 7, np.int32)
    mask = np.arange(limit + 3)[None] < limit
    got = encode(tower, params, jnp.asarray(tokens), jnp.asarray(mask))
    expected = encode(tower, params, jnp.asarray(tokens[:, :limit]), jnp.asarray(mask[:, :limit]))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_random_base_needs_no_files():
    config = TowerConfig(base="random", param_dtype="bfloat16")
    tower = build_tower(config)
    assert isinstance(tower.shape, MistralShape)
    params = load_params(config, tower)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def test_mistral_7b_has_its_parameters():
    pooling = PoolingConfig(token="last", layers="all", attention="causal")
    tower = TextTower(MISTRAL_7B, pooling, "bfloat16", "full", "xla")
    assert trees.count(param_shapes(tower)) == 7_110_660_096


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": PoolingConfig(attention="causal")}, "is a BERT encoder"),
        ({"pooling": PoolingConfig(layers=(1, 4))}, r"layers \(1, 4\) is beyond the 3 blocks"),
        ({"limits": TokenLimits(job=41)}, "limits.job 41 is above the 40 positions"),
    ],
)
def test_a_choice_that_does_not_fit_the_base(changes, message):
    with pytest.raises(InputError, match=message):
        load("tiny_bert", **{"limits": TokenLimits(job=9, profile=9, resume=9, other=9)} | changes)


def test_first_under_causal_is_refused():
    message = "gives every text the same vector"
    with pytest.raises(ValueError, match=message):
        PoolingConfig(token="first", attention="causal")
    with pytest.raises(InputError, match=message):  # Causal by the family's default.
        build_tower(TowerConfig(base="random", pooling=PoolingConfig(token="first")))


def test_read_shape_of_bert():
    shape = read_shape(FOLDER / "tiny_bert")
    assert isinstance(shape, BertShape)
    assert (shape.width, shape.num_layers, shape.activation) == (16, 3, "gelu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json is missing, needed a Hugging Face model folder"),
        ("{", "config.json is not JSON"),
        (
            '{"model_type": "gpt2"}',
            "model_type is 'gpt2', needed one of mistral, llama, qwen2, qwen3, bert, t5",
        ),
        ("[]", "model_type is None"),
        ('{"model_type": "bert", "vocab_size": "x"}', "vocab_size is 'x', needed a positive"),
        ('{"model_type": "bert", "is_decoder": true}', "is_decoder is True, needed False"),
        ('{"model_type": "bert", "hidden_act": "tanh"}', "hidden_act is 'tanh', needed gelu"),
        (
            '{"model_type": "t5", "feed_forward_proj": "relu"}',
            "feed_forward_proj is 'relu', needed 'gated-gelu'",
        ),
        ('{"model_type": "mistral", "hidden_act": "relu"}', "hidden_act is 'relu', needed 'silu'"),
    ],
)
def test_configs_that_cannot_be_computed(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_shape(tmp_path)


def test_without_its_prompt_a_mean_is_over_the_other_tokens():
    golden = arrays("tiny_bert")
    pooling = PoolingConfig(token="mean", layers="last", exclude_prompt=True)
    tower, params = load("tiny_bert", pooling=pooling)
    texts = rows_of(golden["tokens"], golden["mask"])
    skipped = jnp.array([[4], [2], [9]])  # The third text has one token, hence counts whole.
    got = jax.jit(lambda p, t: tower.apply({"params": p}, t))(
        params, texts._replace(skipped=skipped)
    )
    expected = []
    for text, real in enumerate(golden["mask"]):
        first = int(skipped[text, 0]) if skipped[text, 0] < real.sum() else 0
        vector = golden["final"][text, first : int(real.sum())].mean(axis=0)
        expected.append(vector / np.linalg.norm(vector))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    with pytest.raises(ValueError, match="do not say where prompts end"):
        tower.apply({"params": params}, texts)
