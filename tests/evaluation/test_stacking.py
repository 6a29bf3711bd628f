import numpy as np
import pytest
from scipy import special

from star_jax.evaluation.auc import roc_auc
from star_jax.evaluation.stacking import Ends, Stack, fit_stack


def drawn(num, seed=0):
    """Two models: one knows what decides where senders are warm, the other everywhere a little."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=num)
    ends = Ends(rng.random(num) < 0.6, rng.random(num) < 0.3)
    by_links = np.where(ends.warm_sender, truth, 0.0) + rng.normal(size=num) * 0.5 + 3.0
    by_text = truth + rng.normal(size=num) * 2.0
    labels = rng.random(num) < special.expit(2 * truth - 1.5 * ends.warm_receiver)
    return {"links": by_links, "text": by_text}, ends, labels


def test_a_stack_is_better_than_its_models_and_calibrated_on_other_pairs():
    scores, ends, labels = drawn(20_000)
    others, other_ends, other_labels = drawn(20_000, seed=1)
    logits = fit_stack(scores, ends, labels).logits(others, other_ends)
    best = max(roc_auc(other_labels, each) for each in others.values())
    assert roc_auc(other_labels, logits) > best + 0.05
    for high in (False, True):
        part = (logits > 0) == high
        rate = special.expit(logits[part]).mean()
        assert rate == pytest.approx(other_labels[part].mean(), abs=0.01)


def test_a_stack_does_not_depend_on_the_scale_of_scores():
    scores, ends, labels = drawn(500)
    other_units = scores | {"links": 100 * scores["links"]}
    found = fit_stack(scores, ends, labels).logits(scores, ends)
    again = fit_stack(other_units, ends, labels).logits(other_units, ends)
    np.testing.assert_allclose(found, again, rtol=1e-6)


def test_a_grid_holds_what_its_pairs_give():
    rng = np.random.default_rng(2)
    scores = {model: rng.normal(size=(5, 4)) for model in "ab"}
    senders, receivers = np.arange(5) % 2 == 0, np.arange(4) < 2
    columns = [f"{model}{times}" for model in "ab" for times in ("", " * warm_sender")]
    columns += [f"{model} * warm_receiver" for model in "ab"] + ["warm_sender", "warm_receiver"]
    weights = dict(zip(columns, rng.normal(size=len(columns)), strict=True))
    stack = Stack(("a", "b"), 0.3, weights)
    grid = stack.logits(scores, Ends(senders[:, None], receivers[None]))
    for s in range(5):
        for r in range(4):
            ends = Ends(senders[[s]], receivers[[r]])
            one = stack.logits({name: each[[s], [r]] for name, each in scores.items()}, ends)
            expected = stack.bias + sum(
                each[s, r]
                * (
                    weights[name]
                    + senders[s] * weights[f"{name} * warm_sender"]
                    + receivers[r] * weights[f"{name} * warm_receiver"]
                )
                for name, each in scores.items()
            )
            expected += senders[s] * weights["warm_sender"]
            expected += receivers[r] * weights["warm_receiver"]
            assert one[0] == pytest.approx(expected)
            assert grid[s, r] == pytest.approx(expected)


def test_what_never_changes_weighs_nothing():
    scores, ends, labels = drawn(400)
    found = fit_stack(scores | {"constant": np.ones(400)}, ends, labels)
    assert found.weights["constant"] == 0
