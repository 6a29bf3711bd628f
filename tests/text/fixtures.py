"""The fixtures of tests/golden/make_text.py."""

import json
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from star_jax.text.packing import Tokens

FOLDER = Path(__file__).parents[1] / "golden"
FAMILIES = ("tiny_mistral", "tiny_bert")
OTHERS = ("tiny_t5", "tiny_llama", "tiny_qwen2", "tiny_qwen3", "tiny_e5")


@cache
def arrays(name):
    with np.load(FOLDER / f"{name}.npz") as stored:
        return dict(stored)


@cache
def texts():
    return json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))


def rows_of(tokens, mask):
    """A text a row, from right-padded tokens and their mask."""
    return Tokens(jnp.asarray(tokens), jnp.sum(jnp.asarray(mask), axis=1, keepdims=True))


def pad(rows):
    """Right-padded tokens, with a loud id on the padding, and their mask."""
    length = max(len(row) for row in rows)
    mask = np.arange(length)[None] < np.array([len(row) for row in rows])[:, None]
    tokens = np.full(mask.shape, 7, np.int32)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask
