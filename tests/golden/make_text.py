"""Makes the fixtures of the text tests with torch, transformers and sentence-transformers.

Run, in an environment that holds them (torch 2.13, transformers 5.23, sentence-transformers 6.2):
    python tests/golden/make_text.py MINILM_FOLDER

tiny_mistral/, tiny_bert/   Hugging Face folders: random weights, a tokenizer with a truncation and
                            a padding baked in, as all-MiniLM-L6-v2 has them
tiny_mistral.npz, tiny_bert.npz   their states, tokens and ids
tiny_t5, tiny_llama, tiny_qwen2, tiny_qwen3, tiny_e5   the same of other families; Llama and Qwen3
                            without a tokenizer
minilm.npz                  sentence embeddings of all-MiniLM-L6-v2 and ids of its tokenizer
texts.json                  what was encoded
"""

import json
import sys
from pathlib import Path
from typing import Any

# torch and what stands on it are no dependency of star_jax.
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers as tokenizer_trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)
from transformers.models.t5.modeling_t5 import T5Attention

HERE = Path(__file__).parent

TEXTS = [
    "A man is eating food.",
    "Senior software engineer (C++, Python) in Zürich; 80-100 %",
    "Krankenpfleger gesucht: Vollzeit, ab sofort. Größe egal!",
    "機械学習エンジニアを募集しています",
    "ищем бухгалтера в Москве",
    "x",
    " ".join(["nurse"] * 298),  # 300 tokens with the special ones.
    " ".join(["kubernetes docker terraform observability"] * 40),
]
LITERALS = [
    "the [SEP] token and [CLS] [MASK] are words",
    "</s> and <s> are words <unk> too",
]
E5_TEXTS = ["query: senior nurse", "passage: remote python engineer london", "query: team"]
DECODER: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
WORDS = "job work nurse senior remote full time engineer python java london member skills team"


def main(minilm: Path) -> None:
    """Writes all fixtures beside this file."""
    (HERE / "texts.json").write_text(
        json.dumps({"texts": TEXTS, "literals": LITERALS}, ensure_ascii=False, indent=1) + "\n"
    )
    torch.manual_seed(0)
    tiny_mistral(HERE / "tiny_mistral")
    tiny_bert(HERE / "tiny_bert")
    for make in (tiny_t5, tiny_llama, tiny_qwen2, tiny_qwen3, tiny_e5):
        torch.manual_seed(0)
        make(HERE / make.__name__)
    real_minilm(minilm)


