"""A small random subgraph with padding everywhere, made without the sampler."""

import numpy as np

from star_jax.graph.batches import Neighbours, NodeTable, PairBatch, Subgraph
from star_jax.graph.features import NodeFeatures
from star_jax.graph.schema import parse_key

COUNTS = {"member": 30, "job": 20, "skill": 12}
KEYS = (
    "member__apply__job",
    "job__rev_apply__member",
    "job__has__skill",
    "skill__rev_has__job",
    "member__has__skill",
    "skill__rev_has__member",
)
FEATURES = (
    NodeFeatures("job", 0, 6, (), 2),
    NodeFeatures("member", 0, 6, (4,), 0),
    NodeFeatures("skill", 12, 0, (), 0),
)
ROWS = {  # Per seed type: rows of every hop's block.
    "member": {"member": (5, 0, 6), "job": (0, 8, 7), "skill": (0, 6, 5)},
    "job": {"member": (0, 6, 4), "job": (6, 0, 9), "skill": (0, 7, 3)},
}
FANOUT = dict.fromkeys(KEYS, (3, 2))


def node_table(rng, features, num_rows, padding):
    """Every row random; the last `padding` rows of it are padding."""
    count = COUNTS[features.node_type]
    texts = rng.normal(size=(7, features.text_size)).astype(np.float32)
    texts /= np.maximum(np.linalg.norm(texts, axis=1, keepdims=True), 1e-6)
    row = rng.integers(-1, 7, num_rows) if features.text_size else np.full(num_rows, -1)
    codes = [rng.integers(0, c, num_rows) for c in features.cardinalities]
    node = rng.integers(0, count, num_rows).astype(np.int32)
    return NodeTable(
        node=node,
        mask=np.arange(num_rows) < num_rows - padding,
        seen=node % 4 != 1,
        text_row=row.astype(np.int32),
        texts=texts,
        categorical=np.stack([*codes], 1).astype(np.int32)
        if codes
        else np.zeros((num_rows, 0), np.int32),
        dense=rng.normal(size=(num_rows, features.dense_size)).astype(np.float32),
    )


def random_subgraph(seed_type, seed=0, fill=0.6):
    """Two hops; about `fill` of the slots are real, row 1 has no neighbour at all."""
    rng = np.random.default_rng(seed)
    rows = ROWS[seed_type]
    nodes = {f.node_type: node_table(rng, f, sum(rows[f.node_type]), 0) for f in FEATURES}
    hops = []
    for hop in range(2):
        tables = {}
        for key in KEYS:
            sender, _, receiver = parse_key(key)
            num_rows = rows[receiver][hop]
            if not num_rows:
                continue
            shape = (num_rows, FANOUT[key][hop])
            mask = rng.random(shape) < fill
            mask[1] = False
            index = rng.integers(0, sum(rows[sender][: hop + 2]), shape)
            tables[key] = Neighbours(
                index=np.where(mask, index, 0).astype(np.int32),
                mask=mask,
                weight=np.where(mask, rng.random(shape) * 3, 0).astype(np.float32),
                age=np.where(mask, rng.random(shape), 0).astype(np.float32),
            )
        hops.append(tables)
    return Subgraph(nodes, tuple(hops))


def random_pairs(seed=0):
    """Seven pairs, the last one padding."""
    rng = np.random.default_rng(seed + 100)
    return PairBatch(
        sender=random_subgraph("member", seed),
        receiver=random_subgraph("job", seed + 1),
        sender_row=rng.integers(0, 5, 7).astype(np.int32),
        receiver_row=rng.integers(0, 6, 7).astype(np.int32),
        label=rng.integers(0, 2, 7).astype(np.float32),
        mask=np.arange(7) < 6,
    )
