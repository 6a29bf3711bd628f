"""Vectors of exported folders by the libraries that users load them with.

The one place that imports torch, and only while a function runs: no part of star_jax needs it.
"""

import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from star_jax.config import InputError

PACKAGES = {
    "peft": ("torch", "transformers", "peft"),
    "huggingface": ("torch", "transformers"),
    "sentence-transformers": ("torch", "transformers", "sentence-transformers"),
}
"""What verifies each format."""


def check_installed(formats: Sequence[str]) -> dict[str, str]:
    """Versions of the libraries that verify these formats.

    Raises:
      InputError: One is not installed.
    """
    packages = dict.fromkeys(package for name in formats for package in PACKAGES[name])
    missing = [p for p in packages if importlib.util.find_spec(p.replace("-", "_")) is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)} must reload what is exported and cannot be imported: "
            "pip install -r requirements-interop.txt, or give --verify self"
        )
    return {package: importlib.metadata.version(package) for package in packages}


def adapter_vectors(
    folder: Path, base: Path, rows: Sequence[Int[np.ndarray, " _"]]
) -> Float32[np.ndarray, "N D"]:
    """Mean over all tokens and blocks, by PEFT on the base, in float32.

    Args:
      folder: Of the adapter.
      base: Folder of the base.
      rows: Token ids.
    """
    import peft  # pyright: ignore[reportMissingImports]
    import transformers

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    causal = config["task_type"] == "CAUSAL_LM"
    model = _load(base, transformers.AutoModelForCausalLM if causal else None)
    return _mean_vectors(peft.PeftModel.from_pretrained(model, str(folder)), rows)


def model_vectors(
    folder: Path, texts: Sequence[str], max_length: int
) -> tuple[list[list[int]], Float32[np.ndarray, "N D"]]:
    """Token ids, and the mean over all tokens and blocks, by transformers, in float32.

    Args:
      folder: Of a model with its tokenizer.
      texts: With their prompts.
      max_length: Of a text in tokens.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    ids: list[list[int]] = encoded["input_ids"]
    return ids, _mean_vectors(_load(folder, None), [np.array(row) for row in ids])


def sentence_vectors(
    folder: Path, kinds: Sequence[str], texts: Sequence[str]
) -> Float32[np.ndarray, "N E"]:
    """`encode` of sentence-transformers under each text's prompt, in float32."""
    import torch  # pyright: ignore[reportMissingImports]
    from sentence_transformers import (  # pyright: ignore[reportMissingImports]
        SentenceTransformer,
    )

    model: Any = SentenceTransformer(
        str(folder),
        device="cpu",
        local_files_only=True,
        model_kwargs={"dtype": torch.float32},
    )
    vectors: dict[int, np.ndarray] = {}
    for kind in dict.fromkeys(kinds):
        at = [i for i, k in enumerate(kinds) if k == kind]
        of_kind = model.encode([texts[i] for i in at], prompt_name=kind)
        vectors |= dict(zip(at, of_kind, strict=True))
    return np.stack([vectors[i] for i in range(len(texts))])


def _load(folder: Path, auto_class: Any) -> Any:
    """The model of a folder; without a class, that of its encoder."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    if auto_class is None:
        config = transformers.AutoConfig.from_pretrained(str(folder))
        encoders = transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
        known = type(config) in encoders  # Encoder halves, such as T5's.
        auto_class = transformers.AutoModelForTextEncoding if known else transformers.AutoModel
    return auto_class.from_pretrained(str(folder), dtype=torch.float32)


def _mean_vectors(model: Any, rows: Sequence[Int[np.ndarray, " _"]]) -> Float32[np.ndarray, "N D"]:
    """Text by text, so that no padding can matter."""
    import torch  # pyright: ignore[reportMissingImports]

    model.eval()
    vectors = []
    with torch.no_grad():
        for row in rows:
            tokens = torch.from_numpy(np.asarray(row, np.int64))[None]
            mask = torch.ones_like(tokens)
            states = model(
                input_ids=tokens, attention_mask=mask, output_hidden_states=True
            ).hidden_states
            blocks = np.stack([state[0].float().numpy() for state in states[1:]])
            vector = blocks.mean(axis=(0, 1))
            vectors.append(vector / np.linalg.norm(vector))
    return np.stack(vectors)
