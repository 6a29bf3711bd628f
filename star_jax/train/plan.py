"""How long a run is: settled once, stored, and read again by whoever resumes it.

A wall-clock budget becomes a number of steps after a few of them were timed; from then on the
run depends on no clock, so a killed and resumed run repeats an uninterrupted one bit by bit.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from star_jax import artefacts
from star_jax.config import InputError, check_same, to_json
from star_jax.parallel import processes

PLAN = "plan.json"  # Of a training folder.
_LEAST_SHARE = 1 / 3  # Of a budget, for steps, however long compiling takes.

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Length of a run: the epochs asked for, or as much of them as the budget allows."""

    num_steps: int | None = None  # Exact; the epochs and the budget then do not count.
    num_epochs: float = 1.0
    budget_s: float | None = 1200.0  # Training and validation together; None: no limit. Compiling
    # counts, but leaves a third to the steps: on a slow machine the run is longer, not worthless.
    validate_epochs: float = 0.1  # Validate this often,
    validation_share: float = 0.1  # but not more than this part of the measured time.
    checkpoint_s: float = 120.0  # Also save when the last checkpoint is this old.
    patience: int | None = None  # Stop after so many validations without a better score.

    def __post_init__(self) -> None:
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"num_steps {self.num_steps} must be >= 1")
        if not (self.num_epochs > 0 and self.validate_epochs > 0):
            raise ValueError(
                f"num_epochs {self.num_epochs}, validate_epochs {self.validate_epochs} must be > 0"
            )
        if self.budget_s is not None and not self.budget_s > 0:
            raise ValueError(f"budget_s {self.budget_s} must be > 0")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share {self.validation_share} must be in (0, 1)")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience {self.patience} must be >= 1")
        if not self.checkpoint_s >= 0:
            raise ValueError(f"checkpoint_s {self.checkpoint_s} must be >= 0")


class Timing(NamedTuple):
    """What the first steps took."""

    step_s: float
    validation_s: float
    spent_s: float  # All of the budget used so far, compiling included.


class Plan(NamedTuple):
    """The settled length of a run."""

    num_steps: int
    validate_every: int
    steps_per_epoch: float
    checkpoint_s: float
    patience: int | None
    timing: Timing | None


def settle(
    config: PlanConfig,
    *,
    path: Path,
    job: object,
    steps_per_epoch: float,
    measure: Callable[[], Timing],
    like: Path | None = None,
) -> Plan:
    """Reads the stored plan, or makes and stores it.

    Args:
      config: What was asked for.
      path: The plan's file, in the job's folder.
      job: Config of the whole job; a plan made for another one is refused.
      steps_per_epoch: Updates that see every example once.
      measure: Times a few steps and a validation; called only when a budget needs it.
      like: Plan of another run, whose length is taken where a budget would decide.

    Raises:
      InputError: There is no plan at `like`, or the one at `path` is another job's.
    """
    if processes.agreed(float(path.is_file())):
        stored = _read(path)
        check_same(json.dumps(stored.config), job, path)
        return stored.plan
    if like is not None and _budget(config) is not None:
        plan = _read(like).plan
    else:
        plan = _make(config, steps_per_epoch, measure)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = plan._asdict() | {"config": json.loads(to_json(job))}
    text = json.dumps(content, indent=1)
    processes.write_once(lambda: artefacts.write_text(path, text), "plan")
    _log.info(
        "plan: %d steps = %.2f epochs, validation every %d steps",
        plan.num_steps,
        plan.num_steps / steps_per_epoch,
        plan.validate_every,
    )
    return plan


def stale(plan: Plan, step: int, best_step: int) -> bool:
    """Whether a run stops early: the patience is over.

    It depends on steps alone, so a resumed run stops where an uninterrupted one does.

    Args:
      plan: Validations are at multiples of `validate_every`.
      step: Updates done.
      best_step: Where the best validation was.
    """
    without_gain = step // plan.validate_every - best_step // plan.validate_every
    return plan.patience is not None and without_gain >= plan.patience


class _Stored(NamedTuple):
    """What a plan's file holds."""

    plan: Plan
    config: dict[str, Any]


def _read(path: Path) -> _Stored:
    if not path.is_file():
        raise InputError(f"{path} does not exist, this run is to be as long; train that first")
    stored = artefacts.read_json(path, "config", *Plan._fields)
    timing = Timing(*stored["timing"]) if stored["timing"] else None
    plan = Plan(**{name: stored[name] for name in Plan._fields[:-1]}, timing=timing)
    return _Stored(plan, stored["config"])


def _budget(config: PlanConfig) -> float | None:
    """Seconds that the length is made for; None: it does not depend on how fast steps are."""
    return config.budget_s if config.num_steps is None else None


def num_steps(config: PlanConfig, steps_per_epoch: float) -> int:
    """What is asked for, before a budget shortens it."""
    return config.num_steps or max(1, math.ceil(config.num_epochs * steps_per_epoch))


def _make(config: PlanConfig, steps_per_epoch: float, measure: Callable[[], Timing]) -> Plan:
    validate_every = max(1, round(config.validate_epochs * steps_per_epoch))
    length = num_steps(config, steps_per_epoch)
    timing, budget_s = None, _budget(config)
    if budget_s is not None:
        timing = Timing(*map(processes.agreed, measure()))
        share = config.validation_share
        rarest = math.ceil(timing.validation_s / timing.step_s * (1.0 - share) / share)
        validate_every = max(validate_every, rarest)
        per_step_s = timing.step_s + timing.validation_s / validate_every
        left_s = max(budget_s - timing.spent_s, _LEAST_SHARE * budget_s)
        left_s -= timing.validation_s  # One at the end.
        length = min(length, max(1, int(left_s / per_step_s)))
    return Plan(
        length,
        min(validate_every, length),
        steps_per_epoch,
        config.checkpoint_s,
        config.patience,
        timing,
    )
