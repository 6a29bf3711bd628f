"""The real all-MiniLM-L6-v2 against sentence-transformers; in CI it must be there."""

import os

import jax
import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.text import hub
from star_jax.text.families import TokenLimits
from star_jax.text.tower import TowerConfig, build_tokenizer, build_tower, load_params
from tests.text.fixtures import arrays, pad, rows_of, texts


@pytest.fixture(scope="module")
def minilm():
    try:
        return hub.resolve("minilm")
    except InputError as error:
        cannot_run(str(error))


def cannot_run(why):
    """A skipped test in CI would be a green run that has shown nothing."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_weights_that_cannot_be_had_fail_in_ci_alone(monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no weights"):
        cannot_run("no weights")


def config(limit):
    return TowerConfig(
        base="minilm", limits=TokenLimits(job=limit, profile=limit, resume=limit, other=limit)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("minilm")
def test_ids_are_those_of_transformers():
    written = texts()["texts"] + texts()["literals"]
    rows = build_tokenizer(config(512)).encode(written, "job")
    for i, row in enumerate(rows):
        assert row.tolist() == arrays("minilm")[f"ids_{i}"].tolist()
    assert len(rows[6]) == 300  # The file's own limit is 128.


@pytest.mark.slow
@pytest.mark.usefixtures("minilm")
@pytest.mark.parametrize("limit", [256, 512])
def test_sentence_embeddings_are_those_of_sentence_transformers(limit):
    tower = build_tower(config(limit))
    params = load_params(config(limit), tower)
    tokens, mask = pad(build_tokenizer(config(limit)).encode(texts()["texts"], "job"))
    encode = jax.jit(lambda p, t: tower.apply({"params": p}, t))
    got = encode(params, rows_of(tokens, mask))
    np.testing.assert_allclose(got, arrays("minilm")[f"vectors_{limit}"], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-6)
