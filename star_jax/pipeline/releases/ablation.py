"""What each signal is worth: a run with all of them beside one without each."""

from pathlib import Path
from typing import Any

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.pipeline.signals import Signals, parts_by_signal, without_each

MODEL = "text+graph"


def ablation(manifest: Signals, workdir: Path, runs: Path) -> dict[str, Any]:
    """Test metrics and seconds of all signals, and of all but one, for every signal that was tried.

    Args:
      manifest: The signals.
      workdir: A finished run with all of them.
      runs: Holds finished runs, `without_<signal>` each.

    Returns:
      Under `all` and, by signal, under `signals`: owner, metrics of the main task, seconds of all
      stages that a run recorded.

    Raises:
      InputError: A run is missing, unfinished, of another data set, or of other signals.
    """
    rows = {}
    whole = _row(workdir, parts_by_signal(manifest))
    for name, others in without_each(manifest).items():
        folder = runs / f"without_{name}"
        if folder.is_dir():
            rows[name] = {"owner": manifest.signals[name].owner}
            rows[name] |= _row(folder, parts_by_signal(others))
            for key in ("dataset", "main_task"):
                if rows[name][key] != whole[key]:
                    raise InputError(
                        f"{folder} has {key} {rows[name][key]!r}, {workdir} has {whole[key]!r}, "
                        "needed the same"
                    )
    if not rows:
        raise InputError(
            f"{runs} has no run of {', '.join(f'without_{name}' for name in manifest.signals)}; "
            "`star branch ablate` writes their signals, and `star run` makes them"
        )
    return {"model": MODEL, "all": {"owner": "", **whole}, "signals": rows}


def _row(workdir: Path, parts: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    built = artefacts.read_manifest(workdir / "graph", "graph").meta["signals"]
    if {name: tuple(each) for name, each in built.items()} != parts:
        raise InputError(
            f"{workdir / 'graph'} was built from the signals {', '.join(built) or '(all)'}, needed "
            f"{', '.join(parts)}; run it with --build_graph.signals"
        )
    artefacts.read_manifest(workdir / "evaluation", "evaluation")
    path = workdir / "evaluation" / "metrics.json"
    content = artefacts.read_json(path, "dataset", "main_task", "tasks")
    records = [artefacts.read_json(p, "seconds") for p in workdir.glob(f"*/{artefacts.STAGE}")]
    return {
        "dataset": content["dataset"],
        "main_task": content["main_task"],
        "metrics": content["tasks"][content["main_task"]]["test"]["models"][MODEL],
        "seconds": sum(record["seconds"] for record in records),
    }
