"""Which edges of a row an example may see: `samplers/visibility.py` inside the compiled program."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from star_jax.graph.batches import HostOrDevice
from star_jax.graph.engines.mesh.topology import NO_TIME32, Edges

_SPLIT_BITS = 3
_PARTS = 4


class Viewers(NamedTuple):
    """Groups: as of when they see, and which supervised pairs are hidden from each."""

    time: Int32[HostOrDevice, " G"]
    sender: Int32[HostOrDevice, "G P"]  # -1 on padding.
    receiver: Int32[HostOrDevice, "G P"]


class Rule(NamedTuple):
    """What holds for all of them; static."""

    splits: int
    use_time: bool
    max_age: int  # 0: any age.


class Row(NamedTuple):
    """Edges of one relation and node, for one group; as many as there are requests."""

    begin: Int32[Array, " Q"]
    end: Int32[Array, " Q"]  # Of what the time tests leave.
    node: Int32[Array, " Q"]
    group: Int32[Array, " Q"]
    hidden: Int32[Array, " Q"]  # 0: never, 1: hides pairs (sender, receiver), 2: reverse ones.


def time_bounds(
    edges: Edges, viewers: Viewers, rule: Rule, row: Row, dated: Bool[Array, " Q"], longest: int
) -> Row:
    """What the times leave of rows that are sorted by them; none is longer than `longest`."""
    time = viewers.time[row.group]
    timed = time != NO_TIME32
    begin, end = row.begin, row.end
    if rule.use_time:
        end = jnp.where(timed, first_at_least(edges.time, begin, end, time, longest), end)
    if rule.max_age:
        oldest = jnp.maximum(time - min(rule.max_age, 2**31 - 1), NO_TIME32 + 1)
        newer = first_at_least(edges.time, begin, end, oldest, longest)
        begin = jnp.where(timed & dated, newer, begin)
    return row._replace(begin=begin, end=end)


def visible(
    edges: Edges, viewers: Viewers, rule: Rule, row: Row, position: Int32[Array, "Q W"]
) -> Bool[Array, "Q W"]:
    """The tests that the order of a row does not answer; also false outside the row."""
    inside = (position >= row.begin[:, None]) & (position < row.end[:, None])
    position = jnp.where(inside, position, 0)
    split = (edges.flags[position] & _SPLIT_BITS).astype(jnp.int32)
    seen = inside & ((rule.splits >> split) & 1 == 1)
    time = viewers.time[row.group][:, None]
    if rule.use_time and edges.removed.size:
        seen &= (time == NO_TIME32) | (edges.removed[position] > time)
    if viewers.sender.shape[1]:
        seen &= ~_is_hidden(edges, viewers, row, position)
    return seen


def _is_hidden(
    edges: Edges, viewers: Viewers, row: Row, position: Int32[Array, "Q W"]
) -> Bool[Array, "Q W"]:
    forward = (row.hidden == 1)[:, None]
    own = jnp.where(forward, viewers.receiver[row.group], viewers.sender[row.group])
    other = jnp.where(forward, viewers.sender[row.group], viewers.receiver[row.group])
    concerned = (own == row.node[:, None]) & (row.hidden > 0)[:, None]
    listed = edges.sender[position][:, :, None] == jnp.where(concerned, other, -1)[:, None]
    return jnp.any(listed, axis=2)


def first_at_least(
    values: Int32[HostOrDevice, " M"],
    begin: Int32[Array, " Q"],
    end: Int32[Array, " Q"],
    bound: Int32[Array, " Q"],
    longest: int,
) -> Int32[Array, " Q"]:
    """As `search.first_at_least`, for all rows at once; none is longer than `longest`."""
    values = jnp.asarray(values)
    return first_not(lambda position: values[position] < bound[:, None], begin, end, longest)


def first_not(
    is_before: Callable[[Int32[Array, "Q P"]], Bool[Array, "Q P"]],
    begin: Int32[Array, " Q"],
    end: Int32[Array, " Q"],
    longest: int,
) -> Int32[Array, " Q"]:
    """First position in begin:end of each row that is not before what is sought, or `end`.

    Rows are cut in four instead of two, and all as often: a GPU waits longer for the host to ask
    whether any is left than for the steps themselves.

    Args:
      is_before: Whether positions are; of a row the first ones. Asked of position 0 beside them.
      begin: Of rows.
      end: Of rows.
      longest: No row is longer.
    """

    def narrow(_: Int32[Array, ""], row: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = row
        part = (high - low + _PARTS - 1) // _PARTS
        probe = low[:, None] + part[:, None] * jnp.arange(_PARTS)[None]
        inside = probe < high[:, None]
        before = inside & is_before(jnp.where(inside, probe, 0))
        parts = jnp.sum(before, axis=1)  # The answer is behind the last of these.
        return (
            jnp.where(parts > 0, low + (parts - 1) * part + 1, low),
            jnp.where(parts > 0, jnp.minimum(high, low + parts * part), low),
        )

    steps = 0
    while longest > 0:
        longest, steps = -(-longest // _PARTS) - 1, steps + 1
    return jax.lax.fori_loop(0, steps, narrow, (begin, jnp.maximum(begin, end)))[0]
