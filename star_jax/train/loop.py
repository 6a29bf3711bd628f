"""The training loop of both halves."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from star_jax.shapes import PyTree
from star_jax.train.checkpoints import Best, Checkpointer
from star_jax.train.plan import Plan, Timing
from star_jax.train.reporter import Progress, Reporter
from star_jax.train.state import TrainState
from star_jax.train.step import Metrics, Step

_MEASURED_STEPS = 4

_log = logging.getLogger(__name__)


@runtime_checkable
class Batches(Protocol):
    """An iterator over host batches that can tell where it stands and go back there."""

    def __next__(self) -> Any:
        """The next batch: a NamedTuple of host arrays."""

    def get_state(self) -> dict[str, Any]:
        """JSON of the position after the batches given out so far."""
        ...

    def set_state(self, state: dict[str, Any], /) -> None:
        """Goes to a position."""


class Counts(NamedTuple):
    """Sizes of one host batch."""

    units: int  # What the rate counts: real tokens, pairs.
    slots: int  # The same with padding.


Validate = Callable[[TrainState], Mapping[str, float]]
"""Metrics on fixed validation data; `score` among them is what the best checkpoint maximises."""


class Trained(NamedTuple):
    """How a run ended."""

    state: TrainState  # After the last step.
    best: Best


def train(
    *,
    name: str,
    state: TrainState,
    frozen: PyTree,
    step: Step,
    batches: Batches,
    count: Callable[[Any], Counts],
    unit: str,
    rate: Callable[[int], float],
    plan: Plan,
    validate: Validate,
    checkpointer: Checkpointer,
    reporter: Reporter,
) -> Trained:
    """Trains from the newest checkpoint, or from `state` when there is none.

    Args:
      name: Of the progress lines.
      state: Before the first step; given away.
      batches: Position and order decide the data of every step.
      unit: What `Counts.units` counts.
      rate: Step, counted from 0 -> learning rate.
      validate: Called before the first step, every `plan.validate_every` steps, and at the end.
    """
    best = None
    if restored := checkpointer.restore_last(state):
        state, best = restored.state, restored.best
        batches.set_state(restored.position)
    done = int(state.step)
    reporter.resume(done)
    progress = Progress(name, float(plan.num_steps), unit)
    progress.skip(float(done))
    clock = _Clock()
    if best is None:
        best = _validate(validate, state, reporter, best)
        checkpointer.save(state, batches.get_state(), best)

    while done < plan.num_steps:
        with clock.waiting():
            batch = next(batches)
        learning_rate = rate(done)
        state, metrics = step(state, frozen, step.place(batch), learning_rate)
        done += 1
        counts = count(batch)
        values = _finite(metrics, done) | {
            "learning_rate": learning_rate,
            "padding": 1.0 - counts.units / counts.slots,
            "data_wait": clock.waited_share(),
        }
        reporter.log(done, "train", values)
        progress.advance(1.0, float(counts.units), note=_note(values))
        validated = done % plan.validate_every == 0 or done == plan.num_steps
        if validated:
            best = _validate(validate, state, reporter, best)
        if validated or clock.since_saved_s() > plan.checkpoint_s:
            checkpointer.save(state, batches.get_state(), best)
            clock.saved()
    reporter.close()
    return Trained(state, best)


def measure(
    *, state: TrainState, frozen: PyTree, step: Step, batches: Batches, validate: Validate
) -> Timing:
    """Times steps on a copy of the state, and leaves state and batches as they were."""
    start = time.monotonic()
    position = batches.get_state()
    copy = jax.tree.map(jnp.copy, state)
    seconds = []
    for _ in range(_MEASURED_STEPS):
        batch = next(batches)
        copy, _ = step(copy, frozen, step.place(batch), 0.0)  # The first call of a shape compiles.
        jax.block_until_ready(copy)
        begun = time.monotonic()
        copy, _ = step(copy, frozen, step.place(batch), 0.0)
        jax.block_until_ready(copy)
        seconds.append(time.monotonic() - begun)
    batches.set_state(position)
    validate(state)  # Compiles.
    begun = time.monotonic()
    validate(state)
    end = time.monotonic()
    return Timing(sum(seconds) / len(seconds), end - begun, end - start)


def _validate(validate: Validate, state: TrainState, reporter: Reporter, best: Best | None) -> Best:
    step = int(state.step)
    metrics = validate(state)
    reporter.log(step, "val", metrics)
    _log.info("step %d: %s", step, ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
    score = metrics["score"]
    return Best(step, score) if best is None or score > best.value else best


def _finite(metrics: Metrics, step: int) -> dict[str, float]:
    """Fetches the metrics; a run that diverged stops instead of training on NaN."""
    values = {name: float(value) for name, value in metrics.items()}
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(
            f"loss is {values['loss']} at step {step}: lower the learning rate, or train in float32"
        )
    return values


def _note(values: Mapping[str, float]) -> str:
    padding, data_wait = 100 * values["padding"], 100 * values["data_wait"]
    return f"loss {values['loss']:.4f}, padding {padding:.0f} %, data wait {data_wait:.0f} %"


class _Clock:
    """Time spent waiting for data, and since the last checkpoint."""

    def __init__(self) -> None:
        self._start = self._saved = time.monotonic()
        self._waited_s = 0.0
        self._begun = 0.0

    def waiting(self) -> "_Clock":
        return self

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._waited_s += time.monotonic() - self._begun

    def waited_share(self) -> float:
        return self._waited_s / max(time.monotonic() - self._start, 1e-9)

    def saved(self) -> None:
        self._saved = time.monotonic()

    def since_saved_s(self) -> float:
        return time.monotonic() - self._saved
