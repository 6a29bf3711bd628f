"""`encode` by the conventions of sentence-transformers, against the model text by text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.embeddings.quantise import measure_ranges, quantise
from star_jax.pipeline.text_encoder import TextEncoder
from star_jax.text.bi_encoder import build_bi_encoder, encode
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.packing import Tokens
from star_jax.text.prompts import prompt
from star_jax.text.scorer import ScorerConfig
from star_jax.text.tower import TowerConfig, build_tokenizer, load_params

SENTENCES = ["nurse", "", "software engineer in london", "x y " * 30, "nurse"]
CONFIG = TowerConfig(base="random")


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.open("random", kinds=["skill"])


@pytest.fixture(scope="module")
def alone():
    """One text with its prompt, in a shape of its own."""
    model = build_bi_encoder(CONFIG, ScorerConfig(), ObjectiveConfig(), None)
    variables = {"params": load_params(CONFIG, model.tower)}
    run = jax.jit(lambda texts: encode(model, variables, texts, None))
    tokenizer = build_tokenizer(CONFIG)

    def vector(text, before=""):
        (ids,) = tokenizer.encode_after(before, [text], 1800, tokenizer.truncation["job"])
        padded = np.pad(ids, (0, 250 - len(ids)))[None]
        return np.asarray(run(Tokens(jnp.asarray(padded), jnp.full((1, 1), len(ids)))))[0]

    return vector


def test_rows_are_the_sentences_in_order(encoder, alone):
    vectors = encoder.encode(SENTENCES, batch_size=2)
    assert (vectors.shape, vectors.dtype) == ((5, encoder.embedding_size), np.float32)
    expected = [alone(text) for text in SENTENCES]
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    one = encoder.encode(SENTENCES[2])
    assert one.shape == (encoder.embedding_size,)
    np.testing.assert_allclose(one, expected[2], atol=2e-6)


def test_no_sentence_gives_no_row(encoder):
    assert encoder.encode([]).shape == (0, encoder.embedding_size)


def test_prompts_come_by_name_or_by_their_words(encoder, alone):
    job, profile = prompt("instruct-1", "job"), prompt("instruct-1", "profile")
    np.testing.assert_allclose(encoder.encode_document("nurse"), alone("nurse", job), atol=2e-6)
    np.testing.assert_allclose(encoder.encode_query("nurse"), alone("nurse", profile), atol=2e-6)
    np.testing.assert_allclose(
        encoder.encode_query("nurse", prompt="me: "), alone("nurse", "me: "), atol=2e-6
    )
    assert set(encoder.prompts) == {"job", "profile", "resume", "skill", "query", "document"}
    assert "skill" in encoder.prompts["skill"]


def test_a_kind_has_its_own_limit(encoder):
    long = "a" * 3000
    by_name = encoder.encode(long, prompt_name="profile")
    words = encoder.prompts["profile"]
    cut = long[: 1024 - 2 - len(words.encode())]
    np.testing.assert_array_equal(by_name, encoder.encode(cut, prompt=words))
    assert encoder.max_seq_length == 1800


def test_widths_and_norms(encoder):
    whole = encoder.encode("nurse")
    np.testing.assert_allclose(np.linalg.norm(whole), 1.0, rtol=1e-6)
    cut = encoder.encode("nurse", truncate_dim=8)
    np.testing.assert_array_equal(cut, whole[:8])
    unit = encoder.encode("nurse", truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(unit, whole[:8] / np.linalg.norm(whole[:8]), rtol=1e-6)
    assert isinstance(encoder.encode("nurse", convert_to_numpy=False), jax.Array)


@pytest.mark.parametrize("precision", ["int8", "ubinary"])
def test_narrow_vectors_are_those_of_all_rows_together(encoder, precision):
    whole = encoder.encode(SENTENCES)
    got = encoder.encode(SENTENCES, precision=precision)
    np.testing.assert_array_equal(got, quantise(whole, precision, measure_ranges(whole)))
    assert encoder.encode([], precision=precision).shape[0] == 0


def test_one_narrow_vector_needs_ranges(encoder):
    ranges = measure_ranges(encoder.encode(SENTENCES))
    got = encoder.encode("nurse", precision="int8", ranges=ranges)
    expected = quantise(encoder.encode("nurse")[None], "int8", ranges)
    np.testing.assert_array_equal(got, expected[0])
    with pytest.raises(ValueError, match="precision int8 of one vector needs ranges"):
        encoder.encode("nurse", precision="int8")


def test_what_is_wrong_is_named(encoder, tmp_path):
    for sentences, options, message in [
        ("x", {"prompt_name": "jop"}, "prompt_name 'jop' is unknown, needed one of job, profile"),
        ("x", {"prompt_name": "jop", "prompt": "a: "}, "prompt_name 'jop' is unknown"),
        ("x", {"truncate_dim": 33}, r"truncate_dim 33 is outside \[1, 32\]"),
        ("x", {"batch_size": 0}, "batch_size 0 must be >= 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            encoder.encode(sentences, **options)
    with pytest.raises(InputError, match="is no folder here"):
        TextEncoder.open(tmp_path / "nothing")


def test_lengths_share_a_few_compiled_shapes(encoder, monkeypatch):
    shapes = set()
    pad = TextEncoder._pad

    def noting(self, rows, batch_size):
        texts = pad(self, rows, batch_size)
        shapes.add(texts.tokens.shape)
        return texts._replace(lengths=texts.lengths[:0], tokens=texts.tokens[:0])

    monkeypatch.setattr(TextEncoder, "_pad", noting)
    monkeypatch.setattr(
        "star_jax.pipeline.text_encoder._encode", lambda *_: np.zeros((32, 32), np.float32)
    )
    for count in range(1, 33):
        encoder.encode([f"{'x' * (17 * i + count)}" for i in range(count)])
    rows, lengths = (set(sizes) for sizes in zip(*shapes, strict=True))
    assert rows <= {1, 8, 32}
    assert lengths <= {16, 32, 64, 128, 256, 512, 1024, 1800}
