"""Scorer and loss of the bi-encoder against numpy, and what each mode trains."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.losses.contrastive import Component
from star_jax.losses.semi_hard import SemiHardConfig
from star_jax.text.bi_encoder import (
    TextBatch,
    bi_encoder_loss,
    build_bi_encoder,
    encode,
    encode_batch,
    init_variables,
    score,
    trainable_split,
)
from star_jax.text.lora import LoraConfig
from star_jax.text.objective import ObjectiveConfig, cut
from star_jax.text.packing import Tokens
from star_jax.text.scorer import PairScorer, ScorerConfig
from star_jax.text.tower import TowerConfig
from tests.losses.test_semi_hard import by_definition, host

TOWER = TowerConfig(base="random")
OBJECTIVE = ObjectiveConfig(
    contrastive_weight=0.5,
    positive_weight=2.0,
    semi_hard=SemiHardConfig(temperature=0.2, fallback="hardest"),
)
E = 32

loss = jax.jit(bi_encoder_loss, static_argnums=2)


LORA = LoraConfig(rank=2)


def make(lora: LoraConfig | None = LORA, tower=TOWER, objective=OBJECTIVE):
    model = build_bi_encoder(tower, ScorerConfig(hidden=(8,)), objective, lora)
    variables = init_variables(model, tower, jax.random.key(0))
    if lora is not None:  # As after a step.
        variables["lora"] = jax.tree.map(lambda leaf: leaf + 0.02, variables["lora"])
    return model, variables


def tokens(rng, num_texts, length):
    lengths = rng.integers(2, length + 1, num_texts)
    ids = rng.integers(3, 259, (num_texts, length)).astype(np.int32)
    return host(Tokens, ids, lengths[:, None].astype(np.int32))


def make_batch():
    rng = np.random.default_rng(0)
    return host(
        TextBatch,
        texts=(tokens(rng, 5, 7), tokens(rng, 4, 11)),  # Rows 0 to 4, and 5 to 8.
        document=np.array([0, 1, 5, 6, 0, 1], np.int32),
        profile=np.array([2, 2, 3, 3, 7, -1], np.int32),
        resume=np.array([4, 4, -1, -1, 8, 8], np.int32),
        label=np.array([1, 0, 1, 0, 1, 1], np.float32),
        mask=np.array([True, True, True, True, True, True]),
        sender=np.array([5, 5, 6, 6, 7, 8], np.int32),
        receiver=np.array([0, 1, 2, 3, 0, 1], np.int32),
    )


def leaky(x):
    return np.where(x > 0, x, 0.01 * x)


def logits_by_definition(params, document, profile, resume, has_profile, has_resume):
    x = np.concatenate(
        [
            document * profile * has_profile[:, None] * math.sqrt(E),
            document * resume * has_resume[:, None] * math.sqrt(E),
            has_profile[:, None],
            has_resume[:, None],
        ],
        axis=1,
    ).astype(np.float64)
    params = jax.tree.map(np.asarray, params)
    for name in sorted(set(params) - {"logit"}):
        x = leaky(x @ params[name]["kernel"] + params[name]["bias"])
    return (x @ params["logit"]["kernel"] + params["logit"]["bias"])[:, 0]


@pytest.mark.parametrize("hidden", [(), (8,), (8, 4)])
def test_scorer_is_its_definition(hidden):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3, 5, E)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    has_resume = np.array([True, True, False, True, False])
    has_profile = np.array([True, False, True, True, False])
    scorer = PairScorer(ScorerConfig(hidden=hidden))
    document, profile, resume = vectors
    inputs = (document, profile, resume, has_resume, has_profile)
    params = jax.jit(scorer.init)(jax.random.key(0), *inputs)["params"]
    got = jax.jit(scorer.apply)({"params": params}, *inputs)
    expected = logits_by_definition(params, document, profile, resume, has_profile, has_resume)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    sizes = [2 * E + 2, *hidden, 1]
    count = sum(m * n + n for m, n in itertools.pairwise(sizes))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_loss_is_its_definition():
    model, variables = make()
    batch = make_batch()
    value, metrics = loss(variables, batch, model, None)
    run = jax.jit(encode, static_argnums=0)
    vectors = np.concatenate([run(model, variables, table, None) for table in batch.texts])
    document, profile, resume = (
        np.where(row[:, None] >= 0, vectors[row], 0.0)
        for row in (batch.document, batch.profile, batch.resume)
    )
    has_profile, has_resume = batch.profile >= 0, batch.resume >= 0
    logits = logits_by_definition(
        variables["scorer"], document, profile, resume, has_profile, has_resume
    )
    weight = np.where(batch.label == 1, 2.0, 1.0)
    sign = np.where(batch.label == 1, 1.0, -1.0)
    bce = np.average(np.log1p(np.exp(-sign * logits)), weights=weight)
    contrastive, num_anchors = by_definition(
        host(Component, document, np.ones(6, bool)),
        [host(Component, profile, has_profile), host(Component, resume, has_resume)],
        batch,
        OBJECTIVE.semi_hard,
        num_rows=6,
    )
    assert num_anchors >= 3
    assert metrics["semihard_anchors"] == num_anchors
    assert metrics["num_pairs"] == 6
    np.testing.assert_allclose(metrics["bce"], bce, rtol=1e-5)
    np.testing.assert_allclose(metrics["semihard"], contrastive, rtol=1e-4)
    np.testing.assert_allclose(value, bce + 0.5 * contrastive, rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], np.mean((logits > 0) == (batch.label == 1)))
    assert metrics["loss"] == value


def test_padding_rows_and_texts_change_nothing():
    model, variables = make()
    batch = make_batch()

    def more(texts, num_rows):
        size = ((0, num_rows), (0, 3))
        tokens = np.pad(texts.tokens, size, constant_values=77)
        return host(Tokens, tokens, np.pad(texts.lengths, ((0, num_rows), (0, 0))))

    def rows(array, value):
        return np.concatenate([array, np.full(2, value, array.dtype)])

    padded = host(
        TextBatch,
        texts=(more(batch.texts[0], 0), more(batch.texts[1], 2)),
        document=rows(batch.document, 1),
        profile=rows(batch.profile, 2),
        resume=rows(batch.resume, 0),
        label=rows(batch.label, 1.0),
        mask=rows(batch.mask, False),
        sender=rows(batch.sender, 99),
        receiver=rows(batch.receiver, 98),
    )
    trainable, frozen = trainable_split(variables, "lora")
    step = jax.jit(
        jax.value_and_grad(
            lambda t, f, b: bi_encoder_loss({**f, **t}, b, model, None), has_aux=True
        )
    )
    (expected, metrics), grads = step(trainable, frozen, batch)
    (got, padded_metrics), padded_grads = step(trainable, frozen, padded)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    for name, value in metrics.items():
        np.testing.assert_allclose(padded_metrics[name], value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), padded_grads, grads
    )
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["lora"]))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["scorer"]))


def test_tables_are_one_list_of_texts():
    model, variables = make()
    batch = make_batch()
    np.testing.assert_allclose(
        loss(variables, one_table(batch), model, None)[0],
        loss(variables, batch, model, None)[0],
        rtol=1e-5,
    )


def test_known_positives_are_no_negatives():
    model, variables = make()
    batch = make_batch()
    nobody_left = batch._replace(known_positive=np.ones((6, 6), bool))
    metrics = loss(variables, nobody_left, model, None)[1]
    assert metrics["semihard_anchors"] == 0
    assert metrics["loss"] == metrics["bce"]


def test_without_contrastive_term_there_is_only_bce():
    model, variables = make(objective=ObjectiveConfig(contrastive="none"))
    value, metrics = loss(variables, make_batch(), model, None)
    assert value == metrics["bce"]
    assert "semihard" not in metrics


def test_a_key_switches_dropout_on_and_tables_draw_apart():
    model, variables = make(LoraConfig(rank=2, dropout=0.5))
    batch = make_batch()
    same = batch._replace(
        texts=(batch.texts[0], batch.texts[0]),
        document=np.arange(5, dtype=np.int32),
        profile=np.arange(5, 10, dtype=np.int32),
    )
    run = jax.jit(encode_batch, static_argnums=0)
    vectors = run(model, variables, same, None)
    np.testing.assert_array_equal(vectors.document.vector, vectors.profile.vector)
    vectors = run(model, variables, same, jax.random.key(1))
    assert np.abs(vectors.document.vector - vectors.profile.vector).max() > 1e-4
    again = run(model, variables, same, jax.random.key(1))
    np.testing.assert_array_equal(vectors.document.vector, again.document.vector)


def test_scores_are_logits_of_encoded_pairs():
    model, variables = make()
    batch = make_batch()
    vectors = jax.jit(encode_batch, static_argnums=0)(model, variables, batch, None)
    assert not vectors.profile.present[5]
    np.testing.assert_array_equal(vectors.profile.vector[5], 0.0)
    logits = jax.jit(score, static_argnums=0)(model, variables, vectors)
    rows = (batch.label == 1) == (np.asarray(logits) > 0)
    metrics = loss(variables, batch, model, None)[1]
    np.testing.assert_allclose(metrics["accuracy"], rows.mean())


@pytest.mark.parametrize(
    ("mode", "names"),
    [("lora", {"lora", "scorer"}), ("full", {"params", "scorer"}), ("frozen", {"scorer"})],
)
def test_modes_train_their_collections_in_float32(mode, names):
    tower = dataclasses.replace(TOWER, param_dtype="bfloat16", compute_dtype="bfloat16")
    model, variables = make(LoraConfig(rank=2) if mode == "lora" else None, tower)
    trainable, frozen = trainable_split(variables, mode)
    assert set(trainable) == names
    assert set(trainable) | set(frozen) == set(variables)
    assert not set(trainable) & set(frozen)
    assert {leaf.dtype for leaf in jax.tree.leaves(trainable)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} <= {jnp.dtype("bfloat16")}
    batch = one_table(make_batch())
    grad = jax.jit(jax.grad(lambda t, f, b: bi_encoder_loss({**f, **t}, b, model, None)[0]))
    for name, tree in grad(trainable, frozen, batch).items():
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree)), name


def one_table(batch):
    """The same batch with all texts in one table."""
    first, second = batch.texts
    size = ((0, 0), (0, second.tokens.shape[1] - first.tokens.shape[1]))
    tokens = np.concatenate([np.pad(first.tokens, size), second.tokens])
    lengths = np.concatenate([first.lengths, second.lengths])
    return batch._replace(texts=(host(Tokens, tokens, lengths),))


@pytest.mark.parametrize(("mode", "lora"), [("lora", None), ("full", LoraConfig(rank=2))])
def test_modes_and_adapters_must_agree(mode, lora):
    _, variables = make(lora)
    with pytest.raises(ValueError, match=f"mode {mode} got variables params, scorer"):
        trainable_split(variables, mode)


@pytest.mark.parametrize("widths", [(64, 8), (16, 8)])
def test_widths_without_that_of_the_base(widths):
    with pytest.raises(InputError, match="the largest must be 32, the width of base"):
        make(objective=ObjectiveConfig(widths=widths))


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match=r"contrastive_weight -1.0 must be >= 0"):
        ObjectiveConfig(contrastive_weight=-1.0)
    with pytest.raises(ValueError, match=r"positive_weight 0.0 must be > 0"):
        ObjectiveConfig(positive_weight=0.0)


def test_wrong_widths_are_named():
    with pytest.raises(ValueError, match=r"hidden \(8, 0\) holds a width below 1"):
        ScorerConfig(hidden=(8, 0))


def features_by_definition(features, d, p, r, has_profile, has_resume):
    p, r = p * has_profile[:, None], r * has_resume[:, None]
    parts = {
        "product": [d * p, d * r],
        "request_product": [p * r],
        "vectors": [d, p, r],
        "difference": [abs(d - p) * has_profile[:, None], abs(d - r) * has_resume[:, None]],
    }
    return np.concatenate([part for name in features for part in parts[name]], axis=1)


@pytest.mark.parametrize("features", [("product", "request_product"), ("vectors", "difference")])
def test_scorer_features(features):
    rng = np.random.default_rng(1)
    d, p, r = rng.normal(size=(3, 4, E)).astype(np.float32) / 6
    has_profile = np.array([True, False, True, False])
    has_resume = np.array([True, True, False, False])
    scorer = PairScorer(ScorerConfig(hidden=(), features=features))
    inputs = (d, p, r, has_resume, has_profile)
    params = jax.jit(scorer.init)(jax.random.key(0), *inputs)["params"]
    x = features_by_definition(features, d, p, r, has_profile, has_resume) * math.sqrt(E)
    x = np.concatenate([x, has_profile[:, None], has_resume[:, None]], axis=1)
    expected = x @ np.asarray(params["logit"]["kernel"]) + np.asarray(params["logit"]["bias"])
    got = jax.jit(scorer.apply)({"params": params}, *inputs)
    np.testing.assert_allclose(got, expected[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 4)])
def test_a_fresh_head_scores_by_the_cosines(hidden):
    rng = np.random.default_rng(2)
    d, p, r = rng.normal(size=(3, 6, E)).astype(np.float32)
    d, p, r = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (d, p, r))
    has_profile = np.array([True, False, True, False, True, True])
    has_resume = np.array([True, True, False, False, True, True])
    scorer = PairScorer(ScorerConfig(hidden=hidden, features=("difference", "product")))
    inputs = (d, p, r, has_resume, has_profile)
    params = jax.jit(scorer.init)(jax.random.key(0), *inputs)
    expected = (d * p).sum(1) * has_profile + (d * r).sum(1) * has_resume
    assert (expected < 0).any()
    for _ in hidden:
        expected = leaky(expected)
    got = jax.jit(scorer.apply)(params, *inputs)
    np.testing.assert_allclose(got, 5 * expected, rtol=1e-4, atol=1e-6)


def test_widths_are_losses_of_cut_vectors():
    config = dataclasses.replace(OBJECTIVE, widths=(E, 8))
    model, variables = make(objective=config)
    full, _ = make()
    batch = make_batch()
    value, metrics = loss(variables, batch, model, None)
    whole, parts = loss(variables, batch, full, None)
    np.testing.assert_allclose(metrics[f"loss@{E}"], whole, rtol=1e-5)
    np.testing.assert_allclose(value, (metrics[f"loss@{E}"] + metrics["loss@8"]) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["bce"], parts["bce"], rtol=1e-5)
    vectors = jax.jit(encode_batch, static_argnums=0)(model, variables, batch, None)
    for component in jax.jit(cut, static_argnums=1)(vectors, 8):
        np.testing.assert_array_equal(component.vector[:, 8:], 0.0)
        norms = np.linalg.norm(component.vector, axis=1)
        np.testing.assert_allclose(norms, component.present, atol=1e-6)


@pytest.mark.parametrize("widths", [(0, 8), (8, 8)])
def test_widths_that_mean_nothing(widths):
    with pytest.raises(ValueError, match="needs different widths from 1 on"):
        ObjectiveConfig(widths=widths)
