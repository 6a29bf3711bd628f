"""`star append-edges`: graph/ and a folder of what is new -> the next version of graph/.

What a trained model reads keeps its meaning (see `star_jax.graph.append`), yet the stages that open
a model compare digests and ask for a training on the graph that is there. `star run` builds graph/
from tables/ again, which know nothing of additions: bring them into your tables as well.
"""

import dataclasses
import logging
from pathlib import Path

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.graph.additions import read_additions
from star_jax.graph.append import append
from star_jax.graph.store import GraphStore
from star_jax.pipeline.progress import Work
from star_jax.sorting import check_limits

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppendConfig:
    """What to add to which graph.

    Attributes:
      additions: Folder with tables of what is new, as `star_jax.graph.additions` describes it.
      parent: Folder of the graph to continue, which stays as it is. None: that of the working
        directory, which the new version takes the place of.
      parent_version: Version that the additions were made for, or how it begins. None: any.
      memory_limit_gib: For sorting what is new; beyond it DuckDB spills to the output's disk.
      num_threads: For sorting.
    """

    additions: Path
    parent: Path | None = None
    parent_version: str | None = None
    memory_limit_gib: float = 2.0
    num_threads: int = 2

    def __post_init__(self) -> None:
        check_limits(self.memory_limit_gib, self.num_threads)


def run(config: AppendConfig, workdir: Path) -> None:
    """Writes the next version of the graph; its manifest says what it came from.

    Raises:
      InputError: The graph is not the one the additions were made for, was changed on disk, or
        contradicts them; no graph is written or replaced.
    """
    folder = config.parent or workdir / "graph"
    parent = GraphStore.open(folder, None)
    version, asked = parent.version, config.parent_version
    if asked is not None and not version.startswith(asked):
        raise InputError(
            f"parent_version is {asked}, {folder} has version {version[:12]}: it changed since "
            "the additions were made"
        )
    artefacts.verify(folder)
    additions = read_additions(config.additions, parent.meta)
    before, new = parent.meta.num_edges, additions.counts["edges"]
    work = Work("append-edges", sum(before.values()) + 2 * sum(new.values()), "edges")
    limits = (config.memory_limit_gib, config.num_threads)
    with artefacts.writing(workdir / "graph", "graph") as output:
        made = append(output, parent, additions, *limits, work.advance)
        now = GraphStore.open(folder, None).version
        if now != version:
            raise InputError(
                f"{folder} had version {version[:12]} and has {now[:12]} now: it changed while "
                "edges were added; run the command again"
            )
    _log.info(
        "graph %s, made from %s: %d nodes, %d edges and %d texts more",
        made.version[:12],
        version[:12],
        *(sum(additions.counts[part].values()) for part in ("nodes", "edges", "texts")),
    )