def tiny_mistral(folder: Path) -> None:
    """Grouped heads, heads wider than width / heads, a window that binds, two shards."""
    config = MistralConfig(
        vocab_size=160,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=5,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    model = randomise(MistralModel(config))
    model.save_pretrained(folder, max_shard_size="20KB")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁")
    trainer = tokenizer_trainers.BpeTrainer(
        vocab_size=100, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    # Only a beginning, as in plain Mistral: the end is for us to append.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    bake(tokenizer, "</s>")
    tokenizer.save(str(folder / "tokenizer.json"))
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    save(HERE / "tiny_mistral.npz", model, "layers", ids(fast))


def tiny_bert(folder: Path) -> None:
    """As its large relatives, with every bias and norm random too."""
    config = BertConfig(
        vocab_size=120,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=40,
    )
    model = randomise(BertModel(config, add_pooling_layer=False))
    model.save_pretrained(folder)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = (WORDS + " [ ] sep the and are words token").split()
    letters = sorted({letter for word in words for letter in word})
    # No trainer: its ties are broken anew in every run.
    vocabulary = [*specials, *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    bake(tokenizer, "[PAD]")
    tokenizer.save(str(folder / "tokenizer.json"))
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    save(HERE / "tiny_bert.npz", model, "encoder.layer", ids(fast))


def tiny_t5(folder: Path) -> None:
    """Heads that together are narrower than the width, distances that reach the last bucket."""
    config = T5Config(
        vocab_size=160,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=3,
        num_heads=3,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=9,
        feed_forward_proj="gated-gelu",
    )
    model = randomise(T5EncoderModel(config))
    model.save_pretrained(folder)
    tokenizer = unigram(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    bake(tokenizer, "<pad>")
    fast = stored(tokenizer, folder)
    apart = torch.arange(-300, 301)
    buckets = {
        f"buckets_{num}_{most}": T5Attention._relative_position_bucket(apart, True, num, most)
        for num, most in ((32, 128), (8, 9))
    }
    buckets = {name: bucket.numpy().astype(np.int8) for name, bucket in buckets.items()}
    save(HERE / "tiny_t5.npz", model, "encoder.block", ids(fast) | buckets)


def tiny_llama(folder: Path) -> None:
    """Every bias, and a rotation of each of the three kinds that `llama3` tells apart."""
    config = LlamaConfig(
        **DECODER,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    )
    model = randomise(LlamaModel(config))
    model.save_pretrained(folder)
    save(HERE / "tiny_llama.npz", model, "layers", {})


def tiny_qwen2(folder: Path) -> None:
    """A window in all layers, that binds; a tokenizer that adds nothing to a text."""
    values: dict[str, Any] = DECODER | {"vocab_size": 260, "eos_token_id": 256}
    config = Qwen2Config(**values, use_sliding_window=True, sliding_window=5, max_window_layers=0)
    model = randomise(Qwen2Model(config))
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    bake(tokenizer, "<|endoftext|>")
    save(HERE / "tiny_qwen2.npz", model, "layers", ids(stored(tokenizer, folder)))


def tiny_qwen3(folder: Path) -> None:
    """Normed heads; the window in its config is not used."""
    config = Qwen3Config(**DECODER, sliding_window=5, tie_word_embeddings=True, eos_token_id=99)
    model = randomise(Qwen3Model(config))
    model.save_pretrained(folder)
    save(HERE / "tiny_qwen3.npz", model, "layers", {})


def tiny_e5(folder: Path) -> None:
    """A multilingual-e5-small in little: BERT, stored with its pooler, under XLM-R's tokenizer."""
    config = BertConfig(
        vocab_size=160,
        hidden_size=12,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
    )
    model = randomise(BertModel(config))
    model.save_pretrained(folder)
    tokenizer = unigram(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    bake(tokenizer, "<pad>")
    fast = stored(tokenizer, folder)
    rows = [fast(text, truncation=False, padding=False)["input_ids"] for text in E5_TEXTS]
    with torch.no_grad():
        states = [model(torch.tensor([row])).last_hidden_state[0].mean(0) for row in rows]
    vectors = torch.nn.functional.normalize(torch.stack(states)).numpy()
    save(HERE / "tiny_e5.npz", model, "encoder.layer", ids(fast) | {"vectors": vectors})


def unigram(specials: list[str]) -> Tokenizer:
    """As SentencePiece makes them: words, and letters where no word fits."""
    words = [*WORDS.split(), "query", "passage", "the", "and", "are", "words"]
    letters = sorted(set("".join(words)))
    pieces = [(piece, 0.0) for piece in specials]
    pieces += [(f"▁{word}", -float(3 + i)) for i, word in enumerate(words)]
    pieces += [(letter, -float(40 + i)) for i, letter in enumerate(["▁", ":", *letters])]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=specials.index("<unk>")))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(specials)
    return tokenizer


def stored(tokenizer: Tokenizer, folder: Path) -> PreTrainedTokenizerFast:
    """Saves a tokenizer, and reads it as transformers does."""
    tokenizer.save(str(folder / "tokenizer.json"))
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def real_minilm(folder: Path) -> None:
    """Embeddings under two limits, and ids."""
    model = SentenceTransformer(str(folder), device="cpu")
    vectors: dict[str, Any] = {}
    for limit in (256, 512):
        model.max_seq_length = limit
        vectors[f"vectors_{limit}"] = model.encode(TEXTS, normalize_embeddings=True)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    np.savez_compressed(HERE / "minilm.npz", **vectors, **ids(fast))


def bake(tokenizer: Tokenizer, pad: str) -> None:
    """The trap: a truncation and a padding that nobody here asked for."""
    tokenizer.enable_truncation(max_length=8)
    tokenizer.enable_padding(length=8, pad_id=tokenizer.token_to_id(pad), pad_token=pad)


def randomise(model: torch.nn.Module) -> Any:
    """Every parameter random, so that no one can be left out unnoticed."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = "norm" in name.lower() and name.endswith("weight")
            parameter.normal_(1.0 if scale else 0.0, 0.3)
    return model.eval()


def save(path: Path, model: Any, blocks: str, rows: dict[str, Any]) -> None:
    """States of right-padded random tokens: the embedding's, each block's, the model's."""
    lengths = np.array([12, 7, 1])
    mask = np.arange(12)[None] < lengths[:, None]
    tokens = np.random.default_rng(0).integers(5, 100, mask.shape)
    raw = []
    for block in model.get_submodule(blocks):
        block.register_forward_hook(
            lambda _, __, out: raw.append(out[0] if isinstance(out, tuple) else out)
        )
    with torch.no_grad():
        out = model(
            torch.tensor(tokens),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            output_hidden_states=True,
        )
    states = np.stack([out.hidden_states[0].numpy(), *(state.numpy() for state in raw)])
    np.savez_compressed(
        path,
        tokens=tokens.astype(np.int32),
        mask=mask,
        states=states,  # Of the embedding and after each block, before any final norm.
        final=out.last_hidden_state.numpy(),
        **rows,
    )


def ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Ids of all texts, user text never read as a special token; no truncation."""
    rows = {}
    for i, text in enumerate(TEXTS + LITERALS):
        encoded = tokenizer(text, split_special_tokens=True, truncation=False, padding=False)
        rows[f"ids_{i}"] = np.array(encoded["input_ids"], np.int32)
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1]))
