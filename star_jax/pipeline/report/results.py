"""The sections of a report about how good the models are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from star_jax.evaluation.metrics import kinds, rows_of
from star_jax.pipeline.report import figures
from star_jax.pipeline.report.content import ReportContent
from star_jax.pipeline.report.markup import Cell, cards, columns, details, paragraph, table
from star_jax.pipeline.sender_ranking import ACTIVE, SENDER, WEIGHED

_BEST_MODEL = "text+graph"
_RANKING = ("recall@10", "recall@100", "ndcg@10")
_ABSENT = "–"  # noqa: RUF001 # A dash, as tables have it.
_SIGNIFICANT = 0.05


def summary(content: ReportContent) -> str:
    """Headline numbers, all methods in one table, and their intervals."""
    models, references = content.main["models"], content.main["references"]
    keys = _auc_keys(content)
    ranking = [key for key in _RANKING if any(key in found for found in models.values())]
    senders = [f"{prior}{SENDER}{key}" for prior in ("", ACTIVE, WEIGHED) for key in _RANKING]
    senders = [key for key in senders if any(key in found for found in models.values())]
    return "\n".join(
        [
            cards(_headlines(content)),
            _methods("Test split: models and references", [*keys, *ranking], models, references)
            + paragraph(
                "AUC is the chance that a positive outranks a negative of that kind (0.5 is a coin "
                "toss). Recall@k is the share of a sender's true links among the first k; NDCG@10 "
                "also rewards a place near the top. The best model or reference of each column "
                "is marked. Stacked: all models together, by a logistic regression on their "
                "scores and on which ends have links, fitted on the validation split."
            ),
            _methods("Test split: senders for a receiver", senders, models, references)
            + paragraph(
                "The other direction: each receiver orders all senders that were linked before. "
                "Active: the score plus the log of how many links the sender has so far. Weighed: "
                "score, that log and the one of recent links, by weights that the validation split "
                "taught."
            )
            if senders
            else "",
            figures.auc_intervals(
                content.evaluation["intervals"],
                {**models, **references},
                keys,
                content.evaluation["level"],
            ),
            _gains(content.evaluation["gains"], content.evaluation["level"]),
        ]
    )


def slices(content: ReportContent) -> str:
    """AUC where one side is warm or cold, and on the planted slices."""
    models, references = content.main["models"], content.main["references"]
    parts = []
    for key in _auc_keys(content):
        names = [name for name in _all_keys(models) if name.startswith(f"{key}_")]
        if names:
            head = [name.removeprefix(f"{key}_").replace("_", " ") for name in names]
            parts.append(_methods(f"{key}, by slice", names, models, references, head=head))
    parts.append(
        paragraph(
            "Warm: has links that the split may see. Cold: has none, only texts and attributes."
        )
    )
    return "\n".join(parts)


def diagnostics(content: ReportContent) -> str:
    """ROC, reliability and calibration on the first kind of negative."""
    kind = kinds(content.pairs)[0]
    rows = rows_of(content.pairs, kind)
    shown = [name for name in content.scores if not name.endswith(" strict_time")]
    scores = {name: content.scores[name][rows] for name in shown}
    calibration = content.evaluation["calibration"]
    numbers = [
        [
            Cell(name, "model"),
            Cell(rate.replace("_", " "), "word"),
            *(_figure(found[rate][key]) for key in ("ece", "log_loss", "slope", "intercept")),
        ]
        for name, found in calibration.items()
        for rate in found
    ]
    shift = next(iter(calibration.values()))["shifted"]["prior_shift"]
    return columns(
        figures.roc(content.pairs.label[rows], scores, kind),
        figures.reliability(calibration, "as_sampled"),
    ) + table(
        f"Calibration against {kind} negatives",
        ["model", Cell("rate", "word"), "expected error", "log loss", "slope", "intercept"],
        numbers,
        note="Slope 1 and intercept 0 are calibrated; a slope below 1 is overconfident. "
        f"Shifted: as the pairs would be with {math.exp(-shift):.3g} negatives for each "
        f"of these; {shift:+.3f} is added to every logit. Calibrated, where it is shown: by the "
        "export's calibration.json, fitted on the validation split, at its own rate.",
    )


def cohorts(content: ReportContent) -> str:
    """AUC by group of senders, for the best model."""
    found = content.evaluation["cohorts"][_BEST_MODEL]
    if not content.meta.cohorts:
        return paragraph("The set declares no cohort columns.")
    single = [c for c in found["cohorts"] if c["column"] in content.meta.cohorts]
    crossed = [c for c in found["cohorts"] if c["column"] not in content.meta.cohorts]
    hidden = sum(found["suppressed"].values())
    parts = [
        _cohort_table(f"AUC by cohort, {_BEST_MODEL}", single),
        paragraph(
            "The gap is the cohort's AUC minus that of all others. A marked one is beyond the "
            "allowed bound with confidence, all cohorts tested together. Too small to show: "
            f"{hidden}."
        ),
    ]
    if crossed:
        parts.append(details("Pairs of cohorts", _cohort_table("AUC by pair of cohorts", crossed)))
    return "\n".join(parts)


def other_views(content: ReportContent) -> str:
    """Strict time, the validation split, and the other tasks."""
    main_task = content.evaluation["main_task"]
    parts = []
    strict = content.main["strict_time"]
    if strict:
        models = {
            f"{name}, {rule}": found[name]
            for name in strict
            for rule, found in (("split rule", content.main["models"]), ("strict time", strict))
        }
        parts.append(_methods("Which past may be seen", _auc_keys(content), models, {}))
        parts.append(
            paragraph(
                "Split rule: the graph of all earlier splits, as the references were made. Strict "
                "time: only what was there before each pair's own time."
            )
        )
    for task, splits in content.evaluation["tasks"].items():
        for split, found in splits.items():
            if (task, split) != (main_task, "test"):
                keys = [
                    key
                    for key in _all_keys(found["models"])
                    if key in _RANKING or key.count("_") == 1
                ]
                models, references = found["models"], found["references"]
                parts.append(_methods(f"{task}, {split} split", keys, models, references))
    if content.leaks is not None:
        parts.append(_leak_table(content.leaks["kinds"]))
    return "\n".join(parts)


def _leak_table(kinds: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            Cell(kind.replace("_", " "), "word"),
            f"{found['reachable']:,}",
            Cell(f"{sum(found['reached'].values()):,}", "bad" if found["problem"] else ""),
            Cell(found["problem"] or "none", "word"),
        ]
        for kind, found in kinds.items()
    ]
    return table(
        "Leak audit",
        [Cell("canaries", "word"), "sampled without rules", "with rules", Cell("leak", "word")],
        rows,
        note="Edges and texts that no training example may see, planted into a copy of the graph.",
    )


def _headlines(content: ReportContent) -> list[tuple[str, str, str]]:
    key = _auc_keys(content)[0]
    models, references = content.main["models"], content.main["references"]
    best = models[_BEST_MODEL]
    low, high = content.evaluation["intervals"][_BEST_MODEL][key]
    found = [(f"{key}, {_BEST_MODEL}", _figure(best[key]), f"between {low:.4f} and {high:.4f}")]
    found.append(
        ("gain over text alone", f"{best[key] - models['text'][key]:+.4f}", "by adding the graph")
    )
    rivals = {n: r[key] for n, r in references.items() if key in r and n != "optimum"}
    if rivals:
        rival = max(rivals, key=lambda name: rivals[name])
        remark = f"best reference: {rival}, {rivals[rival]:.4f}"
        found.append(("gain over references", f"{best[key] - rivals[rival]:+.4f}", remark))
    if "optimum" in references:
        optimum = references["optimum"][key]
        found.append(
            ("distance to the optimum", f"{optimum - best[key]:.4f}", f"optimum {optimum:.4f}")
        )
    if "recall@10" in best:
        found.append(("recall@10", _figure(best["recall@10"]), f"{_BEST_MODEL}, all candidates"))
    training = content.evaluation["text_training"]
    remark = f"of {training['num_train_pairs']:,} pairs, in {training['num_steps']:,} steps"
    found.append(("text training, epochs", f"{training['num_epochs']:.2f}", remark))
    return found


def _auc_keys(content: ReportContent) -> list[str]:
    return [f"auc_{kind}" for kind in kinds(content.pairs)]


def _all_keys(methods: Mapping[str, Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for found in methods.values() for key in found))


def _methods(
    caption: str,
    keys: Sequence[str],
    models: Mapping[str, Mapping[str, float]],
    references: Mapping[str, Mapping[str, float]],
    *,
    head: Sequence[str] = (),
) -> str:
    """One row per method; models first and bold; the best of each column marked."""
    rivals = {**models, **{n: found for n, found in references.items() if n != "optimum"}}
    best = {key: max((f[key] for f in rivals.values() if key in f), default=None) for key in keys}
    rows = [
        [
            Cell(name, "model" if name in models else ""),
            *(
                Cell(
                    _figure(found.get(key)),
                    "best" if name in rivals and found.get(key, _ABSENT) == best[key] else "",
                )
                for key in keys
            ),
        ]
        for name, found in {**models, **references}.items()
        if any(key in found for key in keys)
    ]
    return table(caption, ["method", *(head or keys)], rows)


def _gains(gains: Sequence[Mapping[str, Any]], level: float) -> str:
    rows = [
        [
            f"{gain['model']} over {gain['over']}",
            Cell(gain["metric"], "word"),
            Cell(f"{gain['gain']:+.4f}", _verdict(gain)),
            _interval(gain["interval"]),
            _p_value(gain["p_value"]),
        ]
        for gain in gains
    ]
    return table(
        "Is the gain more than chance?",
        ["models", Cell("metric", "word"), "gain", f"{100 * level:.0f} % interval", "p"],
        rows,
        note="Paired tests on the same pairs and queries; p-values adjusted for all rows (Holm).",
    )


def _verdict(gain: Mapping[str, Any]) -> str:
    if gain["p_value"] >= _SIGNIFICANT:
        return ""
    return "best" if gain["gain"] > 0 else "bad"


def _cohort_table(caption: str, rows: Sequence[Mapping[str, Any]]) -> str:
    return table(
        caption,
        ["cohort", Cell("value", "word"), "members", "pairs", "AUC", "interval", "gap", "p"],
        [
            [
                row["column"],
                Cell(row["value"], "word"),
                f"{row['num_members']:,}",
                f"{row['num_pairs']:,}",
                _figure(row["auc"]),
                _interval(row["interval"]),
                Cell(f"{row['gap']:+.4f}", "bad" if row["beyond_bound"] else ""),
                _p_value(row["p_value"]),
            ]
            for row in rows
        ],
    )


def _figure(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.4f}"


def _interval(ends: Sequence[float | None]) -> str:
    low, high = ends
    return _ABSENT if low is None or high is None else f"{low:.4f} to {high:.4f}"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
