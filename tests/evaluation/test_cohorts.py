import numpy as np
import pytest

from star_jax.evaluation.auc import roc_auc
from star_jax.evaluation.cohorts import cohort_table, crosses


def market(num_members, weak=None):
    """Half of the members are A; the model sees nothing for the weak group."""
    rng = np.random.default_rng(0)
    member = np.repeat(np.arange(num_members), 6)
    labels = np.tile([True, True, True, False, False, False], num_members)
    group = np.where(member % 2 == 0, "A", "B")
    return (
        labels,
        np.where(group == weak, 0.0, labels) + rng.standard_normal(len(member)),
        member,
        group,
    )


def table(labels, scores, member, columns, min_members=20, bound=0.02):
    return cohort_table(
        labels,
        scores,
        member,
        {name: list(map(str, values)) for name, values in columns.items()},
        min_members=min_members,
        max_relative_gap=bound,
        level=0.95,
    )


def test_each_cohort_has_its_own_auc_and_the_gap_to_the_rest():
    labels, scores, member, group = market(100, weak="B")
    found = {c.value: c for c in table(labels, scores, member, {"group": group}).cohorts}
    a = group == "A"
    assert found["A"].auc.auc == pytest.approx(roc_auc(labels[a], scores[a]), abs=1e-12)
    assert found["A"].gap == pytest.approx(-found["B"].gap)
    assert (found["A"].num_members, found["A"].num_pairs) == (50, 300)


def test_a_planted_unfair_model_is_found_and_a_fair_one_is_not():
    for weak, expected in [("B", {"A", "B"}), (None, set())]:
        labels, scores, member, group = market(200, weak)
        unfair = table(labels, scores, member, {"group": group}).unfair(0.95)
        assert {c.value for c in unfair} == expected


def test_the_bound_is_relative_to_the_rest():
    labels, scores, member, group = market(200, weak="B")  # 0.5 against about 0.76.
    assert not table(labels, scores, member, {"group": group}, bound=0.7).unfair(0.95)


def test_small_and_unknown_cohorts_are_not_shown():
    labels, scores, member, group = market(100)
    group = np.where(member < 10, "tiny", group)
    group = np.where(member > 90, "", group)
    found = table(labels, scores, member, {"group": group})
    assert [c.value for c in found.cohorts] == ["A", "B"]
    assert found.suppressed == {"group": 1}
    others = np.isin(group, ["B", "tiny"])
    assert found.cohorts[0].rest.auc == pytest.approx(roc_auc(labels[others], scores[others]))


def test_many_tests_raise_the_p_value():
    labels, scores, member, group = market(100, weak="B")
    noise = np.random.default_rng(1)
    columns = {"group": group} | {
        f"noise{i}": noise.choice(["x", "y"], 100)[member] for i in range(4)
    }
    alone = table(labels, scores, member, {"group": group}).cohorts[0].p_value
    among = table(labels, scores, member, columns).cohorts[0].p_value
    assert among == pytest.approx(5 * alone)


def test_crosses_join_two_columns_where_both_are_known():
    crossed = crosses({"gender": ["F", "M", ""], "urgency": ["now", "", "now"], "x": ["1"] * 3})
    assert crossed["gender × urgency"] == ["F × now", "", ""]  # noqa: RUF001 # As shown.
    assert len(crossed) == 3
