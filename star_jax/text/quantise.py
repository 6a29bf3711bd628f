"""Int8 base weights: the kernels of linear maps in int8, one scale per output channel, by qwix.

A quantised kernel is two parameters, `kernel` in int8 and `kernel_scale` in float32, both still
stacked over the blocks. qwix's own quantisation of a whole linen model is of no use here: given
stacked parameters it takes the axis of the blocks for an axis of the kernel.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from star_jax.config import InputError
from star_jax.shapes import PyTree

_KERNEL, _SCALE = "kernel", "kernel_scale"


def quantise(params: PyTree) -> dict[str, Any]:
    """The parameters with every kernel in int8, on the host; all others stay as they are.

    Raises:
      InputError: qwix is not installed.
    """
    found = {}
    for path, leaf in cast("dict[str, Any]", flatten_dict(params, sep="/")).items():
        if path.endswith(f"/{_KERNEL}"):
            found[path], found[path.removesuffix(_KERNEL) + _SCALE] = _quantise_kernel(leaf)
        else:
            found[path] = leaf
    return unflatten_dict(found, sep="/")


@contextmanager
def int8_kernels() -> Iterator[None]:
    """Within it, linear maps compute with their int8 kernel where they have one."""
    with nn.intercept_methods(_intercept):
        yield


def _quantise_kernel(kernel: Any) -> tuple[np.ndarray, np.ndarray]:
    """Block by block, so that one block at a time is there in float32."""
    quantise_array = _qwix().quantize
    *stack, in_size, out_size = kernel.shape
    blocks = kernel.reshape(-1, in_size, out_size)
    values = np.empty(blocks.shape, np.int8)
    scales = np.empty((len(blocks), out_size), np.float32)
    for i in range(len(blocks)):
        block = jnp.asarray(blocks[i], jnp.float32)
        quantised = quantise_array(block, jnp.int8, channelwise_axes=[1])
        values[i], scales[i] = np.asarray(quantised.qvalue), np.asarray(quantised.scale)[0]
    return values.reshape(kernel.shape), scales.reshape(*stack, out_size)


def _intercept(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    module = context.module
    if not (
        isinstance(module, nn.Dense)
        and context.method_name == "__call__"
        and module.has_variable("params", _SCALE)
    ):
        return call(*args, **kwargs)
    (x,) = args
    x = x.astype(module.dtype or x.dtype)
    qwix = _qwix()
    scale = module.get_variable("params", _SCALE).astype(x.dtype)[None]
    kernel = qwix.QArray(module.get_variable("params", _KERNEL), scale)
    y = qwix.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    if not module.use_bias:
        return y
    bias = module.get_variable("params", "bias").astype(y.dtype)
    return y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


def _qwix() -> Any:
    try:
        return importlib.import_module("qwix")
    except ModuleNotFoundError as error:
        raise InputError(
            "tower.base_quantisation int8 needs qwix, which is not installed: `pip install qwix`"
        ) from error
