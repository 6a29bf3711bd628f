"""Adapters: what they compute, what they train, what they cost."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.shapes import MISTRAL_7B
from star_jax import trees
from star_jax.config import InputError
from star_jax.text.bi_encoder import BiEncoder, encode
from star_jax.text.families import BertShape, MistralShape, TokenLimits
from star_jax.text.linears import Linears
from star_jax.text.lora import LoraConfig, adapted, init_lora, merge_lora, of_tower
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.packing import Tokens
from star_jax.text.pooling import PoolingConfig
from star_jax.text.prompts import KINDS
from star_jax.text.scorer import PairScorer, ScorerConfig
from star_jax.text.tower import TextTower, TowerConfig, build_tower, load_params, param_shapes
from tests.text.fixtures import FAMILIES, FOLDER, arrays, rows_of

ALL = r".*/\w+_proj"
LIMITS = TokenLimits(job=40, profile=40, resume=40, other=40)

run = jax.jit(encode, static_argnums=0)


def make(name, config, **changes):
    tower = TowerConfig(base=str(FOLDER / name), limits=LIMITS, **changes)
    model = wrap(build_tower(tower), config)
    params = load_params(tower, model.tower)
    lora = init_lora(jax.random.key(0), params, config)
    golden = arrays(name)
    return model, params, lora, rows_of(golden["tokens"], golden["mask"])


def wrap(tower, config):
    return BiEncoder(
        tower=tower, scorer=PairScorer(ScorerConfig()), lora=config, objective=ObjectiveConfig()
    )


def trained(lora):
    """Adapters as after training: B is no longer zero."""
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), lora)


def vectors(model, params, lora, texts, key=None):
    return np.asarray(run(model, {"params": params, "lora": lora}, texts, key))


@pytest.mark.parametrize("name", FAMILIES)
def test_step_zero_is_the_base_and_merged_is_unmerged(name):
    config = LoraConfig(rank=3, alpha=6.0, targets=ALL)
    model, params, lora, texts = make(name, config)
    base = jax.jit(lambda p, t: model.tower.apply({"params": p}, t))
    np.testing.assert_allclose(vectors(model, params, lora, texts), base(params, texts), atol=5e-7)
    lora = trained(lora)
    adapted = vectors(model, params, lora, texts)
    merged = merge_lora(params, lora, config)
    assert np.abs(adapted - base(params, texts)).max() > 0.01
    np.testing.assert_allclose(adapted, base(merged, texts), atol=1e-5)
    # By hand: one kernel of one block.
    adapter = lora["encoder"]["layers"]["mlp_out"]["down_proj"]
    by_hand = params["encoder"]["layers"]["mlp_out"]["down_proj"]["kernel"][1] + 6.0 / 3 * (
        np.asarray(adapter["a"][1]) @ np.asarray(adapter["b"][1])
    )
    got = merged["encoder"]["layers"]["mlp_out"]["down_proj"]["kernel"][1]
    np.testing.assert_allclose(got, by_hand, rtol=1e-6)


def test_some_maps_of_a_group_have_adapters_and_others_not():
    config = LoraConfig(rank=2, targets=r".*/(q_proj|v_proj|gate_proj)")
    model, params, lora, texts = make("tiny_mistral", config)
    lora = trained(lora)
    base = jax.jit(lambda p, t: model.tower.apply({"params": p}, t))
    expected = base(merge_lora(params, lora, config), texts)
    np.testing.assert_allclose(vectors(model, params, lora, texts), expected, atol=1e-5)


def test_dropout_acts_with_a_key_only_and_scales():
    config = LoraConfig(rank=2, dropout=0.5)
    model, params, lora, texts = make("tiny_bert", config)
    lora = trained(lora)
    still = vectors(model, params, lora, texts)
    np.testing.assert_array_equal(still, vectors(model, params, lora, texts))
    one, same, other = (vectors(model, params, lora, texts, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-4
    assert np.abs(one - still).max() > 1e-4
    # Only adapters' inputs are dropped: without adapters a key changes nothing.
    fresh = init_lora(jax.random.key(0), params, config)
    np.testing.assert_array_equal(
        vectors(model, params, fresh, texts, jax.random.key(1)),
        vectors(model, params, fresh, texts),
    )


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_keeps_the_mean_of_what_adapters_read(dropout):
    width = 1 << 16
    linears = Linears((("q_proj", 2),), bias=False, dtype=jnp.float32)
    config = LoraConfig(rank=1, alpha=1.0, dropout=dropout)
    variables = {
        "params": {"q_proj": {"kernel": jnp.zeros((width, 2))}},
        "lora": {"q_proj": {"a": jnp.full((width, 1), 1.0 / width), "b": jnp.ones((1, 2))}},
    }

    @jax.jit
    def outputs(key) -> Any:
        with adapted(config):
            return linears.apply(variables, jnp.ones((1, 1, width)), rngs={"dropout": key})

    (got,) = outputs(jax.random.key(0))
    np.testing.assert_allclose(got, 1.0, atol=0.02)
    assert abs(got[0, 0, 0] - 1.0) > 1e-6  # Something was dropped.


def test_masters_are_float32_under_bfloat16():
    config = LoraConfig(rank=2)
    model, params, lora, texts = make(
        "tiny_mistral", config, param_dtype="bfloat16", compute_dtype="bfloat16"
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(lora)} == {jnp.dtype("float32")}
    loss = jax.jit(
        jax.value_and_grad(
            lambda a: jnp.sum(jnp.sin(encode(model, {"params": params, "lora": a}, texts, None)))
        )
    )
    _, grads = loss(trained(lora))
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (r".*/(q_proj|v_proj)", 3_407_872),
        (LoraConfig().targets, 4_718_592),
        (ALL, 20_971_520),
    ],
)
def test_adapters_of_mistral_7b_have_their_sizes(targets, count):
    pooling = PoolingConfig(token="last", layers="all", attention="causal")
    tower = TextTower(MISTRAL_7B, pooling, "bfloat16", "full", "xla")
    config = LoraConfig(targets=targets)
    lora = jax.eval_shape(lambda: init_lora(jax.random.key(0), param_shapes(tower), config))
    assert trees.count(lora) == count


def test_a_starts_as_he_and_b_at_zero():
    _, _, lora, _ = make("tiny_mistral", LoraConfig(rank=64, targets=ALL))
    for path, leaf in ((path, trees.select(lora, path)) for path in trees.paths(lora)):
        (array,) = jax.tree.leaves(leaf)
        if path.endswith("/b"):
            np.testing.assert_array_equal(array, 0.0)
        else:
            expected = (2.0 / array.shape[1]) ** 0.5
            np.testing.assert_allclose(np.std(array), expected, rtol=0.1)


SHAPES = {
    "mistral": (
        MistralShape(
            vocab_size=8,
            width=256,
            num_layers=1,
            num_heads=4,
            num_kv_heads=2,
            head_width=64,
            mlp_width=896,
            max_positions=64,
            norm_epsilon=1e-5,
            rope_theta=10_000.0,
            sliding_window=None,
            eos_id=2,
        ),
        PoolingConfig(token="last", layers="last", attention="causal"),
    ),
    "bert": (
        BertShape(
            vocab_size=8,
            width=256,
            num_layers=1,
            num_heads=4,
            mlp_width=1024,
            max_positions=64,
            num_token_types=2,
            norm_epsilon=1e-12,
            activation="relu",  # The compiler counts some 30 operations for one erf.
        ),
        PoolingConfig(token="mean", layers="last", attention="bidirectional"),
    ),
}


@pytest.mark.parametrize(
    ("family", "remat", "limit"),
    [
        ("mistral", "none", 4.3),
        ("mistral", "full", 5.8),
        ("bert", "none", 4.3),
    ],
)
def test_no_gradient_of_a_frozen_weight_is_computed(family, remat, limit):
    """The compiler counts the body of a scan once, hence one block: 4 N a token, against 6 N."""
    shape, pooling = SHAPES[family]
    model = wrap(TextTower(shape, pooling, "float32", remat, "xla"), LoraConfig())
    shapes = param_shapes(model.tower)
    texts = Tokens(jnp.zeros((8, 16), jnp.int32), jnp.full((8, 1), 16))

    def flops(*trainable):
        def loss(train, rest):
            z = encode(model, {**train, **rest}, texts, None)
            return jnp.sum(jnp.sin(z))

        lora = jax.eval_shape(lambda: init_lora(jax.random.key(0), shapes, LoraConfig()))
        variables = {"params": shapes, "lora": lora}
        train = {name: variables[name] for name in trainable}
        rest = {name: tree for name, tree in variables.items() if name not in trainable}
        cost: Any = jax.jit(jax.grad(loss)).lower(train, rest).compile().cost_analysis()
        return cost["flops"]

    kernels = trees.count(trees.select(shapes, r".*/kernel"))
    per_token = flops("lora") / (kernels * texts.tokens.size)
    assert 3.0 < per_token < limit
    assert flops("params", "lora") > (per_token + 1.0) * kernels * texts.tokens.size


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank 0 is below 1"),
        ({"alpha": 0.0}, "alpha 0.0 must be > 0"),
        ({"dropout": 1.0}, r"dropout 1.0 is outside \[0, 1\)"),
        ({"targets": "("}, r"targets '\(' is no pattern"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**values)


def test_targets_that_match_nothing():
    with pytest.raises(InputError, match=r"'query' matches none of encoder/layers/attention_in/k_"):
        make("tiny_bert", LoraConfig(targets="query"))


TOWERS = LoraConfig(rank=2, alpha=6.0, targets=ALL, tower_adapters=True)


@pytest.mark.parametrize("name", ["tiny_mistral", "tiny_bert", "tiny_t5"])
def test_each_text_is_read_by_the_adapters_of_its_kind(name):
    model, params, lora, texts = make(name, TOWERS)
    shared = trees.count(
        init_lora(jax.random.key(0), params, replace(TOWERS, tower_adapters=False))
    )
    assert trees.count(lora) == 3 * shared
    num_texts = texts.tokens.shape[0]
    kinds = np.arange(num_texts) % 4
    texts = texts._replace(kind=jnp.asarray(np.where(kinds < 3, kinds, -1))[:, None])
    base = np.asarray(jax.jit(lambda t: model.tower.apply({"params": params}, t))(texts))
    np.testing.assert_allclose(vectors(model, params, lora, texts), base, atol=1e-6)
    lora = trained(lora)
    got = vectors(model, params, lora, texts)
    for number, kind in enumerate(KINDS):
        own, config = of_tower(lora, TOWERS, kind)
        alone = vectors(wrap(model.tower, config), params, own, texts)
        np.testing.assert_allclose(got[kinds == number], alone[kinds == number], atol=1e-6)
        assert np.abs(got - alone)[kinds != number].max() > 0.01
    np.testing.assert_allclose(got[kinds == 3], base[kinds == 3], atol=1e-6)


def test_kinds_may_share_a_row():
    model, params, lora, texts = make("tiny_mistral", TOWERS)
    lora = trained(lora)
    lengths = np.asarray(texts.lengths[:3, 0])
    kinds = np.array([2, 0, 1])
    texts = Tokens(texts.tokens[:3], texts.lengths[:3], kind=jnp.asarray(kinds)[:, None])
    row = np.concatenate([np.asarray(texts.tokens)[i, :n] for i, n in enumerate(lengths)])
    packed = Tokens(
        jnp.asarray(np.pad(row, (0, 5)))[None],
        jnp.asarray(lengths)[None],
        kind=jnp.asarray(kinds)[None],
    )
    np.testing.assert_allclose(
        vectors(model, params, lora, packed), vectors(model, params, lora, texts), atol=1e-5
    )


def test_a_kind_trains_its_own_adapters_alone():
    model, params, lora, texts = make("tiny_mistral", TOWERS)
    texts = texts._replace(kind=jnp.ones_like(texts.lengths))
    lora = trained(lora)

    def loss(lora):
        return jnp.sum(encode(model, {"params": params, "lora": lora}, texts, None)[:, 0])

    grads = jax.jit(jax.grad(loss))(lora)
    for kind in KINDS:
        own, _ = of_tower(grads, TOWERS, kind)
        assert any(np.any(leaf) for leaf in jax.tree.leaves(own)) == (kind == "profile")


def test_adapters_of_towers_need_kinds():
    model, params, lora, texts = make("tiny_bert", TOWERS)
    with pytest.raises(ValueError, match="texts without kind, needed the number"):
        vectors(model, params, lora, texts)
    with pytest.raises(ValueError, match="tower_adapters, needed the adapters of one tower"):
        merge_lora(params, lora, TOWERS)
    with pytest.raises(ValueError, match="needed where every tower has its own"), adapted(TOWERS):
        pass
