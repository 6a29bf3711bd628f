import numpy as np
import pytest
from scipy import optimize, special

from star_jax.evaluation.auc import roc_auc
from star_jax.evaluation.logistic import logistic_regression
from star_jax.evaluation.stacking import Ends, Stack, fit_stack, names


def drawn(num, seed=0):
    """Two models: one knows what decides where senders are warm, the other everywhere a little."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=num)
    ends = Ends(rng.random(num) < 0.6, rng.random(num) < 0.3)
    by_links = np.where(ends.warm_sender, truth, 0.0) + rng.normal(size=num) * 0.5 + 3.0
    by_text = truth + rng.normal(size=num) * 2.0
    labels = rng.random(num) < special.expit(2 * truth - 1.5 * ends.warm_receiver)
    return [by_links, by_text], ends, labels


def test_the_regression_minimises_the_penalised_loss():
    rng = np.random.default_rng(1)
    design = np.column_stack([np.ones(300), rng.normal(size=(300, 3))])
    labels = rng.random(300) < special.expit(design @ [0.3, 1.0, -2.0, 0.0])
    weights = rng.uniform(0.5, 2.0, 300)

    def loss(fitted):
        signed = np.where(labels, design @ fitted, -design @ fitted)
        return -(weights @ special.log_expit(signed)) + 0.5 * 7.0 * (fitted[1:] ** 2).sum()

    expected = optimize.minimize(loss, np.zeros(4), method="BFGS", tol=1e-10).x
    found = logistic_regression(design, labels, weights, penalty=7.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_separable_labels_have_a_solution_where_weights_cost():
    design = np.column_stack([np.ones(40), np.linspace(-1, 1, 40)])
    found = logistic_regression(design, design[:, 1] > 0, np.ones(40), penalty=1.0)
    assert np.isfinite(found).all()
    assert found[1] > 1


def test_a_stack_is_better_than_its_models_and_calibrated_on_other_pairs():
    scores, ends, labels = drawn(20_000)
    others, other_ends, other_labels = drawn(20_000, seed=1)
    logits = fit_stack(scores, ends, labels).logits(others, other_ends)
    best = max(roc_auc(other_labels, each) for each in others)
    assert roc_auc(other_labels, logits) > best + 0.05
    for high in (False, True):
        part = (logits > 0) == high
        rate = special.expit(logits[part]).mean()
        assert rate == pytest.approx(other_labels[part].mean(), abs=0.01)


def test_a_stack_does_not_depend_on_the_scale_of_scores():
    scores, ends, labels = drawn(500)
    other_units = [100 * scores[0], scores[1]]
    found = fit_stack(scores, ends, labels).logits(scores, ends)
    again = fit_stack(other_units, ends, labels).logits(other_units, ends)
    np.testing.assert_allclose(found, again, rtol=1e-6)


def test_a_grid_holds_what_its_pairs_give():
    rng = np.random.default_rng(2)
    scores = [rng.normal(size=(5, 4)) for _ in range(2)]
    senders, receivers = np.arange(5) % 2 == 0, np.arange(4) < 2
    stack = Stack(0.3, rng.normal(size=len(names(["a", "b"]))))
    grid = stack.logits(scores, Ends(senders[:, None], receivers[None]))
    for s in range(5):
        for r in range(4):
            ends = Ends(senders[[s]], receivers[[r]])
            one = stack.logits([each[[s], [r]] for each in scores], ends)
            weights = dict(zip(names(["a", "b"]), stack.weights, strict=True))
            expected = stack.bias + sum(
                each[s, r]
                * (
                    weights[name]
                    + senders[s] * weights[f"{name} * warm_sender"]
                    + receivers[r] * weights[f"{name} * warm_receiver"]
                )
                for name, each in zip("ab", scores, strict=True)
            )
            expected += senders[s] * weights["warm_sender"]
            expected += receivers[r] * weights["warm_receiver"]
            assert one[0] == pytest.approx(expected)
            assert grid[s, r] == pytest.approx(expected)


def test_what_never_changes_weighs_nothing():
    scores, ends, labels = drawn(400)
    found = fit_stack([*scores, np.ones(400)], ends, labels)
    assert dict(zip(names(["a", "b", "c"]), found.weights, strict=True))["c"] == 0
