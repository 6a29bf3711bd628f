"""Sharding outside the models: parameter path -> where its array lives; batches by rows."""

import re
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr

from star_jax.parallel.mesh import DATA, FSDP
from star_jax.shapes import PyTree

_SMALL = 1 << 14  # Arrays of fewer elements are copied: gathering them costs more than it saves.


class Rule(NamedTuple):
    """What to do with the parameters whose whole path matches a pattern."""

    pattern: str
    spec: PartitionSpec | None  # None: split the largest dimension that `fsdp` divides.


Rules = tuple[Rule, ...]

FSDP_RULES: Rules = (Rule(".*", None),)
"""Every large parameter is split over `fsdp`; small ones are copied."""

ROWS = PartitionSpec(FSDP)
"""The rows of a table, the first dimension, split over `fsdp` whatever their number."""

REPLICATED_RULES: Rules = (Rule(".*", PartitionSpec()),)
"""Every parameter is copied to every device."""


def with_tables(rules: Rules, tables: str) -> Rules:
    """The rules, but the parameters whose paths match `tables` are split by rows."""
    return (Rule(tables, ROWS), *rules)


def shardings(tree: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """One sharding per leaf; the first rule whose pattern matches the leaf's path decides.

    Raises:
      ValueError: No rule matches a path.
    """

    def of_leaf(path: tuple, leaf: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> NamedSharding:
        name = keystr(path, simple=True, separator="/")
        for rule in rules:
            if re.fullmatch(rule.pattern, name):
                spec = _largest(leaf.shape, mesh) if rule.spec is None else rule.spec
                return NamedSharding(mesh, spec)
        raise ValueError(f"no sharding rule matches parameter {name}, needed one rule for each")

    return jax.tree.map_with_path(of_leaf, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shardings(batch: PyTree, mesh: Mesh, *, axis: int | PyTree = 0) -> PyTree:
    """Splits the rows of every array over all devices.

    Args:
      batch: Arrays of more dimensions than their axis.
      mesh: The devices.
      axis: Which dimension holds the rows (1 when the first one counts microbatches): one for
        all arrays, or a tree of them.

    Raises:
      ValueError: A number of rows is not a multiple of the number of devices.
    """

    def of_leaf(path: tuple, leaf: np.ndarray, axis: int) -> NamedSharding:
        if leaf.shape[axis] % mesh.size:
            name = keystr(path, simple=True, separator="/")
            raise ValueError(
                f"batch array {name} has {leaf.shape[axis]} rows, needed a multiple of the "
                f"{mesh.size} devices of the mesh"
            )
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, (DATA, FSDP)))

    axes = jax.tree.map(lambda _: axis, batch) if isinstance(axis, int) else axis
    return jax.tree.map_with_path(of_leaf, batch, axes)


def put(tree: PyTree, where: PyTree) -> PyTree:
    """Host arrays to global device arrays; every process holds the same host arrays.

    Args:
      tree: Host arrays, equal on all processes; what lies in its place already stays.
      where: One sharding per leaf, or one for all.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, where)
    if isinstance(where, NamedSharding):
        where = jax.tree.map(lambda _: where, tree)

    def place(array: np.ndarray | jax.Array, where: NamedSharding) -> jax.Array:
        if isinstance(array, jax.Array) and array.sharding == where:
            return array
        return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

    return jax.tree.map(place, tree, where)


def own_parts(mesh: Mesh) -> list[int]:
    """Which parts of a batch this process makes, of those that `batch_shardings` gives devices."""
    owners = [device.process_index for device in mesh.devices.flat]
    return [part for part, owner in enumerate(owners) if owner == jax.process_index()]


def put_own(batch: PyTree, mesh: Mesh, *, axis: int | PyTree = 0) -> PyTree:
    """Host arrays with the rows of this process alone to global arrays, split as a whole batch is.

    Args:
      batch: Rows of `own_parts`, one part after the other.
      mesh: The devices.
      axis: As in `batch_shardings`.
    """
    parts = own_parts(mesh)
    if len(parts) == mesh.size:
        return put(batch, batch_shardings(batch, mesh, axis=axis))

    def place(own: np.ndarray, axis: int) -> jax.Array:
        size, rest = divmod(own.shape[axis], len(parts))
        assert not rest
        shape = (*own.shape[:axis], size * mesh.size, *own.shape[axis + 1 :])
        where = NamedSharding(mesh, PartitionSpec(*[None] * axis, (DATA, FSDP)))

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            begin = size * parts.index((index[axis].start or 0) // size)
            return own[(slice(None),) * axis + (slice(begin, begin + size),)]

        return jax.make_array_from_callback(shape, where, part)

    axes = jax.tree.map(lambda _: axis, batch) if isinstance(axis, int) else axis
    return jax.tree.map(place, batch, axes)


def _largest(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    size = mesh.shape[FSDP]
    dimensions = [d for d in range(len(shape)) if shape[d] % size == 0]
    if size == 1 or not dimensions or int(np.prod(shape)) < _SMALL:
        return PartitionSpec()
    chosen = max(dimensions, key=lambda d: shape[d])
    return PartitionSpec(*[None] * chosen, FSDP)
