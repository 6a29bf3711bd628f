"""The tokenizer files of an exported model: the base's, and what they leave unsaid."""

import json
from pathlib import Path
from typing import Any

from star_jax.text.tokenizer import Tokenizer

_TOKENIZER, _CONFIG, _SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"


def write_tokenizer(folder: Path, base: Path, tokenizer: Tokenizer, max_length: int) -> list[str]:
    """Copies the base's files; adds only what other libraries need to get the same ids.

    Args:
      folder: Of the exported model.
      base: Folder of the base.
      tokenizer: Reads the base's tokenizer.json.
      max_length: Longest text in tokens, special ones included.

    Returns:
      What was added, in words; empty where the files are the base's.
    """
    text = (base / _TOKENIZER).read_text(encoding="utf-8")
    config = _read(base / _CONFIG) if (base / _CONFIG).is_file() else {}
    special = _read(base / _SPECIAL) if (base / _SPECIAL).is_file() else {}
    if special:
        (folder / _SPECIAL).write_bytes((base / _SPECIAL).read_bytes())
    added = []
    if not config:
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "padding_side": "right",
            "clean_up_tokenization_spaces": False,
        }
        added.append(f"{_CONFIG}, which the base has not")
    if tokenizer.appended_eos is not None:
        end = tokenizer.token(tokenizer.appended_eos)
        text = json.dumps(json.loads(text) | {"post_processor": _template(tokenizer)})
        # Classes of their own would make the template anew from their flags.
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "add_eos_token": True}
        config |= {"eos_token": config.get("eos_token", end)}
        added.append(f"{end} after every text")
    if not (config.get("pad_token") or special.get("pad_token")):
        config |= {"pad_token": tokenizer.token(tokenizer.pad_id)}
        added.append(f"{config['pad_token']} as pad_token")
    (folder / _TOKENIZER).write_text(text, encoding="utf-8")
    if added:
        (folder / _CONFIG).write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    else:
        (folder / _CONFIG).write_bytes((base / _CONFIG).read_bytes())
    return added


def _template(tokenizer: Tokenizer) -> dict[str, Any]:
    """A post-processor that puts the tokenizer's special ids around a text."""

    def around(sequence: str, type_id: int, *, first: bool) -> list[dict[str, Any]]:
        before = tokenizer.prefix if first else ()
        ids = [(before, "before"), (tokenizer.suffix, "after")]
        pieces = {
            side: [{"SpecialToken": {"id": tokenizer.token(i), "type_id": type_id}} for i in group]
            for group, side in ids
        }
        text = {"Sequence": {"id": sequence, "type_id": type_id}}
        return [*pieces["before"], text, *pieces["after"]]

    special = {
        tokenizer.token(i): {"id": tokenizer.token(i), "ids": [i], "tokens": [tokenizer.token(i)]}
        for i in (*tokenizer.prefix, *tokenizer.suffix)
    }
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0, first=True),
        "pair": [*around("A", 0, first=True), *around("B", 1, first=False)],
        "special_tokens": special,
    }


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
