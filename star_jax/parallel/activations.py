"""Where activations lie: the one place that says so, for models that name no mesh axis.

All follow the mesh that `jax.set_mesh` has set, and do nothing where none is set, where it has one
device, or within a `shard_map` over it.
"""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

from star_jax.parallel.mesh import ROW_AXES, TENSOR


def split_rows(x: Shaped[Array, "R ..."]) -> Shaped[Array, "R ..."]:
    """The same array, its rows split as those of a batch, all else whole on every device."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = _present(ROW_AXES)
    if not axes or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


def on_each_device(
    function: Callable[..., Array], *states: Array, of_rows: tuple[Array, ...], heads: int
) -> Array:
    """A function that XLA cannot split, on each device's rows and heads.

    Args:
      function: States, then what is there of rows alone, to an array like the first state. It
        treats rows and heads for themselves, of the states alike.
      states: Arrays with a dimension of rows, the first, and one of heads.
      of_rows: Arrays without heads.
      heads: Which dimension of the states counts them.
    """
    rows, tensor = _present(ROW_AXES), _present((TENSOR,))
    if not rows and not tensor:
        return function(*states, *of_rows)
    with_heads = PartitionSpec(rows, *[None] * (heads - 1), tensor)
    split = jax.shard_map(
        function,
        in_specs=(*[with_heads] * len(states), *[PartitionSpec(rows)] * len(of_rows)),
        out_specs=with_heads,
        axis_names={*rows, *tensor},
        check_vma=False,
    )
    return split(*states, *of_rows)


def _present(axes: tuple[str, ...]) -> tuple[str, ...]:
    """Those that XLA splits over here."""
    auto = jax.sharding.get_abstract_mesh().auto_axes
    return tuple(axis for axis in axes if axis in auto)
