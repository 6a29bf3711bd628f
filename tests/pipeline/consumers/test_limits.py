"""Which losses break a contract, from rows as they are written."""

import dataclasses
import math

import pytest

from star_jax.pipeline.consumers.check import Answers
from star_jax.pipeline.consumers.limits import Limits, add_p_values, breaks

NONE = Limits(**dict.fromkeys(field.name for field in dataclasses.fields(Limits)))


def part(group, name, drop, error):
    row = {"question": "apply", "consumer": "trees", "metric": "auc_uniform"}
    scores = {"old": 0.8, "served": 0.8 - drop, "drop": drop, "standard_error": error}
    return row | scores | {"group": group, "slice": name}


def beyond(drop, limit, error):
    """One-sided normal tail, by the error function."""
    return math.erfc((drop - limit) / error / 2**0.5) / 2


def test_a_slice_breaks_its_limit_only_with_confidence():
    rows = [
        part("cohort", "sure", 0.11, 0.02),
        part("cohort", "unsure", 0.11, 0.05),
        part("cohort", "better", -0.1, 0.02),
        part("cohort", "alone", 0.5, None),
        part("cohort", "exact", 0.06, 0.0),
        part("cold", "cold_member", 0.11, 0.05),
        part("warm", "warm_member", 0.4, 0.01),
    ]
    answers = Answers([], rows, {})
    limits = dataclasses.replace(NONE, cohort_drop=0.05, cold_drop=0.02)
    add_p_values(answers, limits)
    found = {row["slice"]: row["p_value"] for row in rows}
    # Holm: of four tests in the order of their p-values, times 4, 3, 2, 1, and never falling.
    assert found["exact"] == 0
    assert found["sure"] == pytest.approx(3 * beyond(0.11, 0.05, 0.02), rel=0.01)
    assert found["unsure"] == pytest.approx(2 * beyond(0.11, 0.05, 0.05), rel=0.01)
    assert found["better"] == 1
    assert found["cold_member"] == pytest.approx(beyond(0.11, 0.02, 0.05), rel=0.01)
    assert found["alone"] is found["warm_member"] is None
    lines = breaks(answers, [], [], limits, 0.95)
    assert [line.split(" on ")[1].split(" (p")[0] for line in lines] == [
        "sure",
        "exact",
        "cold_member",
    ]
    assert lines[0].startswith(
        "cohort_drop 0.05: trees of apply loses 0.11 of auc_uniform (0.8 -> "
    )
    add_p_values(answers, NONE)
    assert not breaks(answers, [], [], NONE, 0.95)


def test_a_metric_breaks_its_limit_only_with_confidence():
    rows = [part("all", name, 0.04, error) for name, error in (("sure", 0.005), ("unsure", 0.02))]
    answers = Answers(rows, [], {})
    limits = dataclasses.replace(NONE, auc_drop=0.02)
    add_p_values(answers, limits)
    assert rows[0]["p_value"] == pytest.approx(2 * beyond(0.04, 0.02, 0.005), rel=0.01)
    assert rows[1]["p_value"] == pytest.approx(beyond(0.04, 0.02, 0.02), rel=0.01)
    (line,) = breaks(answers, [], [], limits, 0.95)
    assert line.startswith("auc_drop 0.02: trees of apply loses 0.04 of auc_uniform (0.8 -> 0.76)")


def test_a_loss_as_large_as_the_limit_is_allowed():
    answers = Answers([part("all", "exact", 0.02, 0.0)], [], {})
    limits = dataclasses.replace(NONE, auc_drop=0.02)
    add_p_values(answers, limits)
    assert breaks(answers, [], [], limits, 0.95) == []
    answers.metrics[0]["drop"] = 0.0201
    add_p_values(answers, limits)
    assert len(breaks(answers, [], [], limits, 0.95)) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auc_drop": -0.1}, "auc_drop -0.1 must be >= 0, or None for no limit"),
        ({"neighbour_overlap": 1.5}, "neighbour_overlap 1.5 must be a share <= 1"),
    ],
)
def test_limits_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Limits(**fields)
