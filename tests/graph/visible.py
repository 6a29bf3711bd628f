"""The visibility rule in plain Python, edge by edge, and readers of what was sampled."""

import math
from collections import Counter

import numpy as np

from star_jax.graph.samplers.calibrate import SeedBatch, calibrate
from star_jax.graph.samplers.sample import NO_EXCLUSION, sample
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.shapes import NO_TIME

TRAIN = 0b0011  # Splits 0 and train.
VAL = 0b0011
TEST = 0b0111
ALL = 0b1111


def visible_edges(world, key, receiver, time, splits, hidden_pairs=(), use_time=True):
    """(sender, weight) of every edge that the row of `receiver` may show.

    `hidden_pairs` are (sender, receiver) of the forward relation, as in the tables.
    """
    receiver_type = key.split("__")[2]
    sender_type, relation, _ = key.split("__")
    forward = key in world.edges
    stored = key if forward else f"{receiver_type}__{relation.removeprefix('rev_')}__{sender_type}"
    created = world.nodes[sender_type]
    found = []
    for edge in world.edges[stored]:
        near, far = (edge.receiver, edge.sender) if forward else (edge.sender, edge.receiver)
        if near != receiver or not splits >> edge.split & 1:
            continue
        if (edge.sender, edge.receiver) in hidden_pairs:
            continue
        if use_time and time is not None:
            if edge.t is not None and edge.t >= time:
                continue
            if edge.removed_t is not None and edge.removed_t <= time:
                continue
            if created[far] is not None and created[far] >= time:
                continue
        found.append((far, edge.weight))
    return Counter(found)


def text_as_of(world, node_type, node, time, kind="profile"):
    """Index of the last text before a time; ties go to the later row."""
    best, best_time = -1, -math.inf
    for i, text in enumerate(world.texts.get(node_type, [])):
        if text.entity != node or text.kind != kind:
            continue
        if text.t is not None and time is not None and text.t >= time:
            continue
        when = -math.inf if text.t is None else text.t
        if when >= best_time:
            best, best_time = i, when
    return best


def sampled(subgraph, budget, key, hop):
    """Per row of the receivers' block, the multiset of (sender, weight) that was sampled."""
    sender, _, receiver = key.split("__")
    start, num_rows = budget.block(receiver, hop)
    table = subgraph.hops[hop][key]
    nodes = subgraph.nodes[sender].node
    found = {}
    for i in range(num_rows):
        if subgraph.nodes[receiver].mask[start + i]:
            mask = table.mask[i]
            rows = table.index[i][mask]
            assert subgraph.nodes[sender].mask[rows].all()
            found[start + i] = Counter(
                zip(nodes[rows].tolist(), table.weight[i][mask].tolist(), strict=True)
            )
        else:
            assert not table.mask[i].any()
    return found


def sampled_and_visible(subgraph, budget, world, time, splits):
    """(Hop, sampled, visible) of every real row of every table."""
    for hop, tables in enumerate(subgraph.hops):
        for key in tables:
            receiver_type = key.split("__")[2]
            for row, found in sampled(subgraph, budget, key, hop).items():
                node = int(subgraph.nodes[receiver_type].node[row])
                yield hop, found, visible_edges(world, key, node, time, splits)


def draw(store, seed_type, seeds, times, **options):
    """Every seed in a group of its own, with a budget made for exactly this request."""
    seeds = np.asarray(seeds, np.int64)
    options = {
        "groups": np.arange(len(seeds), dtype=np.int32),
        "exclude": NO_EXCLUSION,
        "visible_splits": ALL,
        "fanouts": dict.fromkeys(store.meta.num_edges, (64, 64)),
        "key": 0,  # As in the first batch of `calibrate`: exactly this sample fits the budget.
        "seed_text_row": None,
        "sampler": SamplerConfig(),
        "use_time": True,
    } | options
    group_time = np.asarray([NO_TIME if t is None else t for t in times], np.int64)
    budget = options.pop("budget", None) or make_budget(
        store, seed_type, seeds, group_time, options
    )
    subgraph, stats = sample(
        store, seed_type=seed_type, seeds=seeds, group_time=group_time, budget=budget, **options
    )
    return subgraph, stats, budget


def make_budget(store, seed_type, seeds, group_time, options):
    batch = SeedBatch(
        seeds, options["groups"], group_time, options["exclude"], options["seed_text_row"]
    )
    return calibrate(
        store,
        lambda _: batch,
        options["fanouts"],
        seed_type=seed_type,
        num_seeds=len(seeds),
        visible_splits=options["visible_splits"],
        sampler=options["sampler"],
        use_time=options["use_time"],
        num_batches=1,
    )


def same_bytes(a, b):
    """Asserts that two subgraphs are equal in every array, bit by bit."""
    assert a.nodes.keys() == b.nodes.keys()
    assert [hop.keys() for hop in a.hops] == [hop.keys() for hop in b.hops]
    pairs = [(a.nodes[name], b.nodes[name]) for name in a.nodes]
    pairs += [(x[key], y[key]) for x, y in zip(a.hops, b.hops, strict=True) for key in x]
    for x, y in pairs:
        for name, left, right in zip(x._fields, x, y, strict=True):
            if left is None:  # Rows of identity tables, which no sampler names.
                assert right is None, name
            else:
                assert left.tobytes() == right.tobytes(), name
