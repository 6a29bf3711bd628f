"""`star report`: metrics.json and one self-contained page; writes W/report."""

import json
import logging
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from star_jax import artefacts
from star_jax.pipeline.report.content import gather
from star_jax.pipeline.report.document import document

KIND = "report"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the page shows; `max_map_points` limits each embedding map."""

    max_map_points: int = 3000

    def __post_init__(self) -> None:
        if self.max_map_points < 3:
            raise ValueError(f"max_map_points {self.max_map_points} must be >= 3")


def run(config: ReportConfig, workdir: Path) -> None:
    """Writes the metrics of the main task's test split, and the page."""
    content = gather(workdir)
    command = shlex.join(["star", *sys.argv[1:]])
    page = document(content, workdir, command=command, max_points=config.max_map_points)
    with artefacts.writing(workdir / KIND, KIND) as folder:
        metrics = json.dumps(content.summary, indent=1, allow_nan=False, ensure_ascii=False)
        artefacts.write_text(folder / "metrics.json", metrics)
        artefacts.write_text(folder / "index.html", page)
        artefacts.set_meta(folder, {"dataset": content.meta.dataset})
    _log.info("report: %s", workdir / KIND / "index.html")
