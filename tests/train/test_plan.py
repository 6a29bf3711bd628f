import dataclasses

import pytest

from star_jax.config import InputError
from star_jax.train.plan import Plan, PlanConfig, Timing, settle, stale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    plan: PlanConfig


def plan(tmp_path, timing=None, like=None, **fields):
    def measure():
        assert timing is not None, "nothing to measure"
        return timing

    config = PlanConfig(**fields)
    return settle(
        config,
        path=tmp_path / "plan.json",
        job=Job(plan=config),
        steps_per_epoch=100.0,
        measure=measure,
        like=like,
    )


def test_without_a_budget_nothing_is_measured(tmp_path):
    settled = plan(tmp_path, budget_s=None, num_epochs=2.5)
    assert (settled.num_steps, settled.validate_every) == (250, 10)


def test_steps_given_are_steps_done(tmp_path):
    assert plan(tmp_path, num_steps=7).num_steps == 7


def test_budget_holds_training_and_validation(tmp_path):
    timing = Timing(step_s=1.0, validation_s=2.0, spent_s=20.0)
    settled = plan(tmp_path, timing, budget_s=100.0, num_epochs=9.0)
    assert settled.validate_every == 18  # 2 s of 20 s.
    validations = settled.num_steps // settled.validate_every + 1
    assert 90 < timing.spent_s + settled.num_steps + 2.0 * validations <= 100


def test_budget_larger_than_needed_changes_nothing(tmp_path):
    timing = Timing(step_s=0.01, validation_s=0.001, spent_s=1.0)
    settled = plan(tmp_path, timing, budget_s=100.0)
    assert (settled.num_steps, settled.validate_every) == (100, 10)


def test_budget_too_small_still_trains(tmp_path):
    assert plan(tmp_path, Timing(1.0, 1.0, 50.0), budget_s=3.0).num_steps == 1


@pytest.mark.parametrize("spent_s", [70.0, 99.0, 500.0])
def test_compiling_leaves_a_third_of_the_budget_to_the_steps(tmp_path, spent_s):
    """Where little is left or nothing: 90 s / 3 - 2 s of validation at the end, at 1.1 s a step."""
    settled = plan(tmp_path, Timing(1.0, 2.0, spent_s), budget_s=90.0, num_epochs=9.0)
    assert settled.num_steps == int(28 / (1.0 + 2.0 / 18))


def test_the_length_of_another_run_is_taken_where_a_budget_would_decide(tmp_path):
    first = plan(tmp_path, Timing(1.0, 2.0, 20.0), budget_s=100.0, num_epochs=9.0)
    like = tmp_path / "plan.json"
    (tmp_path / "second").mkdir()
    assert plan(tmp_path / "second", like=like, budget_s=100.0, num_epochs=9.0) == first
    assert plan(tmp_path / "third", like=like, num_steps=7).num_steps == 7
    with pytest.raises(InputError, match=r"nowhere.json does not exist.*train that first"):
        plan(tmp_path / "fourth", like=tmp_path / "nowhere.json", budget_s=100.0)


def test_the_stored_plan_wins_over_the_clock(tmp_path):
    first = plan(tmp_path, Timing(1.0, 2.0, 20.0), budget_s=100.0, num_epochs=9.0)
    assert plan(tmp_path, Timing(9.0, 9.0, 9.0), budget_s=100.0, num_epochs=9.0) == first


def test_another_config_is_refused(tmp_path):
    plan(tmp_path, num_steps=7)
    with pytest.raises(InputError, match=r"plan.num_steps: 7 -> 8"):
        plan(tmp_path, num_steps=8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "num_steps 0 must be >= 1"),
        ({"num_epochs": 0.0}, "num_epochs 0.0, validate_epochs 0.1 must be > 0"),
        ({"budget_s": -1.0}, "budget_s -1.0 must be > 0"),
        ({"patience": 0}, "patience 0 must be >= 1"),
        ({"validation_share": 1.0}, "validation_share 1.0 must be in"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PlanConfig(**fields)


@pytest.mark.parametrize("patience", [None, 1, 3])
def test_stale_counts_the_validations_since_the_best(patience):
    settled = Plan(40, 4, 10.0, 1e9, patience, None)
    for best in (0, 8):
        for step in range(best, 40):
            validations = [s for s in range(best + 1, step + 1) if s % 4 == 0]
            expected = patience is not None and len(validations) >= patience
            assert stale(settled, step, best) == expected
