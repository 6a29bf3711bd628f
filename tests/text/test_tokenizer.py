"""Token ids against those of transformers; special tokens, limits and counts."""

import json
import shutil

import numpy as np
import pytest
import tokenizers

from star_jax.config import InputError
from star_jax.text.families import TokenLimits
from star_jax.text.prompts import KINDS, clean
from star_jax.text.tokenizer import Tokenizer, Truncation
from star_jax.text.tower import TowerConfig, build_tokenizer
from tests.text.fixtures import FAMILIES, FOLDER, arrays, texts

WIDE = TokenLimits(job=2000, profile=2000, resume=2000, other=2000)
EOS = {"tiny_mistral": 2, "tiny_bert": None, "tiny_t5": 1, "tiny_qwen2": 256, "tiny_e5": None}
ENDS = {
    "tiny_mistral": ([1], [2]),
    "tiny_bert": ([2], [3]),
    "tiny_t5": ([], [1]),
    "tiny_qwen2": ([], [256]),
    "tiny_e5": ([0], [2]),
}
UNIGRAM = ("tiny_t5", "tiny_e5")
WITHOUT_END = ("tiny_mistral", "tiny_qwen2")  # As in plain Mistral and Qwen.


def read(name, *, prompts="none", limits=WIDE):
    return Tokenizer.read(FOLDER / name, prompts=prompts, limits=limits, eos_id=EOS[name])


@pytest.mark.parametrize("name", EOS)
def test_ids_are_those_of_transformers(name):
    golden = arrays(name)
    # In a Unigram vocabulary, transformers finds the special tokens that a user wrote.
    literals = [] if name in UNIGRAM else texts()["literals"]
    rows = read(name).encode(texts()["texts"] + literals, "job")
    appended = [EOS[name]] if name in WITHOUT_END else []
    for i, row in enumerate(rows):
        assert row.dtype == np.int32
        assert row.tolist() == golden[f"ids_{i}"].tolist() + appended
    # A truncation and a padding to 8 are baked into the file.
    assert max(len(row) for row in rows) > 300
    assert min(len(row) for row in rows) < 8


@pytest.mark.parametrize("name", EOS)
def test_user_text_never_becomes_a_special_token(name):
    first, last = ENDS[name]
    for row in read(name).encode(texts()["literals"], "job"):
        inner = row.tolist()[len(first) : -1]
        assert row.tolist()[: len(first)] == first
        assert row.tolist()[-1:] == last
        assert not {*first, *last} & {*inner}


@pytest.mark.parametrize("name", EOS)
@pytest.mark.parametrize("limit", [8, 128, 256])
def test_truncation_keeps_the_ends_and_is_counted(name, limit):
    long = texts()["texts"][6]
    limits = TokenLimits(job=limit, profile=2000, resume=2000, other=2000)
    tokenizer = read(name, limits=limits)
    (full,) = read(name).encode([long], "job")
    cut, short = tokenizer.encode([long, "x"], "job")
    first, last = ENDS[name]
    assert len(cut) == limit
    assert cut.tolist() == full[: limit - 1].tolist() + last
    (bare,) = read(name).encode(["x"], "job")
    assert short.tolist() == bare.tolist()
    counts = tokenizer.truncation["job"]
    ends = len(first) + len(last)
    assert counts == Truncation(2, 1, len(full) + len(bare) - 2 * ends, len(full) - limit)
    (other,) = tokenizer.encode([long], "resume")
    assert other.tolist() == full.tolist()


def test_a_prompt_comes_before_the_text_within_the_limit():
    limits = TokenLimits(job=60, profile=60, resume=60, other=60)
    tokenizer = read("tiny_bert", prompts="instruct-1", limits=limits)
    plain = read("tiny_bert")
    prompt = "Instruct: Represent this hire project, to find members and jobs it belongs to Query: "
    for kind, written in (("hire_project", prompt + "nurse london"),):
        (got,) = tokenizer.encode(["nurse london"], kind)
        (expected,) = plain.encode([written], "job")
        assert got.tolist() == expected.tolist()
    (cut,) = tokenizer.encode(["nurse " * 50], "job")
    assert len(cut) == 60
    assert cut[-1] == 3
    kinds = [tokenizer.encode(["nurse"], kind)[0].tolist() for kind in KINDS]
    assert kinds[0] != kinds[1] != kinds[2] != kinds[0]


def test_a_limit_that_the_prompt_fills_is_refused():
    limits = TokenLimits(job=30, profile=60, resume=60, other=60)
    tokenizer = read("tiny_bert", prompts="instruct-1", limits=limits)
    with pytest.raises(InputError, match="limit 30 of job texts leaves no room behind the 5"):
        tokenizer.encode(["nurse"], "job")


