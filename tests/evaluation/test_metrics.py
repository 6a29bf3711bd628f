import numpy as np
import pytest

from star_jax.evaluation.metrics import LabelledPairs, kinds, pair_intervals, pair_metrics


@pytest.fixture
def pairs():
    return LabelledPairs(
        label=np.array([True, False, False, True, False]),
        negative=np.array(["", "near", "uniform", "", "uniform"]),
        sender=np.array([0, 0, 0, 1, 1]),
        marks={
            "warm_member": np.array([True, True, True, False, False]),
            "cold_member": np.array([False, False, False, True, True]),
            "cold_job": np.zeros(5, bool),
        },
    )


def test_auc_takes_all_positives_and_one_kind_of_negative(pairs):
    found = pair_metrics(pairs, np.array([3.0, 4.0, 1.0, 0.0, 2.0]))
    assert found == {
        "auc_uniform": 0.5,  # 3 beats both uniform negatives, 0 beats none.
        "auc_uniform_warm_member": 1.0,
        "auc_uniform_cold_member": 0.0,
        "auc_near": 0.0,
        "auc_near_warm_member": 0.0,  # No near negative of a cold member: no such entry.
    }
    assert kinds(pairs) == ["uniform", "near"]


def test_intervals_have_the_same_names(pairs):
    scores = np.array([3.0, 4.0, 1.0, 0.0, 2.0])
    intervals = pair_intervals(pairs, scores, 0.95)
    assert {name: i.auc for name, i in intervals.items()} == pair_metrics(pairs, scores)
