"""`star fit-transform`: a map of a new version's vectors into the space of an old one.

Reads two artefacts of embeddings, text or graph, by their folders or by their names in a registry;
writes an artefact that keeps the consumers of the old version going: matrices and how well they do
on pairs that were held out, before and after. Vectors are read block by block and never held.

Several processes that see the same folders share the rows: each adds up the moments of its own,
the first one finds the pairs, adds the moments of all, solves and writes.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from star_jax import artefacts
from star_jax.config import InputError, to_json
from star_jax.embeddings.registry.registry import locate
from star_jax.embeddings.table import TEXT, embeddings_kind, node_types
from star_jax.embeddings.transforms.files import KIND, write_transform
from star_jax.embeddings.transforms.fit import TransformConfig, fit, measure
from star_jax.embeddings.transforms.normal_equations import Moments
from star_jax.embeddings.transforms.pairs import Pairs, PairsConfig, match
from star_jax.embeddings.transforms.transform import SHARED, Transform
from star_jax.evaluation.alignment import Agreement
from star_jax.parallel import processes
from star_jax.pipeline.scratch import alone, clear
from star_jax.train.reporter import Progress

_log = logging.getLogger(__name__)


class _Sides(NamedTuple):
    """The two versions, and what is written meanwhile."""

    old: Path
    new: Path
    scratch: Path

    def pairs(self, node_type: str) -> Pairs:
        return Pairs(self.old, self.new, node_type, self.scratch)


def run(
    config: TransformConfig, *, old: str, new: str, output: str, registry: str | None = None
) -> None:
    """Finds the pairs, adds up their moments, fits, judges and writes; all processes call it.

    Args:
      config: As described there.
      old: Folder of the old version, or its name in the registry.
      new: Of the new one.
      output: Folder of the transform.
      registry: Path or URL of the registry that names are of.
    """
    written = Path(output).absolute()
    processes.by_the_first(lambda: artefacts.check_replaceable(written, KIND))
    processes.by_the_first(lambda: [str(locate(ref, registry)) for ref in (old, new)])
    folders = [locate(ref, registry) for ref in (old, new)]  # What was fetched is there now.
    kind = _kind(*folders)
    sides = _Sides(folders[0], folders[1], written.with_name(f".{written.name}.pairs"))
    with _scratch(sides.scratch):
        counts = processes.by_the_first(lambda: _find(config, sides, timed=kind == TEXT))
        if config.mode != "none" and not processes.is_alone():
            _share(config, sides, list(counts))
        processes.by_the_first(lambda: _finish(config, sides, counts, written))


def _kind(old: Path, new: Path) -> str:
    """What both are.

    Raises:
      InputError: They differ, or are no embeddings.
    """
    kinds = [embeddings_kind(folder) for folder in (old, new)]
    if kinds[0] != kinds[1]:
        raise InputError(f"{old} holds {kinds[0]} and {new} {kinds[1]}, needed the same of both")
    return kinds[0]


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """An empty folder of this command alone, which goes when it ends; the first one makes it."""
    if not processes.is_first():
        yield
        return
    with alone(folder):
        for left in folder.iterdir():  # By one that was killed.
            shutil.rmtree(left)
        try:
            yield
        finally:
            clear(folder)


def _find(config: TransformConfig, sides: _Sides, *, timed: bool) -> dict[str, dict[str, int]]:
    """Counts of the pairs by node type; which rows they are is written down.

    Raises:
      InputError: A node type is in one version alone, or has no pair.
    """
    known = {side: node_types(getattr(sides, side)) for side in ("old", "new")}
    for name in config.node_types:
        for side, names in known.items():
            if name not in names:
                raise InputError(
                    f"node_types names {name!r}, {getattr(sides, side)} has {', '.join(names)}"
                )
    both = [name for name in known["new"] if name in known["old"]]
    names = [name for name in both if not config.node_types or name in config.node_types]
    for name in sorted({*known["old"], *known["new"]} - {*both}):
        _log.warning("%s is in one of the two versions alone: it gets no map", name)
    if not names:
        raise InputError(f"{sides.new} and {sides.old} have no node type in common")
    stopping = config.descent.stopping if config.descends else 0.0
    finding = PairsConfig(timed, config.held_out, stopping, config.memory_limit_gib)
    found = {}
    for name in names:
        found[name] = match(sides.old, sides.new, name, sides.scratch, finding)
        _log.info(
            "%s: %d pairs to fit on, %d held out; %d rows of the new version and %d of the old "
            "one are alone",
            name,
            *(found[name][key] for key in ("fit", "held_out", "new_rows_alone", "old_rows_alone")),
        )
    return found


def _share(config: TransformConfig, sides: _Sides, names: list[str]) -> None:
    """Writes the moments of this process's share of the rows; returns when all have."""
    worker, workers = processes.index(), processes.count()
    for name in names:
        moments = _added_up(config, name, sides.pairs(name), worker, workers)
        moments.write(sides.scratch / name / f"moments-{worker:05d}.npz")
        _log.info("%s: this process added up %d pairs", name, moments.count)
    processes.wait("moments")


