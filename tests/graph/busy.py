"""A random temporal world, seeds in it and what an engine is asked about them."""

import dataclasses

import numpy as np

from star_jax.graph.engines.protocol import Question
from star_jax.graph.samplers.calibrate import SeedBatch, calibrate
from star_jax.graph.samplers.sample import Exclusion
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.shapes import NO_TIME
from tests.graph.worlds import Edge, Text, World

COUNTS = {"member": 40, "job": 30, "skill": 6}
APPLY = "member__apply__job"
SEEDS, GROUPS, PAIRS = 12, 5, 15


def make_world():
    """Busy and idle nodes, undated and removed edges, ties, nodes and texts of several times."""
    rng = np.random.default_rng(0)

    def edges(key, number, *, dated=True):
        sender, _, receiver = key.split("__")
        return [
            Edge(
                int(COUNTS[sender] * rng.random() ** 2),
                int(rng.integers(COUNTS[receiver])),
                int(rng.integers(0, 100)) if dated and rng.random() < 0.9 else None,
                int(rng.integers(50, 120)) if rng.random() < 0.2 else None,
                float(np.float32(rng.random() + 0.1)),
                int(rng.integers(0, 4)),
            )
            for _ in range(number)
        ]

    numbers = {APPLY: 900, "member__knows__member": 100}
    attributes = {"member__has__skill": 80, "job__has__skill": 50}
    return World(
        nodes={
            name: [int(rng.integers(0, 90)) if rng.random() < 0.4 else None for _ in range(count)]
            for name, count in COUNTS.items()
        },
        edges={key: edges(key, n) for key, n in numbers.items()}
        | {key: edges(key, n, dated=False) for key, n in attributes.items()},
        kinds=dict.fromkeys(attributes, "attribute"),
        texts={
            name: [
                Text(int(rng.integers(COUNTS[name])), int(rng.integers(100)))
                for _ in range(2 * COUNTS[name])
            ]
            for name in ("member", "job")
        },
        categorical={"job": {"kind": rng.integers(0, 10, COUNTS["job"]).tolist()}},
        dense={"job": {"pay": rng.normal(size=COUNTS["job"]).tolist()}},
    )


def seeds_of(store, rng):
    """Members in groups of several times, some of them twice, with texts that events point to."""
    seeds = rng.integers(0, COUNTS["member"], SEEDS).astype(np.int32)
    seeds[1] = seeds[0]
    groups = np.sort(rng.integers(0, GROUPS, SEEDS)).astype(np.int32)
    groups[:2] = 0
    time = rng.integers(20, 110, GROUPS)
    time[rng.integers(GROUPS)] = NO_TIME
    versions = store.text_versions["member"]
    text = np.full(SEEDS, -1, np.int32)
    for i, node in enumerate(seeds):
        own = versions.text[versions.bounds[node] : versions.bounds[node + 1]]
        text[i] = rng.choice(own) if len(own) and rng.random() < 0.8 else -1
    hidden = Exclusion(
        rng.integers(0, GROUPS, PAIRS).astype(np.int32),
        rng.choice(seeds, PAIRS).astype(np.int32),
        rng.integers(0, COUNTS["job"], PAIRS).astype(np.int32),
        (APPLY,),
    )
    return SeedBatch(seeds, groups, time.astype(np.int64), hidden, text)


def question_of(store, batches, fanout, *, sampler=None, shrink=0, use_time=True, keys=None):
    options = {
        "seed_type": "member",
        "visible_splits": 0b0111,
        "sampler": sampler or SamplerConfig(),
        "use_time": use_time,
    }
    budget = calibrate(
        store,
        lambda number: batches[number],
        {key: fanout for key in keys or store.meta.num_edges},  # noqa: C420 - for its type.
        num_seeds=SEEDS,
        num_batches=len(batches),
        **options,
    )
    rows = tuple(
        (name, (sizes[0], *(max(size - shrink, 1) if size else 0 for size in sizes[1:])))
        for name, sizes in budget.rows
    )
    return Question(
        budget=dataclasses.replace(budget, rows=rows),
        edge_keys=(APPLY,),
        num_groups=GROUPS,
        pairs_per_group=PAIRS,
        **options,
    )
