"""Texts encoded inside the graph's step: batches, values and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.graph.decoders import DecoderConfig
from star_jax.graph.match import MatchConfig
from star_jax.graph.model import ROLES
from star_jax.pipeline.graph_streams import stacked
from star_jax.pipeline.graph_text import (
    TREE,
    GraphTextConfig,
    joined,
    with_text,
    with_vectors,
)
from star_jax.pipeline.graph_tokens import TokenBatches, count_texts
from star_jax.pipeline.text_records import TextRecords
from star_jax.text.bi_encoder import encode
from tests.pipeline import graph_market, text_in_graph
from tests.pipeline.text_in_graph import KEY, training

NARROW = dataclasses.replace(  # Fewer operations compile sooner.
    text_in_graph.config().model,
    decoder=DecoderConfig(hidden_size=8, dropout=0.0, match=MatchConfig(enabled=False)),
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    market = graph_market.write(tmp_path_factory.mktemp("market"))
    return text_in_graph.write(market, tmp_path_factory.mktemp("text") / "run")


def tables(batch):
    """(Node type, its table) of every subgraph with texts."""
    for pairs in batch.tasks.values():
        for role in ROLES:
            for name in ("member", "job"):
                if name in getattr(pairs, role).nodes:
                    yield name, getattr(pairs, role).nodes[name]


def graph_gradient(parts, params, batch):
    """Loss of the graph model alone, and its gradient with respect to parameters and vectors."""

    def loss(params, vectors, batch):
        whole = with_vectors(batch, vectors) if batch.texts is not None else batch
        return parts.loss(params, parts.statistics, {}, whole, KEY)[0]

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*params, batch)


def test_a_frozen_encoder_gives_what_its_exported_vectors_give(workdir):
    frozen = training(workdir, GraphTextConfig(mode="frozen"), tasks=("apply",))
    plain = training(workdir, None, tasks=("apply",))
    batch = frozen.batch()
    assert batch.texts.trained is None
    loss = with_text(frozen.loss, frozen.text)
    step = jax.jit(
        jax.value_and_grad(lambda p, b, f: loss(p, frozen.statistics, f, b, KEY), has_aux=True)
    )
    (value, _), gradient = step(frozen.params, batch, frozen.text.frozen)
    no_vectors = jnp.zeros(())
    expected = graph_gradient(plain, (plain.params, no_vectors), plain.batch())
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradient,
        expected[1][0],
    )


@functools.partial(jax.jit, static_argnums=0)
def pull_back(model, trainable, frozen, tokens, cotangent):
    """Gradient of one text's vector, times what stands before it."""
    _, back = jax.vjp(lambda t: encode(model, {**frozen, **t}, tokens, None)[0], trainable)
    return back(cotangent)[0]


def without_dropout(text):
    """The adapters draw nothing."""
    if text.model.lora is None:
        return text
    lora = dataclasses.replace(text.model.lora, dropout=0.0)
    return dataclasses.replace(text, model=dataclasses.replace(text.model, lora=lora))


