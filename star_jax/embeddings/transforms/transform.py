"""A transform: what maps the vectors of a new version to those of an old one, by node type."""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from star_jax.config import InputError
from star_jax.embeddings.transforms.maps import Identity, Map, joined, keeps_scale, normalised

SHARED = "_shared"
"""Stands for every node type where all of them have one map."""
CHAIN = "chain"
"""The mode of what `compose` made of several."""


class Step(NamedTuple):
    """One map of a chain."""

    map: Map
    renormalise: bool  # To length 1: the old version had unit vectors.


class Transform(NamedTuple):
    """Maps of the vectors of one version to another's.

    Attributes:
      mode: How it was fitted, or `chain`.
      new: Digest of the embeddings that it reads.
      old: Digest of the embeddings whose space its results are in.
      steps: By node type, or under `SHARED` alone: applied one after the other.
    """

    mode: str
    new: str
    old: str
    steps: dict[str, tuple[Step, ...]]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.mode} {self.new[:12]} -> {self.old[:12]}"

    def has(self, node_type: str) -> bool:
        """Whether a node type is mapped."""
        return not {SHARED, node_type}.isdisjoint(self.steps)

    def of(self, node_type: str) -> tuple[Step, ...]:
        """The steps of a node type.

        Raises:
          InputError: It has none.
        """
        if SHARED in self.steps:
            return self.steps[SHARED]
        if node_type not in self.steps:
            known = ", ".join(sorted(self.steps))
            raise InputError(f"transform {self.name} maps {known}, not node type {node_type!r}")
        return self.steps[node_type]

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Widths of what it reads and of what it gives, by node type or under `SHARED`."""
        return {
            name: (steps[0].map.widths()[0], steps[-1].map.widths()[1])
            for name, steps in self.steps.items()
        }

    def apply(
        self, node_type: str, vectors: Float[np.ndarray, "N I"]
    ) -> Float32[np.ndarray, "N O"]:
        """Vectors of the old version's space, in float32, row by row.

        Raises:
          InputError: The node type has no map here, or its vectors another width.
        """
        steps = self.of(node_type)
        if (size := steps[0].map.widths()[0]) != vectors.shape[1]:
            raise InputError(
                f"transform {self.name} maps {node_type} vectors of {size} dimensions, "
                f"got {vectors.shape[1]}: they are of another version"
            )
        mapped = np.asarray(vectors, np.float32)
        for step in steps:
            mapped = step.map.apply(mapped)
            mapped = normalised(mapped) if step.renormalise else mapped
        return mapped


def compose(transforms: Sequence[Transform]) -> Transform:
    """One transform for a chain: B_{j+1} ... B_k, given as [the map of k, ..., the map of j + 1].

    Linear maps are multiplied, in float64. What renormalises in between, or has a network, is kept
    as a step of its own where leaving it out would change the result. Node types that one of the
    transforms does not map are not mapped.

    Raises:
      InputError: Two neighbours do not meet: in their versions, their widths or any node type.
    """
    first, *others = transforms
    return reduce(_after, others, first)


def _after(first: Transform, second: Transform) -> Transform:
    if first.old != second.new:
        raise InputError(
            f"transform {first.name} gives vectors of {first.old[:12]}, the next one "
            f"({second.name}) reads those of {second.new[:12]}; the newest comes first"
        )
    if SHARED in first.steps and SHARED in second.steps:
        names = [SHARED]
    else:  # A shared one serves the node types of the other.
        names = [
            name
            for name in (first.steps if SHARED not in first.steps else second.steps)
            if first.has(name) and second.has(name)
        ]
    if not names:
        known = [", ".join(sorted(each.steps)) for each in (first, second)]
        raise InputError(
            f"transform {first.name} maps {known[0]}, the next one ({second.name}) {known[1]}: "
            "no node type goes through both"
        )
    steps = {}
    for name in names:
        both = first.of(name), second.of(name)
        given, taken = both[0][-1].map.widths()[1], both[1][0].map.widths()[0]
        if given != taken:
            raise InputError(
                f"transform {first.name} gives {name} vectors of {given} dimensions, "
                f"the next one ({second.name}) takes {taken}"
            )
        steps[name] = reduce(_appended, both[1], both[0])
    return Transform(CHAIN, first.new, second.old, steps)


def _appended(steps: tuple[Step, ...], step: Step) -> tuple[Step, ...]:
    """The steps with one more, as few as do the same."""
    last = steps[-1]
    if isinstance(step.map, Identity) and not step.renormalise:
        return steps
    # Lengths of 1 in between make no difference to a direction that a linear map goes on with.
    if last.renormalise and not (step.renormalise and keeps_scale(step.map)):
        return (*steps, step)
    both = joined(last.map, step.map)
    if both is None:
        return (*steps, step)
    return (*steps[:-1], Step(both, step.renormalise))
