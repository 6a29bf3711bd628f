"""Measures how many rows batches need, so that the step compiles once for one budget."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from star_jax.graph.batches import Budget
from star_jax.graph.samplers import search
from star_jax.graph.samplers.gather import texts_of
from star_jax.graph.samplers.layout import Expansion, Layout, layout_of
from star_jax.graph.samplers.sample import Exclusion, Fanouts, expand
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.schema import parse_key
from star_jax.graph.store import GraphStore

_MULTIPLE = 8


class SeedBatch(NamedTuple):
    """The seeds of one batch; the fields are arguments of `sample`."""

    seeds: Int[np.ndarray, " S"]
    groups: Int[np.ndarray, " S"]
    group_time: Int[np.ndarray, " G"]
    exclude: Exclusion
    seed_text_row: Int[np.ndarray, " S"] | None


def calibrate(
    store: GraphStore,
    make_seeds: Callable[[int], SeedBatch],
    fanouts: Fanouts,
    *,
    seed_type: str,
    num_seeds: int,
    visible_splits: int,
    sampler: SamplerConfig,
    use_time: bool = True,
    num_batches: int = 16,
    key: int | None = None,
    headroom: float = 1.1,
) -> Budget:
    """Samples a few batches without limits and adds some room.

    Args:
      store: The graph.
      make_seeds: Batch number, from 0 on, to its seeds.
      fanouts: Neighbours to draw.
      seed_type: Node type of the seeds.
      num_seeds: The most seeds a batch can have: their rows never overflow.
      visible_splits: As in `sample`, like `sampler` and `use_time`.
      num_batches: How many to look at.
      key: Of all draws. None: each batch draws by its number, as no other batch will.
      headroom: The sizes, times what was found; 1 is enough for the very draws looked at.
    """
    num_hops = len(next(iter(fanouts.values()))) if fanouts else 0
    reach = _reachable(seed_type, fanouts, num_hops)
    need: dict[str, np.ndarray] = {name: np.zeros(num_hops + 1, np.int64) for name in reach}
    texts = dict.fromkeys(reach, 0)
    for number, batch in enumerate(map(make_seeds, range(num_batches))):
        layout = layout_of(_unlimited(store, batch, seed_type, fanouts, reach))
        expansion = expand(
            store,
            layout,
            seed_type=seed_type,
            seeds=batch.seeds,
            groups=batch.groups,
            group_time=batch.group_time,
            exclude=batch.exclude,
            visible_splits=visible_splits,
            fanouts=fanouts,
            key=number if key is None else key,
            seed_text_row=batch.seed_text_row,
            sampler=sampler,
            use_time=use_time,
        )
        for i, name in enumerate(layout.types):
            need[name] = np.maximum(need[name], expansion.used[i])
            num_texts = _num_texts(store, layout, i, expansion, batch, seed_type)
            texts[name] = max(texts[name], num_texts)
    rows = {name: _blocks(need[name] * headroom, reach[name]) for name in sorted(need)}
    rows[seed_type] = (-(-num_seeds // _MULTIPLE) * _MULTIPLE, *rows[seed_type][1:])
    room = {name: _padded(count * headroom) for name, count in texts.items()}
    return Budget(
        rows=tuple(rows.items()),
        fanout=tuple(sorted((key, tuple(hops)) for key, hops in fanouts.items())),
        texts=tuple((n, room[n] if n in store.text_vectors else 0) for n in sorted(room)),
    )


def _blocks(need: Float64[np.ndarray, " hops"], reach: list[bool]) -> tuple[int, ...]:
    return tuple(_padded(n) if can else 0 for n, can in zip(need.tolist(), reach, strict=True))


def _padded(size: float) -> int:
    return max(1, math.ceil(size / _MULTIPLE)) * _MULTIPLE


def _reachable(seed_type: str, fanouts: Fanouts, num_hops: int) -> dict[str, list[bool]]:
    """Node type -> per hop, whether any neighbour can be of that type."""
    layers = [{seed_type}]
    for hop in range(num_hops):
        layers.append(
            {
                sender
                for key, hops in fanouts.items()
                for sender, _, receiver in [parse_key(key)]
                if receiver in layers[hop] and hops[hop]
            }
        )
    names = sorted(set().union(*layers))
    return {name: [name in layer for layer in layers] for name in names}


def _unlimited(
    store: GraphStore,
    batch: SeedBatch,
    seed_type: str,
    fanouts: Fanouts,
    reach: dict[str, list[bool]],
) -> Budget:
    """Room for every node that the fanouts could reach."""
    num_hops = len(reach[seed_type]) - 1
    rows = {name: [0] * (num_hops + 1) for name in reach}
    rows[seed_type][0] = len(batch.seeds)
    for hop in range(num_hops):
        for key, hops in fanouts.items():
            sender, _, receiver = parse_key(key)
            if receiver in rows and reach[receiver][hop] and hops[hop]:
                rows[sender][hop + 1] += rows[receiver][hop] * hops[hop]
        for name, sizes in rows.items():
            most = store.num_nodes[name] * len(batch.group_time)
            sizes[hop + 1] = min(sizes[hop + 1], most)
    return Budget(
        rows=tuple((name, tuple(sizes)) for name, sizes in rows.items()),
        fanout=tuple((key, tuple(hops)) for key, hops in fanouts.items()),
        texts=(),
    )


def _num_texts(
    store: GraphStore,
    layout: Layout,
    type_index: int,
    expansion: Expansion,
    batch: SeedBatch,
    seed_type: str,
) -> int:
    """Distinct texts of one type's rows."""
    real = expansion.real_rows(layout, type_index) + layout.base[type_index]
    pointed = None if batch.seed_text_row is None else (seed_type, batch.seed_text_row)
    text = texts_of(
        store,
        layout.types[type_index],
        expansion.rows.node[real],
        batch.group_time[expansion.rows.group[real]],
        pointed,
    )
    return len(search.number(text, len(text))[1])
