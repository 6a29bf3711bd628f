"""From texts to token ids: prompt, special tokens, limit. Padding is the loader's business."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int

from star_jax.config import InputError
from star_jax.text.families import TokenLimits
from star_jax.text.prompts import clean, prompt

# Embedding tables have rows without a token, so that their number suits the devices: 28 of them in
# Flan-T5, 399 in Qwen2.5-7B.
_VOCABULARY_MULTIPLE = 8
_MOST_PADDING = 511


@dataclass
class Truncation:
    """What limits cut off, counted over all calls."""

    num_texts: int = 0
    num_truncated: int = 0
    num_tokens: int = 0
    num_dropped: int = 0


class Tokenizer:
    """The `tokenizers` library's reading of tokenizer.json, under our prompts and limits.

    User text never becomes a special token: a literal `[SEP]` or `</s>` is split like any word.
    Truncation and padding that the file asks for are switched off.

    Attributes:
      pad_id: For the loader's padding; never look for it, masks say what is real.
      vocab_size: Ids are below it.
      digest: Changes when the same text could get other ids.
      prefix: Special ids before a text.
      suffix: Special ids after it.
      appended_eos: The end that the file's template lacks; None where it has one of its own.
      truncation: Counts per kind.
    """

    def __init__(self, text: str, *, prompts: str, limits: TokenLimits, eos_id: int | None) -> None:
        """Reads a tokenizer from the content of a tokenizer.json.

        Args:
          text: The content.
          prompts: Version of the prompts.
          limits: With every field set.
          eos_id: Appended where the file's own template ends without a special token (plain
            Mistral); None leaves the template as it is.
        """
        self._tokenizer = _without_special_pieces(text)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._prompts, self._limits = prompts, limits
        self.prefix, self.suffix = self._special_ids()
        self._template = self.prefix, self.suffix
        self.appended_eos = None if self.suffix else eos_id
        if self.appended_eos is not None:
            self.suffix = (self.appended_eos,)
        self.pad_id: int = (json.loads(text).get("padding") or {}).get("pad_id", 0)
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.truncation: dict[str, Truncation] = defaultdict(Truncation)
        content = hashlib.sha256(text.encode()).hexdigest()
        parts = [content, prompts, vars(limits), self.prefix, self.suffix]
        self.digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @classmethod
    def read(
        cls, folder: Path, *, prompts: str, limits: TokenLimits, eos_id: int | None
    ) -> "Tokenizer":
        """Reads the tokenizer.json of a folder.

        Raises:
          InputError: There is none, or it is corrupt.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise InputError(f"{file} is missing, needed beside the model's weights")
        try:
            text = file.read_text(encoding="utf-8")
            return cls(text, prompts=prompts, limits=limits, eos_id=eos_id)
        except Exception as error:
            # The library raises bare Exception for whatever it cannot parse.
            if type(error) is not Exception and not isinstance(error, ValueError):
                raise
            reason = " ".join(str(error).split())
            raise InputError(f"{file} is no tokenizer that can be read: {reason}") from error

    def check_config(self, folder: Path, vocab_size: int) -> None:
        """Compares with the config.json beside the file, as far as both speak of the same.

        Raises:
          InputError: The two are of different models.
        """
        padding = vocab_size - self.vocab_size
        padded = vocab_size % _VOCABULARY_MULTIPLE == 0 and 0 < padding <= _MOST_PADDING
        if padding and not padded:
            raise InputError(
                f"{folder}/tokenizer.json has {self.vocab_size} ids, config.json says "
                f"{vocab_size}: they are of different models (needed as many, or up to "
                f"{_MOST_PADDING} fewer than a multiple of {_VOCABULARY_MULTIPLE})"
            )
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        first, last = (
            part[end] if part else None for part, end in zip(self._template, (0, -1), strict=True)
        )
        named = {"bos": first, "cls": first, "eos": last, "sep": last}
        for name, own in named.items():
            said = config.get(f"{name}_token_id")
            known = said if isinstance(said, list) else [said]
            if own is not None and said is not None and own not in known:
                raise InputError(
                    f"{folder}/config.json: {name}_token_id is {said}, tokenizer.json has {own}: "
                    "they are of different models"
                )

    def encode(self, texts: Sequence[str], kind: str) -> list[Int[np.ndarray, " L"]]:
        """Ids of each text: prompt and text, cut on the right, between the special tokens.

        Args:
          texts: As users wrote them.
          kind: Chooses prompt and limit: `job`, `profile`, `resume`, or a node type.
        """
        before, limit = prompt(self._prompts, kind), self._limits.of(kind)
        words = self._tokenizer.encode(before, add_special_tokens=False).ids
        size = len(self.prefix) + len(words) + len(self.suffix)
        if limit <= size:
            raise InputError(
                f"limit {limit} of {kind} texts leaves no room behind the {size} tokens of prompts "
                f"{self._prompts}; raise tower.limits, or choose other prompts"
            )
        return self.encode_after(before, texts, limit, self.truncation[kind])

    def prompt_lengths_of(self, kind: str, rows: Sequence[Int[np.ndarray, " _"]]) -> list[int]:
        """As `prompt_lengths`, of texts of a kind as `encode` made them."""
        return self.prompt_lengths(prompt(self._prompts, kind), rows)

    def encode_after(
        self, before: str, texts: Sequence[str], limit: int, counts: Truncation
    ) -> list[Int[np.ndarray, " L"]]:
        """As `encode`, with any words before the texts.

        Args:
          before: The prompt.
          texts: As users wrote them.
          limit: Longest result, special tokens included.
          counts: What the limit cuts off is added to them.
        """
        room = limit - len(self.prefix) - len(self.suffix)
        prefix, suffix = list(self.prefix), list(self.suffix)
        encodings = self._tokenizer.encode_batch_fast(
            [before + clean(text) for text in texts], add_special_tokens=False
        )
        rows = []
        for encoding in encodings:
            ids = encoding.ids
            counts.num_texts += 1
            counts.num_tokens += len(ids)
            if len(ids) > room:
                counts.num_truncated += 1
                counts.num_dropped += len(ids) - room
            rows.append(np.array(prefix + ids[:room] + suffix, np.int32))
        return rows

    def prompt_lengths(self, before: str, rows: Sequence[Int[np.ndarray, " _"]]) -> list[int]:
        """How many leading tokens of each text are its prompt, with what stands before that.

        Args:
          before: The prompt; without one, nothing is.
          rows: As `encode_after` made them with this prompt. A token that joins the end of the
            prompt and the beginning of the text counts as text.
        """
        if not before:
            return [0] * len(rows)
        ids = self._tokenizer.encode(before, add_special_tokens=False).ids
        words = np.array([*self.prefix, *ids], np.int32)
        found = []
        for row in rows:
            size = min(len(words), len(row) - len(self.suffix))
            found.append(int(np.cumprod(words[:size] == row[:size]).sum()))
        return found

    def token(self, token_id: int) -> str:
        """The token of an id."""
        token = self._tokenizer.id_to_token(token_id)
        assert token is not None  # Ids come from this tokenizer or from its model's config.
        return token

    def _special_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the file's template puts before and after a text."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a", add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return tuple(full[:start]), tuple(full[start + len(bare) :])
        raise ValueError(f"its template turns {bare} into {full}, needed ids before or after them")


def _without_special_pieces(text: str) -> tokenizers.Tokenizer:
    """The tokenizer of a file, in which no text holds the pieces of special tokens.

    A Unigram model finds whatever its vocabulary holds, a literal `</s>` too: told to split special
    tokens, the library only stops looking for them before the model does.
    """
    tokenizer = tokenizers.Tokenizer.from_str(text)
    if not isinstance(tokenizer.model, tokenizers.models.Unigram):
        return tokenizer
    values = json.loads(text)
    pieces, added = values["model"]["vocab"], values["added_tokens"]
    special = {token["id"] for token in added if token["special"] and token["id"] < len(pieces)}
    for i in special:
        pieces[i][0] = f"\n{i}"  # `clean` leaves no line break in a text.
    values["added_tokens"] = [token for token in added if token["id"] not in special]
    return tokenizers.Tokenizer.from_str(json.dumps(values))
