"""The real all-MiniLM-L6-v2 against sentence-transformers; skipped where it cannot be had."""

import jax
import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.text import hub
from star_jax.text.families import TokenLimits
from star_jax.text.tower import TowerConfig, build_tokenizer, build_tower, load_params
from tests.text.fixtures import arrays, pad, rows_of, texts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def minilm():
    try:
        return hub.resolve("minilm")
    except InputError as error:
        pytest.skip(str(error))


def config(limit):
    return TowerConfig(
        base="minilm", limits=TokenLimits(job=limit, profile=limit, resume=limit, other=limit)
    )


def test_ids_are_those_of_transformers():
    written = texts()["texts"] + texts()["literals"]
    rows = build_tokenizer(config(512)).encode(written, "job")
    for i, row in enumerate(rows):
        assert row.tolist() == arrays("minilm")[f"ids_{i}"].tolist()
    assert len(rows[6]) == 300  # The file's own limit is 128.


@pytest.mark.parametrize("limit", [256, 512])
def test_sentence_embeddings_are_those_of_sentence_transformers(limit):
    tower = build_tower(config(limit))
    params = load_params(config(limit), tower)
    tokens, mask = pad(build_tokenizer(config(limit)).encode(texts()["texts"], "job"))
    encode = jax.jit(lambda p, t: tower.apply({"params": p}, t))
    got = encode(params, rows_of(tokens, mask))
    np.testing.assert_allclose(got, arrays("minilm")[f"vectors_{limit}"], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-6)
