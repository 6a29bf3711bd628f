"""Embeddings on a plane: two principal components, coloured by an attribute of the nodes."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from star_jax.embeddings.table import open_vectors, read_rows
from star_jax.pipeline.report.drawing import inline_svg
from star_jax.pipeline.report.figures import OTHER, PALETTE
from star_jax.pipeline.report.markup import LegendEntry, figure
from star_jax.pipeline.tables.read import TablesMeta, read_edges, read_nodes

_MAX_SHARE = 0.95  # An attribute whose first value covers more than this tells nothing.


class Colouring(NamedTuple):
    """A value per point: index into `names`, or -1 for all other values and none."""

    attribute: str
    names: list[str]
    value: Int[np.ndarray, " N"]


class Plane(NamedTuple):
    """Points, and the share of the variance that each axis keeps."""

    points: Float[np.ndarray, "N 2"]
    kept: tuple[float, float]


def draw_map(
    workdir: Path, embeddings: Path, meta: TablesMeta, node_type: str, max_points: int
) -> str:
    """One node type's vectors; empty where the set has too few.

    Args:
      workdir: Of the run.
      embeddings: Folder with the tables of vectors.
      meta: Of the set, for the attributes.
      node_type: Which table.
      max_points: A larger table is sampled, always the same way.
    """
    table = read_rows(embeddings, node_type)
    num_rows = len(table.entity)
    if num_rows < 3:
        return ""
    rows = np.arange(num_rows)
    if num_rows > max_points:
        rows = np.sort(np.random.default_rng(0).choice(num_rows, max_points, replace=False))
    vectors = open_vectors(embeddings, node_type).take(rows).astype(np.float64)
    plane = project(vectors)
    found = colourings(workdir / "tables", meta, node_type, table.entity[rows])
    best = max(found, key=lambda c: explained(vectors, c), default=None)
    caption = (
        f"{node_type}: {len(rows):,} of {num_rows:,} vectors on their first two principal "
        f"components ({100 * plane.kept[0]:.0f} % and {100 * plane.kept[1]:.0f} % of the variance)"
    )
    if best is None:
        legend, caption = [], f"{caption}."
    else:
        share = 100 * explained(vectors, best)
        legend = [LegendEntry(name, c) for name, c in zip(best.names, PALETTE, strict=False)]
        if (best.value < 0).any():
            legend.append(LegendEntry("other or none", OTHER))
        caption = (
            f'{caption}, coloured by "{best.attribute}", the attribute that '
            f"explains most of the vectors ({share:.0f} % of the variance)."
        )
    name, title = f"map-{node_type}", f"Map of the {node_type} embeddings"
    return figure(
        inline_svg(name, title, (5.2, 4.4), lambda canvas: _draw(canvas, plane, best)),
        caption,
        legend,
    )


def project(vectors: Float[np.ndarray, "N E"]) -> Plane:
    """Principal components; the larger coordinate of each axis points up, so signs are stable."""
    centred = vectors - vectors.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    top = axes[:, [-1, -2]]
    top = top * np.sign(top[np.abs(top).argmax(axis=0), [0, 1]])
    total = max(float(variances.sum()), np.finfo(np.float64).tiny)
    return Plane(centred @ top, (float(variances[-1]) / total, float(variances[-2]) / total))


def colourings(
    tables: Path, meta: TablesMeta, node_type: str, nodes: Int[np.ndarray, " N"]
) -> list[Colouring]:
    """The attributes of a node type: what its attribute edges point to."""
    found: list[Colouring] = []
    for edge in meta.edge_types:
        if edge.kind != "attribute" or edge.sender != node_type or edge.receiver == node_type:
            continue
        edges = read_edges(tables, edge.name)
        value_of = np.full(meta.node_types[node_type].count, -1, np.int64)
        value_of[edges.sender[::-1]] = edges.receiver[::-1]  # The first of several.
        names = read_nodes(tables, edge.receiver)["id"].to_pylist()
        colouring = most_frequent(f"{edge.relation} {edge.receiver}", value_of[nodes], names)
        if colouring is not None:
            found.append(colouring)
    return found


def most_frequent(
    attribute: str, value: Int[np.ndarray, " N"], names: list[str]
) -> Colouring | None:
    """Keeps as many values as there are colours; None where there is nothing to tell apart."""
    counts = Counter(value[value >= 0].tolist()).most_common(len(PALETTE))
    if len(counts) < 2 or counts[0][1] > _MAX_SHARE * len(value):
        return None
    kept = [index for index, _ in counts]
    coded = np.full(len(value), -1, np.int64)
    for code, index in enumerate(kept):
        coded[value == index] = code
    return Colouring(attribute, [names[index] for index in kept], coded)


def explained(vectors: Float[np.ndarray, "N E"], colouring: Colouring) -> float:
    """Variance between the values as a share of all variance."""
    centred = vectors - vectors.mean(axis=0)
    between = 0.0
    for code in np.unique(colouring.value):
        members = centred[colouring.value == code]
        between += len(members) * float((members.mean(axis=0) ** 2).sum())
    return between / max(float((centred**2).sum()), np.finfo(np.float64).tiny)


def _draw(canvas: Figure, plane: Plane, colouring: Colouring | None) -> None:
    axes = canvas.subplots()
    codes = range(-1, len(PALETTE))
    for code in codes:  # Grey first, so that it lies below.
        chosen = np.full(len(plane.points), code == -1)
        if colouring is not None:
            chosen = colouring.value == code
        axes.scatter(
            *plane.points[chosen].T,
            s=9,
            color=OTHER if code == -1 else PALETTE[code],
            alpha=0.75,
            linewidths=0,
            rasterized=True,
        )
    axes.set(xlabel="first component", ylabel="second component", xticks=[], yticks=[])
    axes.grid(visible=False)
