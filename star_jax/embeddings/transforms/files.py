"""Transforms as artefacts: a folder per node type with the arrays of its maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.transforms.maps import from_arrays
from star_jax.embeddings.transforms.transform import Step, Transform, compose

KIND = "transform"

_chains: dict[tuple[str, ...], Transform] = {}


def write_transform(folder: Path, transform: Transform, meta: Mapping[str, object]) -> None:
    """Writes the artefact.

    Args:
      folder: Where it will be.
      transform: The maps.
      meta: What else the manifest says, e.g. how well it fits: no key of the transform's own.
    """
    own: dict[str, object] = {
        "mode": transform.mode,
        "new": transform.new,
        "old": transform.old,
        "sizes": {name: list(sizes) for name, sizes in transform.sizes().items()},
        "renormalise": {name: steps[-1].renormalise for name, steps in transform.steps.items()},
        "steps": {
            name: [
                {
                    "map": type(step.map).__name__.lower(),
                    "widths": list(step.map.widths()),
                    "renormalise": step.renormalise,
                    "arrays": sorted(step.map.arrays()),
                }
                for step in steps
            ]
            for name, steps in transform.steps.items()
        },
    }
    if both := own.keys() & meta.keys():
        raise ValueError(f"meta of a transform may not hold {sorted(both)}")
    with artefacts.writing(folder, KIND) as partial:
        for name, steps in transform.steps.items():
            (partial / name).mkdir()
            for number, step in enumerate(steps):
                for array, values in step.map.arrays().items():
                    np.save(_path(partial, name, number, array), values)
        artefacts.set_meta(partial, own | dict(meta))


def read_transform(folder: Path) -> Transform:
    """Reads the artefact.

    Raises:
      InputError: It is not complete, or holds something else.
    """
    meta = artefacts.read_manifest(folder, KIND).meta
    try:
        steps = {
            name: tuple(_step(folder, name, number, each) for number, each in enumerate(described))
            for name, described in meta["steps"].items()
        }
        return Transform(meta["mode"], meta["new"], meta["old"], steps)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / artefacts.MANIFEST} describes no transform ({error!r}); make it anew"
        ) from error


def read_chain(folders: Sequence[Path]) -> Transform:
    """The transforms of folders as one, newest first; kept for the next time it is asked for.

    Raises:
      InputError: As `read_transform` and `compose`.
    """
    key = tuple(artefacts.digest(folder) for folder in folders)
    if key not in _chains:
        _chains[key] = compose([read_transform(folder) for folder in folders])
    return _chains[key]


def _step(folder: Path, name: str, number: int, described: dict[str, Any]) -> Step:
    arrays = {array: _path(folder, name, number, array) for array in described["arrays"]}
    read = {array: np.load(path) for array, path in arrays.items()}
    inner, outer = described["widths"]
    own = from_arrays(described["map"], (inner, outer), read, folder / name)
    return Step(own, described["renormalise"])


def _path(folder: Path, name: str, number: int, array: str) -> Path:
    return folder / name / f"{number}-{array}.npy"
