"""The base `random`: a tiny Mistral and a byte tokenizer, so that tests need no files."""

import json

from tokenizers.pre_tokenizers import ByteLevel

from star_jax.text.families import MistralShape

_SPECIAL = ("<pad>", "<s>", "</s>")

SHAPE = MistralShape(
    vocab_size=len(_SPECIAL) + 256,
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_width=8,
    mlp_width=64,
    max_positions=2048,
    norm_epsilon=1e-5,
    rope_theta=10_000.0,
    sliding_window=None,
    eos_id=2,
)


def _tokenizer() -> str:
    """A tokenizer.json with one token per byte, after `<s>` and before `</s>`."""
    tokens = [*_SPECIAL, *sorted(ByteLevel.alphabet())]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    first, last = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("<s>", "</s>"))
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": i, "content": token, "special": True, **special}
                for i, token in enumerate(_SPECIAL)
            ],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [first, sequence, last],
                "pair": [first, sequence, sequence, last],
                "special_tokens": {
                    token: {"id": token, "ids": [i], "tokens": [token]}
                    for i, token in enumerate(_SPECIAL)
                },
            },
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "vocab": {token: i for i, token in enumerate(tokens)},
                "merges": [],
            },
        }
    )


TOKENIZER = _tokenizer()
