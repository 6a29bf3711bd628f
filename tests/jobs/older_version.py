"""Embeddings of an older version as a training meets them: other rows, fewer nodes, two shards."""

import numpy as np

from star_jax import artefacts
from star_jax.embeddings.table import EmbeddingTable, read_ids, read_table, write_shard

MISSING = {"member": 3, "member.receiver": 3, "job": 7}  # Nodes that came later.


def write(folder, source):
    """What `export-graph` wrote in `source`, in another order and without what came later."""
    rng = np.random.default_rng(5)
    meta = artefacts.read_manifest(source, "graph_embeddings").meta
    with artefacts.writing(folder, "graph_embeddings") as partial:
        for name in meta["roles"]:
            ids, table = read_ids(source, name), read_table(source, name)
            kept = [row for row in range(len(ids)) if row != MISSING.get(name)]
            order = rng.permutation(kept)
            for shard, rows in enumerate(np.array_split(order, 2)):
                part = EmbeddingTable(*(np.asarray(column)[rows] for column in table))
                write_shard(partial / name, shard, [ids[row] for row in rows], part)
        artefacts.set_meta(partial, meta)
    return folder


def vectors_by_id(folder, name):
    """Id -> vector."""
    return dict(zip(read_ids(folder, name), read_table(folder, name).vectors, strict=True))
