"""The sections of a report about where the numbers come from: data, training, configs, times."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star_jax.pipeline.report import figures
from star_jax.pipeline.report.content import ReportContent
from star_jax.pipeline.report.embedding_map import draw_map
from star_jax.pipeline.report.markup import Cell, code, columns, details, paragraph, table
from star_jax.pipeline.tables.read import TablesMeta

_YES, _NO = "yes", ""


def training(content: ReportContent) -> str:
    """Learning curves of every model that left a log."""
    used = content.evaluation["text_training"]
    parts = [
        paragraph(
            f"The text model was trained on {used['num_epochs']:.2f} epochs of "
            f"{used['num_train_pairs']:,} pairs, in {used['num_steps']:,} steps."
        )
    ]
    for found in content.trainings:
        name, title = f"curves-{found.model.replace('+', '-')}", f"Learning curves of {found.model}"
        colour = figures.MODEL_COLOURS[found.model]
        parts.append(figures.learning_curves(name, title, found.curves, colour))
    return "\n".join(parts)


def embedding_maps(content: ReportContent, workdir: Path, max_points: int) -> str:
    """Both sides of the main task."""
    task = content.meta.tasks[content.evaluation["main_task"]]
    folder = workdir / "graph_embeddings"
    exported = [t for t in dict.fromkeys((task.receiver, task.sender)) if (folder / t).is_dir()]
    if not exported:
        return paragraph(f"No vectors of {task.sender} or {task.receiver} nodes were exported.")
    return columns(*(draw_map(workdir, folder, content.meta, t, max_points) for t in exported))


def data(meta: TablesMeta) -> str:
    """What was imported."""
    nodes = [
        [
            name,
            f"{node.count:,}",
            _YES if node.has_texts else _NO,
            str(len(node.categorical) or ""),
            str(len(node.dense) or ""),
            _YES if node.has_time else _NO,
        ]
        for name, node in meta.node_types.items()
    ]
    edges = [
        [
            f"{edge.sender} {edge.relation} {edge.receiver}",
            Cell(edge.kind, "word"),
            f"{edge.count:,}",
            _YES if edge.has_time else _NO,
            _YES if edge.has_split else _NO,
        ]
        for edge in meta.edge_types
    ]
    pairs = [
        [task, *(Cell(text, "word") for text in (split, _counts(counts)))]
        for task, about in meta.tasks.items()
        for split, counts in about.counts.items()
    ]
    return "\n".join(
        [
            columns(
                table(
                    "Nodes",
                    ["type", "count", "texts", "categorical", "dense", "time"],
                    nodes,
                ),
                table("Edges", ["type", Cell("kind", "word"), "count", "time", "split"], edges),
            ),
            table("Tasks", ["task", Cell("split", "word"), Cell("pairs", "word")], pairs),
            paragraph(
                "Times are unix seconds."
                if meta.time_unit == "unix_s"
                else "Times are ordinal: an order without a clock."
            ),
            details("What the import noted", code(_json(meta.import_report))),
        ]
    )


def reproduction(content: ReportContent, command: str) -> str:
    """The command, the time of every stage, and all configs."""
    parts = [paragraph("Made by"), code(command)]
    stages = content.stages
    if stages:
        seconds = {stage.name: stage.seconds for stage in stages}
        parts.append(figures.stage_times(seconds))
        parts.append(
            paragraph(f"Together {sum(seconds.values()) / 60:.1f} minutes, before this page.")
        )
    else:
        parts.append(paragraph("Stage times are noted by `star run`; these stages ran one by one."))
    parts += [details(f"Config of {stage.name}", code(_json(stage.config))) for stage in stages]
    return "\n".join(parts)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
