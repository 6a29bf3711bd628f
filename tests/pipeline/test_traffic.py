"""Bytes that a program moves, counted from its text."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from star_jax.pipeline.planning.traffic import LINE, memory_traffic

ROWS, WIDTH, TAKEN = 10_000, 128, 8  # A row is one line.
TABLE = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
WHICH = jax.ShapeDtypeStruct((TAKEN,), jnp.int32)
SOME = jax.ShapeDtypeStruct((TAKEN, WIDTH), jnp.float32)


def compiled(function, *shapes, **options) -> Any:
    return jax.jit(function, **options).lower(*shapes).compile()


def counted(function, *shapes, **options):
    return memory_traffic(compiled(function, *shapes, **options).as_text())


@pytest.mark.parametrize("function", [lambda a, b: a @ b, lambda a, b: jnp.tanh(a) + b.T.sum()])
def test_is_the_compilers_own_count_where_there_are_no_rows_and_no_loops(function):
    shapes = [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 2
    made = compiled(function, *shapes)
    assert memory_traffic(made.as_text()) == pytest.approx(
        made.cost_analysis()["bytes accessed"], rel=0.01
    )


def test_rows_that_are_taken_cost_their_lines_and_not_the_table():
    found = counted(lambda table, rows: table[rows] * 2, TABLE, WHICH)
    rows = TAKEN * LINE
    assert 2 * rows <= found <= 4 * rows  # Read and written, and indices.
    short = jax.ShapeDtypeStruct((ROWS,), jnp.float32)
    assert counted(lambda table, rows: table[rows] * 2, short, WHICH) >= TAKEN * LINE


def test_rows_that_are_put_back_in_place_cost_their_lines_and_not_the_table():
    def put(table, rows, new):
        return table.at[rows].set(new, mode="drop", unique_indices=True)

    found = counted(put, TABLE, WHICH, SOME, donate_argnums=0)
    assert 3 * TAKEN * LINE <= found < ROWS * LINE / 10
    copied = counted(put, TABLE, WHICH, SOME)  # The caller keeps the old table.
    assert copied - found == pytest.approx(2 * ROWS * LINE, rel=0.01)


def test_a_loop_counts_as_often_as_it_runs():
    square = jax.ShapeDtypeStruct((64, 64), jnp.float32)

    def looped(times):
        return counted(
            lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, None, times)[0], square
        )

    more = looped(50) - looped(10)
    assert more >= 40 * 3 * 64 * 64 * 4


TPU = """HloModule m
%fused (p0: f32[1000,200], p1: s32[64]) -> f32[64,200] {
  %p0 = f32[1000,200]{LAYOUT:T(8,128)} parameter(0)
  %p1 = s32[64]{0:T(128)S(1)} parameter(1)
  ROOT %g = f32[64,200]{1,0:T(8,128)S(1)} gather(%p0, %p1), offset_dims={1}, slice_sizes={1,200}
}

ENTRY %main (a: f32[1000,200], b: s32[64]) -> f32[64,200] {
  %a = f32[1000,200]{LAYOUT:T(8,128)} parameter(0)
  %b = s32[64]{0:T(128)} parameter(1)
  %c = (s32[64]{0:T(128)S(1)}, s32[64]{0:T(128)}, u32[]{:S(2)}) copy-start(%b)
  %d = s32[64]{0:T(128)S(1)} copy-done(%c)
  %s = ((f32[1000,200]{LAYOUT:T(8,128)}), f32[8,200]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) \
slice-start(%a), slice={[0:8], [0:200]}
  %t = f32[8,200]{1,0:T(8,128)S(1)} slice-done(%s)
  ROOT %f = f32[64,200]{1,0:T(8,128)S(1)} fusion(%a, %d), kind=kCustom, calls=%fused
}
"""


@pytest.mark.parametrize(("layout", "lines"), [("1,0", 2), ("0,1", 200)])
def test_what_lies_in_vector_memory_is_free_and_a_row_by_columns_touches_many_lines(layout, lines):
    rest = 64 * 4 + 4 + 8 * 200 * 4  # The indices are copied, a number with them; the slice.
    found = memory_traffic(TPU.replace("LAYOUT", layout))
    assert found == rest + min(64 * lines * LINE, 1000 * 200 * 4)
