"""Large global arrays, filled and read piece by piece: no host holds one whole."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Shaped

PIECE_BYTES = 4 << 20

Index = tuple[slice, ...]


def fill(
    like: jax.ShapeDtypeStruct,
    read: Callable[[Index], np.ndarray],
    *,
    order: tuple[int, ...],
    piece_bytes: int = PIECE_BYTES,
) -> jax.Array:
    """An array from its pieces; a process reads only what its own devices hold.

    Args:
      like: Shape, dtype and sharding of the array.
      read: A new array with a part of it, in its dtype; every slice has a start and a stop.
      order: Dimensions that may be cut: the next one where lines of those before are too large.
      piece_bytes: Of the parts of all devices of this process together, unless single elements
        along `order` have more.
    """
    where = like.sharding
    assert isinstance(where, NamedSharding)
    holders: dict[tuple[int, ...], list[Any]] = {}
    for device, index in where.addressable_devices_indices_map(like.shape).items():
        assert index is not None
        holders.setdefault(tuple(part.start or 0 for part in index), []).append(device)
    local = where.shard_shape(like.shape)
    size = _cut(local, order, piece_bytes // (like.dtype.itemsize * len(where.addressable_devices)))
    shape = tuple(n * full // own for n, full, own in zip(size, like.shape, local, strict=True))

    def piece(start: tuple[int, ...]) -> jax.Array:
        parts = []
        for corner, devices in holders.items():
            begin = [c + s for c, s in zip(corner, start, strict=True)]
            part = read(tuple(slice(b, b + n) for b, n in zip(begin, size, strict=True)))
            parts += [jax.device_put(part, device) for device in devices]
        return jax.make_array_from_single_device_arrays(shape, where, parts)

    if size == local:
        return piece((0,) * len(local))
    array = jnp.zeros(like.shape, like.dtype, device=where)
    for start, _ in _starts(local, size):
        # Without waiting, pieces would pile up on their way to the device.
        array = jax.block_until_ready(_write(array, piece(start), start, where))
    return array


def blocks(array: jax.Array, *, block_bytes: int = PIECE_BYTES) -> Iterator[np.ndarray]:
    """The elements of a global array in row-major order, however it is sharded.

    All processes go through it together.

    Args:
      array: On any devices.
      block_bytes: Of a block, at most; dimensions from the first split one on are not cut, though.
    """
    if array.nbytes <= block_bytes and array.is_fully_addressable:
        yield np.asarray(array)
        return
    where, num_whole = array.sharding, array.ndim
    if isinstance(where, NamedSharding):
        num_whole = next((d for d, axis in enumerate(where.spec) if axis is not None), array.ndim)
        if not array.is_fully_addressable:
            where = NamedSharding(where.mesh, PartitionSpec())
    size = _cut(array.shape, range(num_whole), block_bytes // array.dtype.itemsize)
    for start, seen in _starts(array.shape, size):
        block = np.asarray(_read(array, start, size, where))
        yield block[tuple(slice(n, None) for n in seen)]


def _cut(shape: tuple[int, ...], order: Sequence[int], num_elements: int) -> tuple[int, ...]:
    """Shape of the pieces."""
    size = list(shape)
    for d in order:
        line = math.prod(size[:d] + size[d + 1 :])
        size[d] = max(1, min(size[d], num_elements // max(1, line)))
    return tuple(size)


def _starts(
    shape: tuple[int, ...], size: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Where pieces of one size begin that cover a shape, in row-major order.

    The last piece along a dimension reaches back; how far comes with each start.
    """
    ranges = (range(0, full, n) for full, n in zip(shape, size, strict=True))
    for at in itertools.product(*ranges):
        start = tuple(min(a, full - n) for a, full, n in zip(at, shape, size, strict=True))
        yield start, tuple(a - s for a, s in zip(at, start, strict=True))


@partial(jax.jit, static_argnames="where", donate_argnames="array")
def _write(
    array: Shaped[Array, "..."],
    piece: Shaped[Array, "..."],
    start: tuple[Array | int, ...],
    where: NamedSharding,
) -> Shaped[Array, "..."]:
    """Every device puts its part of a piece into its part of the array, in place.

    XLA on CPUs computes bfloat16 as float32, the whole array each time: bits it leaves alone.
    """

    def update(
        array: Shaped[Array, "..."], piece: Shaped[Array, "..."], start: tuple[Array | int, ...]
    ) -> Shaped[Array, "..."]:
        if array.dtype != jnp.bfloat16:
            return lax.dynamic_update_slice(array, piece, start)
        bits, new = (lax.bitcast_convert_type(x, jnp.uint16) for x in (array, piece))
        bits = lax.dynamic_update_slice(bits, new, start)
        return lax.bitcast_convert_type(bits, array.dtype)

    place = jax.shard_map(
        update,
        mesh=where.mesh,
        in_specs=(where.spec, where.spec, PartitionSpec()),
        out_specs=where.spec,
    )
    return place(array, piece, start)


@partial(jax.jit, static_argnames=("size", "where"))
def _read(
    array: Shaped[Array, "..."],
    start: tuple[Array | int, ...],
    size: tuple[int, ...],
    where: Sharding,
) -> Shaped[Array, "..."]:
    return lax.with_sharding_constraint(lax.dynamic_slice(array, start, size), where)
