"""Sharding outside the models: parameter path -> where its array lives; batches by rows."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.tree_util import keystr

from star_jax.config import InputError
from star_jax.parallel.mesh import FSDP, ROW_AXES, TENSOR, num_row_shards, num_shards
from star_jax.shapes import PyTree

_SMALL = 1 << 14  # Arrays of fewer elements are copied: gathering them costs more than it saves.


class Split(NamedTuple):
    """One dimension over `tensor`, another over `fsdp` where that divides it and it is worth it.

    Dimensions are counted from the end: arrays may be stacked over the blocks of a model. On a mesh
    without `tensor` it is as if no dimension were named.
    """

    tensor: int
    fsdp: int | None
    unit: int = 1  # Neighbours along `tensor` that stay together.


class Rule(NamedTuple):
    """What to do with the parameters whose whole path matches a pattern."""

    pattern: str
    spec: PartitionSpec | Split | None  # None: split the largest dimension that `fsdp` divides.
    optional: bool = False  # A tree may have no such parameter.


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


def text_rules(head_width: int, *, base: bool) -> Rules:
    """Of a text model: `FSDP_RULES`, and its encoder is split over `tensor` as well.

    Maps into heads and MLP are split by output, those out of them by input, so that a block adds up
    what its devices have twice; the embedding by width. Adapters follow their maps: of a map that
    is split by output B is, of one by input A.

    Args:
      head_width: Heads are not cut.
      base: Whether the tree holds the encoder's own parameters, or adapters and what else trains.
    """
    query, merge = r".*/(q_proj|k_proj|v_proj)", r".*/o_proj"
    widen, narrow = r".*/(gate_proj|up_proj)", r".*/down_proj"
    return (
        Rule(f"{query}/(kernel|b)", Split(-1, -2, head_width), optional=not base),
        Rule(f"{merge}/(kernel|a)", Split(-2, -1, head_width), optional=not base),
        Rule(f"{widen}/(kernel|b)", Split(-1, -2), optional=not base),
        Rule(f"{narrow}/(kernel|a)", Split(-2, -1), optional=not base),
        Rule(r".*encoder/embed/embedding", Split(-1, -2), optional=not base),
        Rule(f"{query}/(bias|kernel_scale)", Split(-1, None, head_width), optional=True),
        Rule(f"{widen}/(bias|kernel_scale)", Split(-1, None), optional=True),
        *FSDP_RULES,
    )


def shardings(tree: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """One sharding per leaf; the first rule whose pattern matches the leaf's path decides.

    Raises:
      ValueError: No rule matches a path, or a rule that is not optional matches none.
      InputError: An axis of the mesh does not divide what a rule splits over it.
    """
    names = [_name(path) for path, _ in jax.tree.leaves_with_path(tree)]
    for rule in rules:
        if names and not (rule.optional or any(re.fullmatch(rule.pattern, n) for n in names)):
            raise ValueError(
                f"sharding rule {rule.pattern!r} matches no parameter, needed one like {names[0]}"
            )

    def of_leaf(path: tuple, leaf: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> NamedSharding:
        name = _name(path)
        for rule in rules:
            if re.fullmatch(rule.pattern, name):
                return NamedSharding(mesh, _spec(name, leaf.shape, mesh, rule.spec))
        raise ValueError(f"no sharding rule matches parameter {name}, needed one rule for each")

    return jax.tree.map_with_path(of_leaf, tree)


def placed(tree: PyTree, where: PyTree) -> PyTree:
    """Shapes of the arrays of a tree, or of shapes, that lie somewhere."""
    return jax.tree.map(
        lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), tree, where
    )


def row_major(where: NamedSharding) -> Format:
    """The rows of a table one after the other in memory.

    A TPU's compiler lies a table of 200 columns down column by column, which pads it less, and
    would turn all of it around in every program that takes single rows or puts them back.
    """
    return Format(Layout((0, 1)), where)


def lies(leaf: jax.Array | jax.ShapeDtypeStruct) -> Sharding | Format:
    """Where an array lies, and in which layout where that is known."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf.sharding
    found: Format = leaf.format  # pyright: ignore[reportAttributeAccessIssue] # stubs lack it
    return leaf.sharding if found.layout is None else found


