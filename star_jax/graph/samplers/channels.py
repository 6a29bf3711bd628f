"""Joins personalised PageRank to the walk over rows: the tables of its neighbours at the first hop.

A channel holds neighbours of one node type, as if an edge type `type__ppr__seed` led there.
"""

import functools
from collections.abc import Mapping

import numpy as np

from star_jax.graph.samplers import kernels, ppr
from star_jax.graph.samplers.layout import Layout, Table
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.samplers.visibility import Edges, Rule
from star_jax.graph.schema import PPR, EdgeType, parse_key
from star_jax.graph.store import GraphStore, relation_salt


def channel_key(neighbour: str, seed: str) -> str:
    """Names the table of one type's neighbours, like an edge key."""
    return EdgeType(sender=neighbour, relation=PPR, receiver=seed, kind="attribute").key


def is_channel(key: str) -> bool:
    """Whether a key names such a table."""
    return parse_key(key)[1] == PPR


def fill(
    store: GraphStore,
    layout: Layout,
    rows: kernels.Rows,
    slots: kernels.Slots,
    rule: Rule,
    sampler: SamplerConfig,
    block: tuple[int, int, int],
    drawn: Mapping[str, int],
    hides: Mapping[str, int],
    key: int,
) -> None:
    """Fills the channels of the seeds, if the layout has any.

    Args:
      store: The graph.
      layout: Of the budget.
      rows: Already hold the seeds.
      slots: Take the neighbours; weights are scores.
      rule: Who sees what.
      sampler: How scores are found.
      block: The seeds: (type, first row, end row).
      drawn: Channel -> neighbours to take.
      hides: As in `relations_into`.
      key: Of the walks' draws.
    """
    seed_type = layout.types[block[0]]
    tables = [t for t in layout.hops[0] if is_channel(t.key) and parse_key(t.key)[2] == seed_type]
    if not tables:
        return
    settings, most = _settings(sampler)
    graph, channels = graph_of(store, hides), _channels(store, layout, tables, drawn)
    ppr.expand(
        graph,
        channels,
        rule,
        rows,
        slots,
        block,
        list(store.relations).index(seed_type),
        settings,
        ppr.Memory.of(graph, settings, most, int(channels.taken.max())),
        np.uint64(key),
    )


def graph_of(store: GraphStore, hides: Mapping[str, int]) -> ppr.Graph:
    """The whole graph, as the kernels see it.

    Args:
      store: Keeps its node types in one order.
      hides: As in `relations_into`.
    """
    types = list(store.relations)
    width = max(1, *(len(into) for into in store.relations.values()))
    sender_type = np.full((len(types), width), -1, np.int64)
    hidden = np.zeros((len(types), width), np.int64)
    dated = np.zeros((len(types), width), np.bool_)
    traits = np.zeros((len(types), width), np.int64)
    for i, into in enumerate(store.relations.values()):
        for j, edge in enumerate(into):
            sender_type[i, j] = types.index(edge.sender)
            hidden[i, j] = hides.get(edge.key, 0)
            dated[i, j] = edge.kind == "interaction"
            traits[i, j] = store.meta.traits[edge.key]
    edges = tuple(Edges(*store.adjacency[name]) for name in types)
    return ppr.Graph(edges, sender_type, hidden, dated, traits)


def _channels(
    store: GraphStore, layout: Layout, tables: list[Table], drawn: Mapping[str, int]
) -> ppr.Channels:
    types = list(store.relations)
    names = [parse_key(table.key)[0] for table in tables]

    def integers(values: list[int]) -> np.ndarray:
        return np.asarray(values, np.int64)

    return ppr.Channels(
        graph_type=integers([types.index(name) for name in names]),
        table_type=integers([layout.types.index(name) for name in names]),
        start=integers([table.start for table in tables]),
        width=integers([table.width for table in tables]),
        taken=integers([drawn[table.key] for table in tables]),
    )


@functools.cache
def _settings(sampler: SamplerConfig) -> tuple[ppr.Settings, int]:
    """What the kernels are told, and how many nodes they can meet."""
    config = sampler.ppr
    walks = config.num_walks if sampler.kind == "ppr_walks" else 0
    settings = ppr.Settings(
        config.alpha,
        config.epsilon,
        config.neighbour_cap,
        walks,
        np.uint64(relation_salt(PPR)),
    )
    return settings, 1 + walks * ppr.LONGEST_WALK if walks else config.most_pushed
