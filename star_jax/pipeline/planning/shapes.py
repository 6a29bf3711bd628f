"""Shapes of arrays that would lie on devices."""

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.shapes import PyTree


def placed(tree: PyTree, where: PyTree) -> PyTree:
    """Shapes of arrays that lie somewhere."""
    return jax.tree.map(
        lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), tree, where
    )


def device_bytes(tree: PyTree) -> int:
    """Of placed shapes, what one device holds."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
