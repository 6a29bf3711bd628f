"""Arrays made of pieces, and their blocks, against the same arrays on the host."""

import jax
import numpy as np
import pytest

from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.pieces import blocks, fill
from star_jax.parallel.rules import FSDP_RULES, shardings

PIECE_BYTES = 9000


def host(shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def filled(array, order, mesh):
    """The array on a mesh, and the parts that were read for it."""
    where = shardings({"leaf": array}, mesh, FSDP_RULES)["leaf"]
    parts = []

    def read(index):
        parts.append(array[index].copy())
        return parts[-1]

    like = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)
    return fill(like, read, order=order, piece_bytes=PIECE_BYTES), parts


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((3, 64, 110), (0, 2)),  # Rows too large: cut along the last dimension, which fsdp splits.
        ((5, 12, 20), (0,)),  # Several rows at a time.
        ((16, 3, 60), (0,)),  # Eight devices split the rows themselves.
        ((331, 52), (0,)),  # No size fits: the last piece reaches back.
        ((7,), (0,)),  # Whole.
    ],
    ids=str,
)
@pytest.mark.parametrize("mesh", [(1, 1), (1, 8), (4, 2)], ids=str)
def test_pieces_and_blocks_are_those_of_the_host(shape, order, mesh):
    data, fsdp = mesh
    expected = host(shape)
    array, parts = filled(expected, order, make_mesh(MeshConfig(data=data, fsdp=fsdp)))
    np.testing.assert_array_equal(array, expected)
    num_devices = data * fsdp
    least = 4 * expected.size // max(expected.shape[d] for d in order)  # One line.
    assert max(part.nbytes for part in parts) * num_devices <= max(PIECE_BYTES, least * num_devices)
    # Devices that hold the same share what is read; only the pieces that reach back read more.
    assert sum(part.size for part in parts) <= expected.size * 1.5
    got = list(blocks(array, block_bytes=PIECE_BYTES))
    np.testing.assert_array_equal(np.concatenate([b.ravel() for b in got]), expected.ravel())


def test_no_bit_of_a_bfloat16_changes():
    """Also of what is no number: these go through bits, not through arithmetic."""
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(32, 2048)
    array, parts = filled(bits.view(jax.numpy.bfloat16), (0,), make_mesh(MeshConfig(data=1)))
    assert len(parts) == 16
    np.testing.assert_array_equal(np.asarray(array).view(np.uint16), bits)


def test_blocks_are_small_where_nothing_is_split():
    array = jax.numpy.asarray(host((3, 50, 101)))
    sizes = [block.nbytes for block in blocks(array, block_bytes=PIECE_BYTES)]
    assert max(sizes) <= PIECE_BYTES
    assert sum(sizes) == array.nbytes
    assert len(sizes) == 9
