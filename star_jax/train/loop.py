"""The training loop of both halves."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from star_jax.parallel import processes
from star_jax.shapes import PyTree
from star_jax.train.checkpoints import Best, Checkpointer, step_path
from star_jax.train.gradients import Metrics
from star_jax.train.meter import Arithmetic, Counts, Meter
from star_jax.train.plan import Plan, Timing, stale
from star_jax.train.reporter import Progress, Reporter
from star_jax.train.state import TrainState
from star_jax.train.step import Step
from star_jax.train.stopping import stopping

__all__ = ["Arithmetic", "Batches", "Counts", "Trained", "Validate", "measure", "train"]

_MEASURED_STEPS = 4
_GUARDED = ("loss", "gradient_norm")  # What must be finite.

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
    peak_flops: float | None,
    rate: Callable[[int], float],
    plan: Plan,
    validate: Validate,
    checkpointer: Checkpointer,
    reporter: Reporter,
    accept_from: int = 0,
) -> Trained:
    """Trains from the newest checkpoint, or from `state` when there is none.

    Args:
      name: Of the progress lines.
      state: Before the first step; given away.
      batches: Position and order decide the data of every step.
      unit: What `Counts.units` counts.
      peak_flops: A second, of all devices together; None: not known.
      rate: Step, counted from 0 -> learning rate.
      validate: Called before the first step, every `plan.validate_every` steps, and at the end.
      accept_from: First step whose score counts: until then the newest checkpoint is the best.

    Raises:
      FloatingPointError: A loss or a gradient norm is not finite. Its batch alone is saved.
      Stopped: A signal asked for it. The state after the step that ran is saved.
    """
    with stopping(processes.settled) as stop:
        state, best = _begin(state, batches, validate, checkpointer, reporter)
        done = int(state.step)
        progress = Progress(name, float(plan.num_steps), unit)
        progress.skip(float(done))
        reports = _Reports(reporter, progress, Meter(unit, peak_flops), count, unit)
        saved, saved_at = done, time.monotonic()
        while not (_over(plan, done, best) or (stop.settled(done) and saved == done)):
            batch, waited_s = _next(batches)
            learning_rate = rate(done)
            state, metrics = step(state, frozen, step.place(batch), learning_rate)
            done += 1
            reports.begun(_Begun(done, batch, metrics, learning_rate, waited_s))
            validating = done % plan.validate_every == 0 or done == plan.num_steps
            late = processes.settled(done, float(time.monotonic() - saved_at > plan.checkpoint_s))
            if validating or late or stop.settled(done):
                reports.finish()  # Before anything is saved: this step must be finite.
                with reports.pausing():
                    if validating:
                        best = _validate(validate, state, reporter, best, accept_from)
                    checkpointer.save(state, batches.get_state(), best)
                saved, saved_at = done, time.monotonic()
    reporter.close()
    stop.check(done, step_path(checkpointer.folder, done))
    if done < plan.num_steps:
        _log.info("stopped at step %d: no validation was better than that of %d", done, best.step)
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


def _begin(
    state: TrainState,
    batches: Batches,
    validate: Validate,
    checkpointer: Checkpointer,
    reporter: Reporter,
) -> tuple[TrainState, Best]:
    """Goes to the newest checkpoint; where there is none, the first one is made."""
    restored = checkpointer.restore_last(state)
    if restored is not None:
        state = restored.state
        batches.set_state(restored.position)
    reporter.resume(int(state.step))
    if restored is not None and restored.best is not None:
        return state, restored.best
    best = _validate(validate, state, reporter, None, 0)
    checkpointer.save(state, batches.get_state(), best)
    return state, best


def _over(plan: Plan, done: int, best: Best) -> bool:
    return done >= plan.num_steps or stale(plan, done, best.step)


def _next(batches: Batches) -> tuple[Any, float]:
    """The next batch, and the seconds it was waited for."""
    begun = time.monotonic()
    return next(batches), time.monotonic() - begun


def _validate(
    validate: Validate, state: TrainState, reporter: Reporter, best: Best | None, accept_from: int
) -> Best:
    step = int(state.step)
    metrics = validate(state)
    reporter.log(step, "val", metrics)
    _log.info("step %d: %s", step, ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
    score = metrics["score"]
    if best is None or best.step < accept_from or score > best.value:
        return Best(step, score)
    return best


class _Begun(NamedTuple):
    """A step that the devices were given."""

    step: int
    batch: Any
    metrics: Metrics  # On the devices, perhaps not computed yet.
    learning_rate: float
    waited_s: float


class _Reports:
    """Reports every step while the devices do the next one: they never wait for the host."""

    def __init__(
        self,
        reporter: Reporter,
        progress: Progress,
        meter: Meter,
        count: Callable[[Any], Counts],
        unit: str,
    ) -> None:
        self._reporter, self._progress, self._meter = reporter, progress, meter
        self._count, self._unit = count, unit
        self._last: _Begun | None = None

    def begun(self, step: _Begun) -> None:
        """Reports the step before this one."""
        self.finish()
        self._last = step

    def finish(self) -> None:
        """Waits for the step that is not reported yet, and reports it."""
        if self._last is None:
            return
        last, self._last = self._last, None
        values = {name: float(value) for name, value in jax.device_get(dict(last.metrics)).items()}
        _check_finite(values, last, self._reporter.folder)
        counts = self._count(last.batch)
        self._meter.advance(counts, last.waited_s)
        values |= {
            "learning_rate": last.learning_rate,
            "padding": 1.0 - counts.units / counts.slots,
            **counts.figures,
        } | self._meter.figures()
        self._progress.advance(1.0, float(counts.units), note=_note(values, self._unit))
        values["eta_s"] = self._progress.left_s
        self._reporter.log(last.step, "train", values)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """What is done within does not slow the rates of training, but does the ETA."""
        with self._meter.pausing(), self._progress.pausing():
            yield


def _check_finite(values: Mapping[str, float], step: _Begun, folder: Path) -> None:
    """A run that diverged stops instead of training on NaN, with the batch that did it."""
    wrong = [f"{n} is {values[n]}" for n in _GUARDED if not math.isfinite(values[n])]
    if wrong:
        path = folder / "nan" / f"step-{step.step:08d}.npz"
        path.parent.mkdir(exist_ok=True)
        leaves = jax.tree.leaves_with_path(step.batch)
        np.savez(path, **{keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves})
        raise FloatingPointError(
            f"{' and '.join(wrong)} at step {step.step}; its batch is in {path}, the last "
            "checkpoint is as it was; lower the learning rate, or train in float32"
        )


def _note(values: Mapping[str, float], unit: str) -> str:
    """What a progress line says beside rate and ETA; what is not known is not said."""
    shares = {
        f"real {unit}": 1.0 - values["padding"],
        "real neighbours": values.get("neighbour_fill"),
        "real text tokens": values.get("text_fill"),
        "MFU": values.get("mfu"),
        "HFU": values.get("hfu"),
        "data wait": values.get("data_wait"),
        "sampling": values.get("sampling_share"),
        "gather": values.get("gather_share"),
        "compute": values.get("compute_share"),
    }
    memory = {
        "peak memory": values.get("peak_device_bytes"),
        "peak RSS": values.get("peak_rss_bytes"),
    }
    return ", ".join(
        [
            f"loss {values['loss']:.4f}",
            *(f"{n} {100 * share:.0f} %" for n, share in shares.items() if share is not None),
            *(f"{n} {size / 1e9:.2f} GB" for n, size in memory.items() if size is not None),
        ]
    )
