from collections import Counter

import numpy as np
import pytest

from star_jax.pipeline.mining.choose import ChoiceConfig, candidate_words, choose

P, K = 40, 12


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    positive = rng.uniform(-0.3, 0.9, P).astype(np.float32)
    score = -np.sort(-rng.uniform(-0.6, 1.0, (P, K)), axis=1).astype(np.float32)
    score[np.arange(K)[None, :] >= rng.integers(0, K + 1, P)[:, None]] = -np.inf
    words = rng.integers(0, 1 << 62, (P, K), dtype=np.uint64)
    return positive, score, words


def by_definition(positive, score, words, config):
    """Positive by positive, candidate by candidate."""
    chosen, removed = set(), Counter()
    for i in range(P):
        left = []
        for k in range(K):
            if score[i, k] == -np.inf:
                continue
            relative, absolute = config.relative_margin, config.absolute_margin
            if k < config.skip_top:
                removed["skip_top"] += 1
            elif relative is not None and (
                positive[i] - score[i, k] <= relative * abs(positive[i])
            ):
                removed["relative_margin"] += 1
            elif absolute is not None and positive[i] - score[i, k] <= absolute:
                removed["absolute_margin"] += 1
            else:
                left.append(k)
        if config.sampling == "random":
            left.sort(key=lambda k: words[i, k])
        chosen |= {(i, k) for k in left[: config.num_negatives]}
        removed["not_chosen"] += len(left[config.num_negatives :])
    return chosen, removed


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_negatives": 3, "skip_top": 2, "window": 10},
        {"relative_margin": None, "absolute_margin": 0.2, "num_negatives": 2},
        {"relative_margin": 0.3, "absolute_margin": 0.1, "num_negatives": 2},
        {"relative_margin": None, "sampling": "random", "num_negatives": 2},
    ],
)
def test_filters_and_choice_by_their_definition(scores, fields):
    config = ChoiceConfig(**fields)
    positive, score, words = scores
    found = choose(positive, score, words, config)
    chosen, removed = by_definition(positive, score, words, config)
    assert set(zip(*np.nonzero(found.chosen), strict=True)) == chosen
    assert +found.removed == +removed
    assert len(chosen) > P // 3
    if fields.get("relative_margin", 0.05) == 0.05 and "absolute_margin" not in fields:
        above = positive > 0
        best = np.where(found.chosen, score, -np.inf).max(axis=1)
        assert (best[above] < 0.95 * positive[above]).all()  # As NV-Embed writes it.


def test_a_draw_depends_on_positive_and_candidate_alone():
    rng = np.random.default_rng(3)
    sender, own, t = (rng.integers(0, 99, P) for _ in range(3))
    receiver = rng.integers(0, 99, (P, K))
    words = candidate_words(sender, t, own, receiver, 0)
    order, ranks = rng.permutation(P), rng.permutation(K)
    again = candidate_words(sender[order], t[order], own[order], receiver[order][:, ranks], 0)
    np.testing.assert_array_equal(again, words[order][:, ranks])
    assert len(np.unique(words)) == sum(len(np.unique(row)) for row in receiver)
    assert (candidate_words(sender, t, own, receiver, 1) != words).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_negatives": 0}, "num_negatives 0 must be >= 1"),
        ({"skip_top": -1}, "skip_top -1 is below 0"),
        ({"window": 2, "num_negatives": 3}, "window 2 is below num_negatives 3"),
        ({"relative_margin": -0.1}, "relative_margin -0.1 is below 0; None is no bound"),
        ({"absolute_margin": -0.1}, "absolute_margin -0.1 is below 0; None is no bound"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ChoiceConfig(**fields)
