"""Where every node table and neighbour table of a budget stands in the sampler's flat arrays."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from star_jax.graph.batches import Budget
from star_jax.graph.samplers import kernels
from star_jax.graph.samplers.memory import POOL
from star_jax.graph.schema import parse_key
from star_jax.graph.store import GraphStore, relation_salt

_MAX_TYPES = 63  # A hash key holds type, group and node in 6, 27 and 31 bits.


class Table(NamedTuple):
    """One neighbour table: where its slots begin and its shape."""

    key: str
    start: int
    num_rows: int
    width: int


class Layout(NamedTuple):
    """Sizes of all tables and their places."""

    types: tuple[str, ...]
    sizes: Int[np.ndarray, "types hops_plus_1"]
    base: Int[np.ndarray, " types"]
    hops: tuple[tuple[Table, ...], ...]
    num_slots: int

    def block(self, type_index: int, hop: int) -> tuple[int, int]:
        """First and end row of a hop's block in the table of a type."""
        start = int(self.sizes[type_index, :hop].sum())
        return start, start + int(self.sizes[type_index, hop])


class Expansion(NamedTuple):
    """A sample before its features; `dropped` counts edges cut for want of a row."""

    rows: kernels.Rows
    slots: kernels.Slots
    used: Int[np.ndarray, "types hops_plus_1"]
    dropped: Int[np.ndarray, "types hops_plus_1"]

    def real_rows(self, layout: Layout, type_index: int) -> Int[np.ndarray, " real"]:
        """Rows of one type's table that hold a node; those of the seeds come first."""
        blocks = [
            np.arange(start, start + used)
            for hop, used in enumerate(self.used[type_index].tolist())
            for start, _ in [layout.block(type_index, hop)]
        ]
        return np.concatenate(blocks)


@functools.lru_cache(maxsize=64)
def layout_of(budget: Budget) -> Layout:
    """Lays out a budget; the same for every batch.

    Raises:
      ValueError: The budget gives rows to the receivers of a relation but none to its senders.
    """
    types = tuple(name for name, _ in budget.rows)
    if len(types) > _MAX_TYPES:
        raise ValueError(f"budget has {len(types)} node types, needed at most {_MAX_TYPES}")
    sizes = np.asarray([size for _, size in budget.rows], np.int64)
    start = 0
    hops = []
    for hop in range(budget.num_hops):
        tables = []
        for key, widths in budget.fanout:
            sender, _, receiver = parse_key(key)
            num_rows = budget.block(receiver, hop)[1]
            if not widths[hop] or not num_rows:
                continue
            if sender not in types:
                raise ValueError(f"budget samples {key} but has no rows for {sender!r}")
            tables.append(Table(key, start, num_rows, widths[hop]))
            start += num_rows * widths[hop]
        hops.append(tuple(tables))
    totals = sizes.sum(axis=1)
    return Layout(types, sizes, np.cumsum(totals) - totals, tuple(hops), start)


def empty_rows(layout: Layout) -> kernels.Rows:
    """Fresh node tables: no row taken."""
    num_rows, num_types = int(layout.sizes.sum()), len(layout.types)
    num_places = 1 << max(4, (2 * num_rows).bit_length())
    return kernels.Rows(
        node=POOL.zeros((num_rows,), np.int32),
        group=POOL.zeros((num_rows,), np.int32),
        base=np.append(layout.base, num_rows),
        cursor=np.zeros(num_types, np.int64),
        limit=np.zeros(num_types, np.int64),
        dropped=np.zeros(num_types, np.int64),
        places=POOL.zeros((num_places,), np.int32),
    )


def empty_slots(layout: Layout) -> kernels.Slots:
    """Fresh neighbour tables: all padding."""
    shape = (layout.num_slots,)
    return kernels.Slots(
        POOL.zeros(shape, np.int32),
        POOL.zeros(shape, np.bool_),
        POOL.zeros(shape, np.float32),
        POOL.zeros(shape, np.float32),
    )


def relations_into(
    store: GraphStore,
    layout: Layout,
    hop: int,
    receiver: str,
    fanouts: dict[str, int],
    hides: dict[str, int],
) -> kernels.Relations | None:
    """What to sample into the hop's block of one type; None if nothing.

    Args:
      store: Gives the column of each relation.
      layout: Gives the tables.
      hop: Of the receivers.
      receiver: Their type.
      fanouts: Edge key -> neighbours to draw at this hop.
      hides: Edge key -> how supervised pairs hide its edges, if they do (`Relations.hidden`).
    """
    column = {edge.key: j for j, edge in enumerate(store.relations[receiver])}
    kind = {edge.key: edge.kind for edge in store.relations[receiver]}
    tables = [table for table in layout.hops[hop] if table.key in column]
    if not tables:
        return None
    type_index = {name: i for i, name in enumerate(layout.types)}

    def integers(values: list[int]) -> np.ndarray:
        return np.asarray(values, np.int64)

    return kernels.Relations(
        column=integers([column[table.key] for table in tables]),
        salt=np.asarray([relation_salt(table.key) for table in tables], np.uint64),
        fanout=integers([fanouts[table.key] for table in tables]),
        width=integers([table.width for table in tables]),
        sender_type=integers([type_index[parse_key(table.key)[0]] for table in tables]),
        start=integers([table.start for table in tables]),
        hidden=integers([hides.get(table.key, 0) for table in tables]),
        dated=np.asarray([kind[table.key] == "interaction" for table in tables]),
        traits=integers([store.meta.traits[table.key] for table in tables]),
        longest=integers([store.meta.max_degree[table.key] for table in tables]),
    )
