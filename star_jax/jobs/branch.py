"""`star branch`: signal manifests: what a branch builds its graph from, as files under review.

A signal is developed on a branch of its own, beside others, without waiting for them:

    star branch init --workdir W --owner graph-team --output signals.json
    cp signals.json skills.json                       # the branch: add, change, remove signals
    star branch diff signals.json skills.json
    star build-graph CONFIG --workdir W --signals skills.json
    star branch cost skills.json CONFIG --workdir W

What each signal is worth shows when it is left out. `ablate` writes the manifests; a graph and a
run in a folder of its own for each of them, and W for all signals, give what `report` compares.
`--statistics_of` keeps ages and numbers scaled alike in all of them. The report goes with a version
(`star registry attach REF --ablation ablation.json`), which shows it:

    star branch ablate skills.json --output ablation
    star run CONFIG --workdir runs/without_skill --build_graph.statistics_of W/graph
        --build_graph.signals ablation/without_skill.json
    star branch report skills.json --workdir W --runs runs --output ablation.json

When two branches are done, their union is the next graph; conflicts are named and left to people:

    star branch merge signals.json skills.json courses.json --output signals.json
"""

import json
from pathlib import Path

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.pipeline.columns import columns
from star_jax.pipeline.graph_model import open_store
from star_jax.pipeline.graph_training import GraphTrainConfig, describe
from star_jax.pipeline.releases.ablation import ablation
from star_jax.pipeline.signal_cost import Cost, costs
from star_jax.pipeline.signals import (
    Signals,
    choose,
    everything,
    read_signals,
    without_each,
    write_signals,
)
from star_jax.pipeline.signals import diff as difference_of
from star_jax.pipeline.signals import merge as union_of
from star_jax.pipeline.tables.read import read_meta


def init(workdir: Path, owner: str, output: Path) -> list[str]:
    """Writes a manifest of all that was imported.

    Raises:
      InputError: Nothing was imported, or the file is there already.
    """
    if output.exists():
        raise InputError(f"{output} is there already; give another --output")
    manifest = everything(read_meta(workdir / "tables"), owner)
    write_signals(manifest, output)
    return [f"{output}: {len(manifest.signals)} signals"]


def diff(a: Path, b: Path) -> list[str]:
    """Lines of what the second manifest adds, removes and changes."""
    return difference_of(read_signals(a), read_signals(b)) or [f"{a} and {b} have the same signals"]


def merge(base: Path, a: Path, b: Path, output: Path) -> list[str]:
    """Writes the union of two branches of a base; returns what it changes in the base.

    Raises:
      InputError: Naming every conflict; nothing is written.
    """
    old = read_signals(base)
    merged = union_of(old, read_signals(a), read_signals(b))
    if merged.conflicts:
        raise InputError(
            f"A {a} and B {b} have {len(merged.conflicts)} conflicts: "
            f"{'; '.join(merged.conflicts)}; settle them in one of the two"
        )
    manifest = Signals(signals=merged.signals)
    write_signals(manifest, output)
    return [*difference_of(old, manifest), f"{output}: {len(manifest.signals)} signals"]


def ablate(signals: Path, output: Path) -> list[str]:
    """Writes, for every signal, the manifest without it; returns the files."""
    files = {
        output / f"without_{name}.json": others
        for name, others in without_each(read_signals(signals)).items()
    }
    for path, others in files.items():
        write_signals(others, path)
    return [str(path) for path in files]


def report(signals: Path, workdir: Path, runs: Path, output: Path) -> list[str]:
    """Writes what is lost without each signal; returns the file.

    Raises:
      InputError: A run is missing, unfinished or of other signals; nothing is written.
    """
    found = ablation(read_signals(signals), workdir, runs)
    artefacts.write_text(output, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return [f"{output}: without {', '.join(found['signals'])}"]


def cost(signals: Path, config: GraphTrainConfig, workdir: Path) -> list[str]:
    """Lines of what each signal adds to the graph and the model."""
    return columns(cost_table(signals, config, workdir))


def cost_table(signals: Path, config: GraphTrainConfig, workdir: Path) -> list[list[str]]:
    """What each signal adds to the graph and the model, with a head.

    Raises:
      InputError: The graph of the folder was built from other signals.
    """
    manifest, meta = read_signals(signals), read_meta(workdir / "tables")
    store = open_store(workdir, config.model.features.text)
    chosen = choose(manifest, meta)
    if chosen.schema != store.meta.schema or {*chosen.texts} != {*store.meta.num_texts}:
        raise InputError(
            f"{store.folder} was built from other signals than {signals}; run "
            f"`star build-graph CONFIG --workdir {workdir} --signals {signals}` first"
        )
    whole, parts = costs(manifest, meta, store, describe(config, workdir, store, meta))
    return [
        ["signal", "owner", *Cost._fields],
        *([name, manifest.signals[name].owner, *map(str, part)] for name, part in parts.items()),
        ["all together", "", *map(str, whole)],
    ]