def laid_like(array: jax.Array, other: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """An array, given away, in the layout of another one; it lies where that lies."""
    wanted = lies(other)
    if wanted in (array.sharding, lies(array)):
        return array
    return jax.jit(lambda x: x, out_shardings=wanted, donate_argnums=0)(array)


def device_bytes(tree: PyTree) -> int:
    """Of arrays that lie somewhere, or of their shapes, what one device holds; keys left out."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shardings(batch: PyTree, mesh: Mesh, *, axis: int | PyTree = 0) -> PyTree:
    """Splits the rows of every array over `data` and `fsdp`.

    Args:
      batch: Arrays of more dimensions than their axis.
      mesh: The devices.
      axis: Which dimension holds the rows (1 when the first one counts microbatches): one for
        all arrays, or a tree of them.

    Raises:
      ValueError: A number of rows is not a multiple of the parts of a batch.
    """
    shards = num_row_shards(mesh)

    def of_leaf(path: tuple, leaf: np.ndarray, axis: int) -> NamedSharding:
        if leaf.shape[axis] % shards:
            raise ValueError(
                f"batch array {_name(path)} has {leaf.shape[axis]} rows, needed a multiple of the "
                f"{shards} parts that the mesh splits a batch into"
            )
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, ROW_AXES))

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
    copies = mesh.devices.reshape(num_row_shards(mesh), -1)
    owners = [{device.process_index for device in devices} for devices in copies]
    return [part for part, found in enumerate(owners) if jax.process_index() in found]


def put_own(batch: PyTree, mesh: Mesh, *, axis: int | PyTree = 0) -> PyTree:
    """Host arrays with the rows of this process alone to global arrays, split as a whole batch is.

    Args:
      batch: Rows of `own_parts`, one part after the other.
      mesh: The devices.
      axis: As in `batch_shardings`.
    """
    parts = own_parts(mesh)
    shards = num_row_shards(mesh)
    if len(parts) == shards:
        return put(batch, batch_shardings(batch, mesh, axis=axis))

    def place(own: np.ndarray, axis: int) -> jax.Array:
        size, rest = divmod(own.shape[axis], len(parts))
        assert not rest
        shape = (*own.shape[:axis], size * shards, *own.shape[axis + 1 :])
        where = NamedSharding(mesh, PartitionSpec(*[None] * axis, ROW_AXES))

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            begin = size * parts.index((index[axis].start or 0) // size)
            return own[(slice(None),) * axis + (slice(begin, begin + size),)]

        return jax.make_array_from_callback(shape, where, part)

    axes = jax.tree.map(lambda _: axis, batch) if isinstance(axis, int) else axis
    return jax.tree.map(place, batch, axes)


def _name(path: tuple) -> str:
    return keystr(path, simple=True, separator="/")


def _spec(
    name: str, shape: tuple[int, ...], mesh: Mesh, spec: PartitionSpec | Split | None
) -> PartitionSpec:
    every = range(len(shape))
    if spec is None or (isinstance(spec, Split) and mesh.shape[TENSOR] == 1):
        return _along({_largest(shape, mesh, every): FSDP})
    if isinstance(spec, PartitionSpec):
        for dimension, axes in enumerate(spec):
            if axes is not None:
                _check(name, shape, mesh, dimension, axes if isinstance(axes, tuple) else (axes,))
        return spec
    tensor = len(shape) + spec.tensor
    _check(name, shape, mesh, tensor, (TENSOR,), spec.unit)
    beside = None if spec.fsdp is None else _largest(shape, mesh, [len(shape) + spec.fsdp])
    return _along({beside: FSDP, tensor: TENSOR})


def _along(axes: dict[int | None, str]) -> PartitionSpec:
    """Dimension -> axis that it is split over; None is no dimension."""
    last = max((d for d in axes if d is not None), default=-1)
    return PartitionSpec(*(axes.get(d) for d in range(last + 1)))


def _check(
    name: str,
    shape: tuple[int, ...],
    mesh: Mesh,
    dimension: int,
    axes: tuple[str, ...],
    unit: int = 1,
) -> None:
    parts = num_shards(mesh, axes)
    if 0 <= dimension < len(shape) and shape[dimension] % (parts * unit) == 0:
        return
    of = f" of {unit}, a head's width" if unit > 1 else ""
    raise InputError(
        f"parameter {name} of shape {shape}: mesh axis {' x '.join(axes)} of {parts} does not "
        f"divide dimension {dimension}, needed a multiple of {parts} parts{of}"
    )


def _largest(shape: tuple[int, ...], mesh: Mesh, among: Sequence[int]) -> int | None:
    """The largest of some dimensions that `fsdp` divides, if splitting it saves anything."""
    size = mesh.shape[FSDP]
    dimensions = [d for d in among if shape[d] % size == 0]
    if size == 1 or not dimensions or int(np.prod(shape)) < _SMALL:
        return None
    return max(dimensions, key=lambda d: shape[d])
