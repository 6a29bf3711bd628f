"""The neighbourhoods of seeds, chosen among the edges that each example may see.

Every draw is a function of (key, relation, node, slot), so one key gives one sample whatever the
batch around it, the number of threads, or what lies in the example's future.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt64

from star_jax.graph.batches import Budget, Subgraph
from star_jax.graph.samplers import draws, kernels
from star_jax.graph.samplers.channels import fill
from star_jax.graph.samplers.gather import gather, known_texts
from star_jax.graph.samplers.layout import (
    Expansion,
    Layout,
    empty_rows,
    empty_slots,
    layout_of,
    relations_into,
)
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.samplers.visibility import Edges, Rule
from star_jax.graph.schema import reverse_key
from star_jax.graph.store import GraphStore

Fanouts = Mapping[str, tuple[int, ...]]
"""Edge key -> neighbours per node at every hop."""

Walk = Callable[..., None]
"""What fills the slots of one block of rows; takes what `kernels.expand_by` does."""

_MAX_GROUPS = 1 << 27
_WORD = (1 << 64) - 1


class Exclusion(NamedTuple):
    """Supervised pairs, each hidden from its own group in both directions.

    `edge_keys` are forward keys, whose sender and receiver types are those of the pairs.
    """

    group: Int[np.ndarray, " X"]
    sender: Int[np.ndarray, " X"]
    receiver: Int[np.ndarray, " X"]
    edge_keys: tuple[str, ...]


_NONE = np.zeros(0, np.int32)
NO_EXCLUSION = Exclusion(group=_NONE, sender=_NONE, receiver=_NONE, edge_keys=())


class StageSeconds:
    """What samples took of all threads together, by stage."""

    def __init__(self) -> None:
        self._lock, self._sums = threading.Lock(), (0.0, 0.0)

    def add(self, sampling: float, gather: float) -> None:
        """Counts one sample: its edges, its features."""
        with self._lock:
            self._sums = (self._sums[0] + sampling, self._sums[1] + gather)

    def take(self) -> dict[str, float]:
        """The sums since the last call."""
        with self._lock:
            (sampling, gather), self._sums = self._sums, (0.0, 0.0)
        return {"sampling": sampling, "gather": gather}


class SampleStats(NamedTuple):
    """What one sample left out and how full it was.

    Attributes:
      dropped_edges: Node type -> per hop from 1 on, edges cut because no row was left.
      dropped_texts: Node type -> rows without their text because no vector row was left.
      fill: Real rows over padded rows of the node tables.
    """

    dropped_edges: dict[str, tuple[int, ...]]
    dropped_texts: dict[str, int]
    fill: float

    @property
    def num_dropped(self) -> int:
        """All of it; 0 means that the budget held."""
        edges = sum(sum(hops) for hops in self.dropped_edges.values())
        return edges + sum(self.dropped_texts.values())


def sampling_key(run_seed: int, step: int) -> int:
    """The key of one step's draws (evaluation: of one batch's)."""
    word: UInt64[np.ndarray, ""] = draws.stream(
        np.uint64(run_seed & _WORD), np.uint64(0x53544152), step
    )
    return int(word)


def sample(
    store: GraphStore,
    *,
    seed_type: str,
    seeds: Int[np.ndarray, " S"],
    groups: Int[np.ndarray, " S"],
    group_time: Int[np.ndarray, " G"],
    exclude: Exclusion,
    visible_splits: int,
    fanouts: Fanouts,
    budget: Budget,
    key: int,
    seed_text_row: Int[np.ndarray, " S"] | None,
    sampler: SamplerConfig,
    use_time: bool = True,
    walk: Walk | None = None,
    seconds: StageSeconds | None = None,
) -> tuple[Subgraph, SampleStats]:
    """Samples the neighbourhood of every seed as its group may see it.

    Seed i is row i of its type's table. Neighbours are de-duplicated by (node, group).

    Args:
      seeds: Nodes of the type; repeated ones get rows of their own.
      groups: Group of each seed.
      group_time: Per group, the time as of which it sees; NO_TIME: no time test.
      visible_splits: Bit s is set where edges of split s are visible.
      fanouts: Neighbours to draw; at most the budget's width, the rest of which stays padding.
      budget: Padded sizes, from `calibrate`.
      key: From `sampling_key`; 64 bits.
      seed_text_row: Per seed the text its event points to (-1: none); None: as of the group's time.
      use_time: False for the split rule: no time hides anything, though texts and ages follow it.
      walk: Another way to draw edges than the sampler's own.
      seconds: Is told what it took.

    Returns:
      The padded subgraph and what did not fit into it.
    """
    layout, begun = layout_of(budget), time.perf_counter()
    expansion = expand(
        store,
        layout,
        seed_type=seed_type,
        seeds=seeds,
        groups=groups,
        group_time=group_time,
        exclude=exclude,
        visible_splits=visible_splits,
        fanouts=fanouts,
        key=key,
        seed_text_row=seed_text_row,
        sampler=sampler,
        use_time=use_time,
        walk=walk,
    )
    sampled = time.perf_counter()
    pointed = None if seed_text_row is None else (seed_type, seed_text_row)
    subgraph, dropped_texts = gather(store, budget, layout, expansion, group_time, pointed)
    (seconds or StageSeconds()).add(sampled - begun, time.perf_counter() - sampled)
    return subgraph, _stats(layout, expansion, dropped_texts)


def expand(
    store: GraphStore,
    layout: Layout,
    *,
    seed_type: str,
    seeds: Int[np.ndarray, " S"],
    groups: Int[np.ndarray, " S"],
    group_time: Int[np.ndarray, " G"],
    exclude: Exclusion,
    visible_splits: int,
    fanouts: Fanouts,
    key: int,
    seed_text_row: Int[np.ndarray, " S"] | None,
    sampler: SamplerConfig,
    use_time: bool,
    walk: Walk | None = None,
) -> Expansion:
    """`sample` without the features: rows for the seeds, then hop by hop for their neighbours."""
    _check_seeds(store, layout, seed_type, seeds, groups, len(group_time))
    rule = _rule(group_time, exclude, visible_splits, use_time, sampler.max_age)
    draw = walk or kernels.expand_by(sampler.pick)
    shared = known_texts(store, seed_type, seeds, group_time[groups], seed_text_row)
    rows, slots = empty_rows(layout), empty_slots(layout)
    num_types, num_blocks = layout.sizes.shape
    used = np.zeros((num_types, num_blocks), np.int64)
    dropped = np.zeros((num_types, num_blocks), np.int64)
    seed_index = layout.types.index(seed_type)
    rows.limit[seed_index] = layout.sizes[seed_index, 0]
    kernels.add_seeds(rows, seed_index, seeds.astype(np.int32), groups.astype(np.int32), shared)
    used[seed_index, 0] = len(seeds)
    hidden = hides(exclude.edge_keys if len(exclude.group) else ())
    for hop in range(num_blocks - 1):
        for i in range(num_types):
            rows.cursor[i], rows.limit[i] = layout.block(i, hop + 1)
        drawn = _drawn(layout, hop, fanouts)
        if hop == 0:
            seeds_block = (seed_index, 0, len(seeds))
            fill(store, layout, rows, slots, rule, sampler, seeds_block, drawn, hidden, key)
        for i, receiver in enumerate(layout.types):
            relations = relations_into(store, layout, hop, receiver, drawn, hidden)
            if relations is None or used[i, hop] == 0:
                continue
            first, _ = layout.block(i, hop)
            draw(
                Edges(*store.adjacency[receiver]),
                relations,
                rule,
                rows,
                slots,
                (i, first, first + int(used[i, hop])),
                sampler.replace,
                np.uint64(key),
                store.meta.age_unit,
                kernels.Memory.of(relations),
            )
        for i in range(num_types):
            used[i, hop + 1] = rows.cursor[i] - layout.block(i, hop + 1)[0]
        dropped[:, hop + 1] = rows.dropped - dropped.sum(axis=1)
    return Expansion(rows, slots, used, dropped)


def _stats(layout: Layout, expansion: Expansion, dropped_texts: dict[str, int]) -> SampleStats:
    dropped = {n: tuple(expansion.dropped[i, 1:].tolist()) for i, n in enumerate(layout.types)}
    fill = float(expansion.used.sum() / max(layout.sizes.sum(), 1))
    return SampleStats(dropped_edges=dropped, dropped_texts=dropped_texts, fill=fill)


def _rule(
    group_time: Int[np.ndarray, " G"],
    exclude: Exclusion,
    visible_splits: int,
    use_time: bool,
    max_age: int | None,
) -> Rule:
    num_groups = len(group_time)
    if not 0 < visible_splits < 16:
        raise ValueError(f"visible_splits is {visible_splits}, needed bits 0 to 3, at least one")
    if num_groups > _MAX_GROUPS:
        raise ValueError(f"{num_groups} groups in one sample, needed at most {_MAX_GROUPS}")
    if len(exclude.group) and not (exclude.group.min() >= 0 and exclude.group.max() < num_groups):
        raise ValueError(f"exclude.group is outside the {num_groups} groups of this sample")
    pairs = exclude.sender.astype(np.int64) << 32 | exclude.receiver.astype(np.int64)
    order = np.lexsort((pairs, exclude.group))
    bounds = np.searchsorted(exclude.group[order], np.arange(num_groups + 1))
    return Rule(
        time=group_time.astype(np.int64),
        use_time=use_time,
        max_age=max_age or 0,
        splits=visible_splits,
        pair_bounds=bounds.astype(np.int64),
        pairs=pairs[order],
    )


def hides(edge_keys: Iterable[str]) -> dict[str, int]:
    """How supervised pairs of these edges hide them and their reverses, as in `Relations.hidden`.

    A reverse edge lists the pair's receiver in the row of its sender.
    """
    keys = tuple(edge_keys)
    return dict.fromkeys(keys, 1) | {reverse_key(key): 2 for key in keys}


def _drawn(layout: Layout, hop: int, fanouts: Fanouts) -> dict[str, int]:
    drawn = {}
    for table in layout.hops[hop]:
        drawn[table.key] = fanouts[table.key][hop]
        if not 0 <= drawn[table.key] <= table.width:
            raise ValueError(
                f"fanout of {table.key} at hop {hop} is {drawn[table.key]}, "
                f"needed 0 to the budget's {table.width}"
            )
    return drawn


def _check_seeds(
    store: GraphStore,
    layout: Layout,
    seed_type: str,
    seeds: Int[np.ndarray, " S"],
    groups: Int[np.ndarray, " S"],
    num_groups: int,
) -> None:
    if seed_type not in layout.types:
        raise ValueError(f"budget has no rows for the seed type {seed_type!r}")
    capacity = int(layout.sizes[layout.types.index(seed_type), 0])
    if len(seeds) > capacity:
        raise ValueError(f"{len(seeds)} seeds, needed at most the budget's {capacity}")
    for name, values, end in (
        (f"seeds of type {seed_type}", seeds, store.num_nodes[seed_type]),
        ("groups", groups, num_groups),
    ):
        if len(values) and not (values.min() >= 0 and values.max() < end):
            raise ValueError(
                f"{name} range over [{values.min()}, {values.max()}], needed 0 to {end - 1}"
            )
