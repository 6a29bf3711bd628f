"""The figures of a report: curves, intervals, reliability, times."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from star_jax.evaluation.auc import roc_curve
from star_jax.pipeline.report.drawing import INK, SOFT, inline_svg
from star_jax.pipeline.report.markup import LegendEntry, figure

# Distinct also without colour vision (Okabe and Ito), dark enough on white.
MODEL_COLOURS = {
    "text": "#0072b2",
    "graph": "#c75000",
    "text+graph": "#007a5a",
    "stacked": "#6a3d9a",
}
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#6a3d9a")
OTHER = "#b3bcc5"
_MUTED = ("#7d6b57", "#8b97a2", "#a084a8", "#5b8a93", "#a89a52", "#b07a7a", "#6f8f66", "#565f69")
_MAX_ROC_POINTS = 400
_SMOOTHED_SHARE = 0.02


class Curve(NamedTuple):
    """A line of a learning curve: step and value."""

    step: Float[np.ndarray, " P"]
    value: Float[np.ndarray, " P"]


def method_colours(names: Sequence[str]) -> dict[str, str]:
    """Colour of each method: models have their own, references are muted, the optimum is ink."""
    own = {**MODEL_COLOURS, "optimum": INK}
    muted = itertools.cycle(_MUTED)
    return {name: own[name] if name in own else next(muted) for name in names}


def roc(
    labels: Bool[np.ndarray, " B"], scores: Mapping[str, Float[np.ndarray, " B"]], kind: str
) -> str:
    """ROC curve of every method on one kind of negative."""
    colours = method_colours(list(scores))

    def draw(canvas: Figure) -> None:
        axes = canvas.subplots()
        axes.plot([0, 1], [0, 1], color=OTHER, linewidth=1)
        for name, values in scores.items():
            curve = roc_curve(labels, values)
            keep = np.linspace(0, len(curve.false_positive_rate) - 1, _MAX_ROC_POINTS)
            at = np.unique(keep.astype(np.int64))
            line = axes.plot(curve.false_positive_rate[at], curve.true_positive_rate[at])[0]
            line.set(color=colours[name], linewidth=2.2 if name in MODEL_COLOURS else 1.1)
            line.set_linestyle("--" if name == "optimum" else "-")
        axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        axes.set(xlim=(0, 1), ylim=(0, 1.005))

    title = f"ROC curves against {kind} negatives"
    legend = [LegendEntry(name, colours[name], name == "optimum") for name in scores]
    return figure(
        inline_svg("roc", title, (5.2, 4.6), draw),
        f"{title}, test split. The diagonal is chance.",
        legend,
    )


def reliability(calibration: Mapping[str, Any], rate: str) -> str:
    """Predicted against observed rate, one line per model."""

    def draw(canvas: Figure) -> None:
        axes = canvas.subplots()
        axes.plot([0, 1], [0, 1], color=OTHER, linewidth=1)
        for name, found in calibration.items():
            bins = found[rate]["bins"]
            axes.plot(
                bins["predicted"],
                bins["observed"],
                color=MODEL_COLOURS[name],
                marker="o",
                markersize=4,
            )
        axes.set(xlabel="mean predicted probability", ylabel="observed rate", aspect="equal")
        axes.set(xlim=(0, 1), ylim=(0, 1))

    title = "Reliability: predicted probability against observed rate"
    return figure(
        inline_svg("reliability", title, (5.2, 4.6), draw),
        f"{title}, test split, bins of equal mass. On the diagonal, predictions are as they say.",
        [LegendEntry(name, MODEL_COLOURS[name]) for name in calibration],
    )


def auc_intervals(
    intervals: Mapping[str, Mapping[str, Sequence[float]]],
    metrics: Mapping[str, Mapping[str, float]],
    keys: Sequence[str],
    level: float,
) -> str:
    """A dot and its interval per method, one panel per kind of negative.

    Args:
      intervals: Method -> metric -> lower and upper end; methods without are dots alone.
      metrics: Method -> metric -> value.
      keys: The metrics, one panel each.
      level: What the intervals cover.
    """
    names = [name for name, found in metrics.items() if any(key in found for key in keys)]
    colours = method_colours(names)

    def draw(canvas: Figure) -> None:
        panels = canvas.subplots(1, len(keys), sharey=True, squeeze=False)[0]
        for axes, key in zip(panels, keys, strict=True):
            axes.axvline(0.5, color=OTHER, linewidth=1)
            for row, name in enumerate(names):
                if key not in metrics[name]:
                    continue
                axes.plot(metrics[name][key], row, "o", color=colours[name], markersize=6)
                if name in intervals:
                    axes.plot(intervals[name][key], [row, row], color=colours[name])
            axes.set(title=key.removeprefix("auc_"), xlabel="AUC")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()

    title = "AUC by kind of negative"
    return figure(
        inline_svg("intervals", title, (3.2 * len(keys) + 1.6, 0.3 * len(names) + 1.1), draw),
        f"{title}, test split, with {100 * level:.0f} % intervals where scores are known "
        "(pairs of one sender are one cluster). The grey line is chance.",
    )


def learning_curves(name: str, title: str, curves: Mapping[str, Curve], colour: str) -> str:
    """Training loss, and what was measured on the validation pairs."""
    validated = {label: curve for label, curve in curves.items() if label != "training loss"}
    shades = dict(zip(validated, itertools.cycle(PALETTE), strict=False))

    def draw(canvas: Figure) -> None:
        left, right = canvas.subplots(1, 2)
        loss = curves["training loss"]
        left.plot(loss.step, loss.value, color=colour, alpha=0.25, linewidth=0.8)
        left.plot(loss.step, _smooth(loss.value), color=colour)
        left.set(title="training loss", xlabel="step")
        for label, curve in validated.items():
            right.plot(curve.step, curve.value, color=shades[label], marker="o", markersize=3)
        right.set(title="validation", xlabel="step")

    legend = [LegendEntry(label, shade) for label, shade in shades.items()]
    caption = f"{title}: the strong line of the loss is a moving average."
    return figure(inline_svg(name, title, (8.4, 3.1), draw), caption, legend)


def stage_times(seconds: Mapping[str, float]) -> str:
    """A bar per stage, in the order they ran."""

    def draw(canvas: Figure) -> None:
        axes: Axes = canvas.subplots()
        axes.barh(range(len(seconds)), list(seconds.values()), color=MODEL_COLOURS["text"])
        axes.set_yticks(range(len(seconds)), list(seconds))
        axes.invert_yaxis()
        axes.set(xlabel="seconds")
        axes.grid(visible=False, axis="y")
        for row, value in enumerate(seconds.values()):
            axes.annotate(
                f"{value:,.0f} s",
                (value, row),
                (4, 0),
                textcoords="offset points",
                va="center",
                color=SOFT,
            )
        axes.margins(x=0.12)

    title = "Time of each stage"
    size = (7.0, 0.32 * len(seconds) + 0.8)
    return figure(inline_svg("times", title, size, draw), f"{title}, in the order they ran.")


def _smooth(values: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    """Mean over the last few values, fewer at the start."""
    width = max(1, round(_SMOOTHED_SHARE * len(values)))
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - width)
    return (total[end] - total[start]) / (end - start)
