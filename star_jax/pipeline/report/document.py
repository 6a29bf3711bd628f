"""Puts the sections of a report into one self-contained page."""

from importlib import resources
from pathlib import Path

from star_jax.pipeline.report import background, results
from star_jax.pipeline.report.content import ReportContent
from star_jax.pipeline.report.markup import page, section


def document(content: ReportContent, workdir: Path, *, command: str, max_points: int) -> str:
    """The page.

    Args:
      content: From `gather`.
      workdir: Of the run, for the vectors of the map.
      command: The command line that made the page.
      max_points: Points on each map at most.
    """
    meta = content.meta
    task = meta.tasks[content.evaluation["main_task"]]
    parts = {
        "Results": results.summary(content),
        "Warm, cold and slices": results.slices(content),
        "Curves and calibration": results.diagnostics(content),
        "Cohorts": results.cohorts(content),
        "Other views": results.other_views(content),
        "Learning curves": background.training(content),
        "Embedding map": background.embedding_maps(content, workdir, max_points),
        "Data": background.data(meta),
        "Config, command, time": background.reproduction(content, command),
    }
    lead = (
        f"Predicting {content.evaluation['main_task']}: {task.sender} to {task.receiver}. "
        f"{meta.node_types[task.sender].count:,} {task.sender} nodes, "
        f"{meta.node_types[task.receiver].count:,} {task.receiver} nodes, "
        f"{sum(edge.count for edge in meta.edge_types):,} edges in all."
    )
    style = resources.files("star_jax.pipeline.report").joinpath("page.css").read_text("utf-8")
    sections = [(title, section(title, markup)) for title, markup in parts.items()]
    return page(f"star_jax report: {meta.dataset}", lead, style, sections)
