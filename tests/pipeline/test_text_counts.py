from typing import Any

import numpy as np
import pytest

from star_jax.pipeline.text_counts import TextCounts
from star_jax.text.bi_encoder import TextBatch, build_bi_encoder
from star_jax.text.lora import LoraConfig
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.packing import Tokens
from star_jax.text.pooling import PoolingConfig
from star_jax.text.scorer import ScorerConfig
from star_jax.text.tower import TowerConfig

N = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64)  # Of the base `random`.
ATTENTION = 2 * 4 * 32  # A pair of tokens that see each other: two blocks, heads 32 wide in all.


def table(lengths, width):
    of_text: Any = np.array(lengths, np.int32)[..., None]
    tokens: Any = np.zeros((*of_text.shape[:-1], width), np.int32)
    return Tokens(tokens, of_text)


@pytest.mark.parametrize(("span", "share"), [("causal", 0.5), ("bidirectional", 1.0)])
def test_counts_by_hand(span, share):
    tower = TowerConfig(base="random", remat="none", pooling=PoolingConfig(attention=span))
    model = build_bi_encoder(tower, ScorerConfig(), ObjectiveConfig(), LoraConfig())
    none: Any = np.zeros((2, 1), np.int32)
    # Two microbatches, two tables.
    texts = (table([[3, 2], [0, 1]], 4), table([[6], [8]], 8))
    batch = TextBatch(texts, none, none, none, none, none, none, none)
    counts = TextCounts(model, "lora")(batch)
    assert (counts.units, counts.slots) == (20, 32)
    squares = share * (9 + 4 + 1 + 36 + 64)
    assert counts.arithmetic is not None
    assert counts.arithmetic.model == 4 * N * 20 + 3 * ATTENTION * squares
    assert counts.arithmetic.hardware == 4 * N * 32 + 3 * ATTENTION * (4 * 16 + 2 * 64)
    # One loss over two chunks: each is encoded once more.
    one: Any = np.zeros(2, np.int32)
    chunked = batch._replace(**dict.fromkeys(batch._fields[1:8], one))
    counts = TextCounts(model, "lora")(chunked)
    assert counts.arithmetic is not None
    assert counts.arithmetic.model == 4 * N * 20 + 3 * ATTENTION * squares
    assert counts.arithmetic.hardware == 6 * N * 32 + 4 * ATTENTION * (4 * 16 + 2 * 64)