def test_no_text_and_empty_texts():
    tokenizer = read("tiny_bert")
    assert tokenizer.encode([], "job") == []
    for row in tokenizer.encode(["", "  \n"], "job"):
        assert row.tolist() == [2, 3]


def test_the_byte_tokenizer_of_the_random_base():
    tokenizer = build_tokenizer(TowerConfig(base="random", prompts="none"))
    first, second = tokenizer.encode(["ab", "aé</s>"], "job")
    assert (first[0], first[-1], len(first)) == (1, 2, 4)
    assert first[1] == second[1]
    assert len(second) == 2 + 1 + 2 + 4
    assert not {0, 1, 2} & {*second[1:-1].tolist()}
    assert tokenizer.vocab_size == 259


def test_the_digest_knows_what_ids_depend_on():
    digests = {
        read(name, prompts=prompts, limits=limits).digest
        for name in FAMILIES
        for prompts in ("none", "instruct-1")
        for limits in (WIDE, TokenLimits(job=9, profile=2000, resume=2000, other=2000))
    }
    assert len(digests) == 8
    assert read("tiny_bert").digest == read("tiny_bert").digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "tokenizer.json is missing, needed beside the model's weights"),
        ("{", "tokenizer.json is no tokenizer that can be read: "),
        ('{"version": "1.0"}', "tokenizer.json is no tokenizer that can be read: "),
    ],
)
def test_a_wrong_file(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        Tokenizer.read(tmp_path, prompts="none", limits=WIDE, eos_id=None)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_model(tmp_path):
    folder = shutil.copytree(FOLDER / "tiny_bert", tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 9}))
    limits = TokenLimits(job=9, profile=9, resume=9, other=9)
    with pytest.raises(InputError, match=r"tokenizer.json has \d+ ids, config.json says 9"):
        build_tokenizer(TowerConfig(base=str(folder), limits=limits))


def test_the_prompt_is_the_tokens_within_its_letters():
    """By the offsets that the tokenizers library gives."""
    limits = TokenLimits(job=16, profile=16, resume=16, other=16)
    tokenizer = Tokenizer.read(FOLDER / "tiny_bert", prompts="none", limits=limits, eos_id=None)
    library = tokenizers.Tokenizer.from_file(str(FOLDER / "tiny_bert" / "tokenizer.json"))
    library.no_truncation()
    library.no_padding()
    before, texts = "job: work ", ["nurse senior", "", "python " * 20]
    rows = tokenizer.encode_after(before, texts, 16, Truncation())
    expected = []
    for text in texts:
        offsets = library.encode(before + clean(text), add_special_tokens=False).offsets
        expected.append(1 + sum(end <= len(before) for _, end in offsets))  # [CLS] is first.
    assert expected[0] > 3
    assert tokenizer.prompt_lengths(before, rows) == expected
    assert tokenizer.prompt_lengths("", rows) == [0, 0, 0]


@pytest.mark.parametrize(
    ("family", "vocab_size", "config", "message"),
    [
        ("tiny_bert", 73, {}, None),
        ("tiny_bert", 128, {}, None),  # Padded to a multiple of 128.
        ("tiny_bert", 80, {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}, None),
        ("tiny_bert", 72, {}, "has 73 ids, config.json says 72"),
        ("tiny_bert", 74, {}, "has 73 ids, config.json says 74"),
        ("tiny_bert", 592, {}, "has 73 ids, config.json says 592"),
        ("tiny_bert", 73, {"cls_token_id": 101}, "cls_token_id is 101, tokenizer.json has 2"),
        ("tiny_bert", 73, {"sep_token_id": 102}, "sep_token_id is 102, tokenizer.json has 3"),
        ("tiny_bert", 73, {"pad_token_id": 5}, None),  # Padding is masked, whatever it is.
        ("tiny_bert", 73, {"eos_token_id": 7}, "eos_token_id is 7, tokenizer.json has 3"),
        ("tiny_bert", 73, {"eos_token_id": [7, 3]}, None),
        ("tiny_mistral", 99, {"bos_token_id": 1, "eos_token_id": 9}, None),  # Its file names none.
        ("tiny_mistral", 99, {"bos_token_id": 3}, "bos_token_id is 3, tokenizer.json has 1"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(tmp_path, family, vocab_size, config, message):
    shutil.copy(FOLDER / family / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    limits = TokenLimits(job=8, profile=8, resume=8, other=8)
    tokenizer = Tokenizer.read(tmp_path, prompts="none", limits=limits, eos_id=2)
    if message is None:
        tokenizer.check_config(tmp_path, vocab_size)
    else:
        with pytest.raises(InputError, match=message):
            tokenizer.check_config(tmp_path, vocab_size)
