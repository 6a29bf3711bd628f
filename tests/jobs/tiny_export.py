"""`export-text` on the text market with a model as it began; run as a script, it may kill itself.

tiny_export.py WORKDIR CONFIG_JSON MOMENT: see `_KILLS`.
"""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from star_jax import artefacts
from star_jax.config import from_json
from star_jax.jobs import export_text, train_text
from star_jax.jobs.export_text import TextExportConfig
from star_jax.parallel.mesh import MeshConfig
from star_jax.pipeline import text_parts, text_tables
from tests.jobs import tiny_text
from tests.pipeline.text_market import write_tables

CONFIG = TextExportConfig(
    mesh=MeshConfig(data=1), batch_tokens=512, num_lengths=1, part_texts=6, shard_rows=20
)


def begin(workdir: Path, **fields: Any) -> Path:
    """Tables and a model; nothing is trained, so that nothing is compiled."""
    write_tables(workdir / "tables", with_texts=False)
    train_text.run(tiny_text.config(), workdir)
    meta = artefacts.read_manifest(workdir / "text", "text_model").meta
    artefacts.seal(workdir / "text", "text_model", meta | {"positive_rate": 0.5})
    write_tables(workdir / "tables", **fields)
    return workdir


def config(**fields: Any) -> TextExportConfig:
    """The export that all tests start from."""
    return dataclasses.replace(CONFIG, **fields)


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_within(module: Any, name: str, calls: int) -> None:
    """Dies after so many calls of a function."""
    real: Callable[..., Any] = getattr(module, name)
    left = [calls]

    def counted(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        left[0] -= 1
        return found if left[0] else _die()

    setattr(module, name, counted)


_KILLS: dict[str, Callable[[], None]] = {
    "never": lambda: None,
    "in a part": lambda: _kill_within(text_parts.np, "save", 2),
    "in the tables": lambda: _kill_within(text_tables, "keys_path", 2),
}


if __name__ == "__main__":
    folder, text, moment = sys.argv[1:]
    _KILLS[moment]()
    export_text.run(from_json(TextExportConfig, text), Path(folder))
