import numpy as np
import pytest

from star_jax.evaluation.auc import roc_auc
from star_jax.evaluation.significance import auc_difference, holm, mean_difference


def two_models(rng, num_members, gain):
    member = np.repeat(np.arange(num_members), 2)
    labels = np.tile([True, False], num_members)
    shared = rng.standard_normal(2 * num_members)
    first = (1 + gain) * labels + shared + 0.3 * rng.standard_normal(2 * num_members)
    second = labels + shared + 0.3 * rng.standard_normal(2 * num_members)
    return labels, first, second, member


def test_paired_error_agrees_with_a_bootstrap_over_members():
    rng = np.random.default_rng(0)
    labels, first, second, member = two_models(rng, 200, 0.3)
    rounds = []
    for _ in range(500):
        rows = (rng.integers(0, 200, 200)[:, None] * 2 + np.arange(2)).reshape(-1)
        rounds.append(roc_auc(labels[rows], first[rows]) - roc_auc(labels[rows], second[rows]))
    found = auc_difference(labels, first, second, member, 0.95)
    assert found.difference == pytest.approx(roc_auc(labels, first) - roc_auc(labels, second))
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(np.std(rounds), rel=0.12)


def test_false_alarms_are_as_rare_as_promised():
    rng = np.random.default_rng(1)
    p_values = [auc_difference(*two_models(rng, 80, 0.0), 0.95).p_value for _ in range(300)]
    assert 0.01 < np.mean(np.asarray(p_values) < 0.05) < 0.1


def test_equal_models_do_not_differ():
    labels, scores = np.array([True, False, True, False]), np.array([3.0, 1.0, 2.0, 4.0])
    found = auc_difference(labels, scores, scores, np.arange(4), 0.95)
    assert found == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_mean_difference_is_the_paired_normal_test():
    rng = np.random.default_rng(2)
    second = rng.random(50)
    first = second + 0.1 + 0.2 * rng.standard_normal(50)
    found = mean_difference(first, second, 0.95)
    error = np.std(first - second, ddof=1) / np.sqrt(50)
    assert found.low == pytest.approx(np.mean(first - second) - 1.959964 * error)
    assert found.p_value < 0.05
    assert mean_difference(first[:1], second[:1], 0.95).p_value == 1.0


def test_holm_against_its_step_down_rule():
    p_values = np.array([0.04, 0.01, 0.03, 0.005, 0.9])
    adjusted = holm(p_values)
    for level in (0.001, 0.02, 0.03, 0.05, 0.085, 0.1, 0.95):
        rejected = set()
        for step, index in enumerate(np.argsort(p_values)):
            if p_values[index] > level / (5 - step):
                break
            rejected.add(index)
        assert set(np.flatnonzero(adjusted <= level)) == rejected