def one_by_one(text, trained, of_vectors):
    """The encoder's gradient, summed over texts that are encoded alone; and their number."""
    total, count = jax.tree.map(jnp.zeros_like, text.trainable), 0
    for place in np.argwhere(trained.lengths[:, :, 0] > 0):
        one = jax.tree.map(lambda array, at=tuple(place): jnp.asarray(array[at])[None], trained)
        length = -(-int(one.lengths[0, 0]) // 8) * 8
        one = one._replace(tokens=one.tokens[:, :length])
        cotangent = of_vectors[tuple(place)]
        found = pull_back(text.model, text.trainable, text.frozen, one, cotangent)
        total, count = jax.tree.map(jnp.add, total, found), count + 1
    return total, count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "shards", "lm_train_nodes", "chunk_rows"),
    [("lora", 2, 12, 5), ("full", 1, None, 7), ("full", 1, 4, 128)],
    ids=["chunks of 5 and 6", "chunks of 7", "one chunk"],
)
def test_gradients_are_those_of_one_text_after_the_other(
    workdir, mode, shards, lm_train_nodes, chunk_rows
):
    config = GraphTextConfig(mode=mode, lm_train_nodes=lm_train_nodes, chunk_rows=chunk_rows)
    parts = training(workdir, config, shards, tasks=("apply",), model=NARROW)
    text, batch = without_dropout(parts.text), parts.batch()
    loss = with_text(parts.loss, text)
    step = jax.jit(jax.grad(lambda p, b, f: loss(p, parts.statistics, f, b, KEY)[0]))
    gradient = step(joined(parts.params, text.trainable), batch, text.frozen)
    vectors = text.vectors(text.trainable, text.frozen, batch.texts, None)
    _, (of_graph, of_vectors) = graph_gradient(parts, (parts.params, vectors), batch)
    expected, count = one_by_one(text, batch.texts.trained, of_vectors)
    num_texts = sum(int((t.lengths > 0).sum()) for t in batch.texts if t is not None)
    assert num_texts > 20
    assert count == (lm_train_nodes or num_texts)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert largest > 1e-4
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4 * largest)
    jax.tree.map(compare, gradient.pop(TREE), expected)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), gradient, of_graph
    )


def test_every_text_stands_once_where_its_tables_say(workdir):
    shards = 2
    config = GraphTextConfig(mode="full", lm_train_nodes=10)
    parts = training(workdir, config, shards)
    (make,) = parts.makers  # Before there are tokens.
    records = TextRecords(workdir / "text_tokens")
    batches = TokenBatches(make, records, num_lengths=2, trained=10, seed=0)
    chosen = []
    for step in (0, 3):
        batch = batches(step)
        trained, read = batch.texts
        assert trained.tokens.shape[:2] == (shards, 5)
        for shard in range(shards):
            rows = [
                (tokens[:length], skipped, kind)
                for table in (trained, read)
                for tokens, (length,), (skipped,), (kind,) in zip(
                    *(array[shard] for array in table), strict=True
                )
            ]
            met = set()
            for (name, numbers), (_, found) in zip(tables(make(step)), tables(batch), strict=True):
                real = int(numbers.text_row[shard].max()) + 1
                assert (found.texts[shard, real:] == -1).all()
                for number, row in zip(
                    numbers.texts[shard, :real, 0], found.texts[shard, :real, 0], strict=True
                ):
                    record = int(records.of(name, np.array([number], np.int32))[0])
                    (ids,) = records.read([record])
                    assert rows[row][0].tolist() == ids.tolist()
                    assert rows[row][1:] == (records.prompts[record], records.kinds[record])
                    met.add(int(row))
            assert met == {i for i, (ids, *_) in enumerate(rows) if len(ids)} == {*range(len(met))}
        longest = max(int(table.lengths.max()) for table in batch.texts)
        smaller = [length for length in batches.sizes.lengths if length < trained.tokens.shape[2]]
        assert max(smaller, default=0) < longest <= trained.tokens.shape[2]
        chosen.append(trained.tokens.tolist())
        jax.tree.map(np.testing.assert_array_equal, batch, batches(step))
        real = sum(int(table.lengths.sum()) for table in batch.texts)
        figures = count_texts(batch)
        assert figures["text_tokens"] == real
        assert figures["text_fill"] == real / sum(table.tokens.size for table in batch.texts)
    assert chosen[0] != chosen[1]
    two = stacked(batches.alike, 2)(1)
    assert two.mask.shape[:2] == (2, shards)
    for number, step in enumerate((2, 3)):
        alone = batches(step)
        np.testing.assert_array_equal(two.mask[number], alone.mask)
        for (_, one), (_, both) in zip(tables(alone), tables(two), strict=True):
            np.testing.assert_array_equal(both.texts[number], one.texts)
        tokens, length = alone.texts.trained.tokens, alone.texts.trained.tokens.shape[2]
        np.testing.assert_array_equal(two.texts.trained.tokens[number][..., :length], tokens)
