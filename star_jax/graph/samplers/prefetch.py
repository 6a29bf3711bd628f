"""Asks the processor for memory before it is needed: independent misses wait together."""

from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

_READ, _KEPT, _DATA = (ir.Constant(ir.IntType(32), value) for value in (0, 3, 1))


@intrinsic
@no_type_check
def prefetch(typingctx: Any, array: np.ndarray, index: int) -> None:
    """Starts to load the element `index` of a contiguous array, counted over all its axes.

    An index outside the array is harmless. Compiled functions alone can call it.
    """
    if not isinstance(array, types.Array) or array.layout != "C":
        return None

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, arguments[0]).data
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        pointer = builder.bitcast(builder.gep(data, [place]), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, *[ir.IntType(32)] * 3])
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(function, [pointer, _READ, _KEPT, _DATA])
        return context.get_dummy_value()

    return types.none(array, index), code
