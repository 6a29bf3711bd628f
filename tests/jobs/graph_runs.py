"""Folders of training: those of graphs made from a market, all of them read back."""

import json
import shutil

from star_jax import artefacts


def begin(market, folder):
    """A folder of its own with the same inputs."""
    for name in ("tables", "graph", "text_embeddings"):
        shutil.copytree(market / name, folder / name)
    return folder


def rows(workdir, split, output="graph_model"):
    lines = (workdir / output / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def losses(workdir, output="graph_model"):
    found = rows(workdir, "train", output)
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in found]


def meta(workdir, output="graph_model"):
    return artefacts.read_manifest(workdir / output, "graph_model").meta