def _moments(config: TransformConfig, sides: _Sides, name: str, pairs: Pairs) -> Moments:
    """Of all pairs of a node type: added up already, or now."""
    shares = sorted((sides.scratch / name).glob("moments-*.npz"))
    if not shares and config.mode != "none":
        return _added_up(config, name, pairs, worker=0, workers=1)
    moments = Moments(*pairs.sizes)
    for path in shares:
        moments.merge(Moments.read(path))
    return moments


def _added_up(
    config: TransformConfig, name: str, pairs: Pairs, worker: int, workers: int
) -> Moments:
    progress = Progress(f"fit-transform {name}", pairs.count("fit") / workers, "pairs")

    def advance(num_pairs: int) -> None:
        progress.advance(float(num_pairs), float(num_pairs))

    return measure(pairs, config.block_pairs, advance, worker=worker, workers=workers)


def _finish(
    config: TransformConfig, sides: _Sides, counts: dict[str, dict[str, int]], output: Path
) -> None:
    """Fits, judges and writes."""
    pairs = {name: sides.pairs(name) for name in counts}
    groups = {SHARED: list(pairs)} if config.shared else {name: [name] for name in pairs}
    steps, extra = {}, {}
    for name, members in groups.items():
        _check_sizes({member: pairs[member].sizes for member in members})
        moments = Moments(*pairs[members[0]].sizes)
        for member in members:
            moments.merge(_moments(config, sides, member, pairs[member]))
        fitted = fit(config, name, moments, [pairs[member] for member in members])
        steps[name] = (fitted.step,)
        extra[name] = {"best_step": fitted.best_step}
        if moments.count:
            extra[name]["old_lengths"] = list(moments.lengths)
    digests = {side: artefacts.digest(getattr(sides, side)) for side in ("new", "old")}
    transform = Transform(config.mode, **digests, steps=steps)
    judged = {name: _judge(transform, name, own, config.block_pairs) for name, own in pairs.items()}
    meta: dict[str, Any] = {
        "config": json.loads(to_json(config)),
        "pairs": counts,
        "fits": extra,
        "held_out": judged,
    }
    write_transform(output, transform, meta)
    for name, figures in judged.items():
        _report(name, figures)
    _log.info("wrote %s: %s", output, transform.name)


def _judge(
    transform: Transform, node_type: str, pairs: Pairs, block: int
) -> dict[str, dict[str, float] | None]:
    """How near the vectors held out come to the old ones, mapped and as they are.

    Returns:
      Figures of `Agreement`; those of unmapped vectors are None where the widths differ.
    """
    mapped, unmapped = (Agreement(pairs.sizes[1]) for _ in range(2))
    for x, y in pairs.blocks("held_out", block):
        mapped.add(transform.apply(node_type, x), y)
        if pairs.sizes[0] == pairs.sizes[1]:
            unmapped.add(x, y)
    return {"mapped": mapped.figures(), "unmapped": unmapped.figures()}


def _check_sizes(sizes: dict[str, tuple[int, int]]) -> None:
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {new} -> {old}" for name, (new, old) in sizes.items())
        raise InputError(f"shared True needs node types of the same widths, got {listed}")


def _report(name: str, judged: dict[str, dict[str, float] | None]) -> None:
    for kind, figures in judged.items():
        if figures:
            listed = ", ".join(f"{key} {value:.4f}" for key, value in figures.items())
            _log.info("%s held out, %s: %s", name, kind, listed)
