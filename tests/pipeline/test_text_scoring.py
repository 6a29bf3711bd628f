"""Scores of pairs of texts, from vectors that are there."""

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.pipeline import text_scoring
from star_jax.pipeline.text_scoring import PairLogits, PairRows
from star_jax.text.bi_encoder import BiEncoder
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.scorer import PairScorer, ScorerConfig
from star_jax.text.tower import TextTower


def test_a_grid_in_blocks_holds_what_its_pairs_give(monkeypatch):
    monkeypatch.setattr(text_scoring, "_BLOCK_PAIRS", 10)
    monkeypatch.setattr(text_scoring, "_GRID_DOCUMENTS", 4)
    scorer = PairScorer(ScorerConfig(hidden=(5,), features=("product", "vectors", "difference")))
    model = BiEncoder(
        tower=object.__new__(TextTower), scorer=scorer, lora=None, objective=ObjectiveConfig()
    )
    draws = np.random.default_rng(0)
    documents, requests = draws.normal(size=(2, 9, 6)).astype(np.float32)
    blank = [jnp.zeros((1, 6))] * 3 + [jnp.ones(1, bool)] * 2
    variables = {"scorer": scorer.init(jax.random.key(0), *blank)["params"]}
    rows = PairRows(*(draws.integers(-1, 9, n).astype(np.int32) for n in (11, 7, 7)))
    logits = PairLogits(model)
    grid = logits.grid(variables, documents, requests, rows)
    request, document = (index.ravel() for index in np.indices((7, 11)))
    pairs = PairRows(rows.document[document], rows.profile[request], rows.resume[request])
    assert np.ptp(grid) > 1
    expected = logits(variables, documents, requests, pairs)
    np.testing.assert_allclose(grid.ravel(), expected, rtol=1e-5, atol=1e-5)
    nobody = rows._replace(profile=rows.profile[:0], resume=rows.resume[:0])
    assert logits.grid(variables, documents, requests, nobody).shape == (0, 11)
