"""Embeddings of an older version, which knew fewer nodes of the market and had them otherwise."""

import numpy as np

from star_jax import artefacts
from star_jax.embeddings.table import EmbeddingTable, read_ids, read_table, write_shard
from star_jax.embeddings.transforms.files import write_transform
from star_jax.embeddings.transforms.maps import linear
from star_jax.embeddings.transforms.transform import SHARED, Step, Transform
from star_jax.shapes import NO_TIME
from tests.pipeline.graph_market import COUNTS, skill_of

WIDTH = 8
ROLES = {
    "member": "sender",
    "job": "receiver",
    "recruiter": "sender",
    "member.receiver": "receiver",
}
MISSING = {"member": 3, "member.receiver": 3, "job": 7}  # Nodes that came later.


def write(folder, *, unit_norm=False, roles=ROLES, visible="train", graph="another"):
    """Two shards per table; a node's vector is that of its skill, and a little of its own."""
    rng = np.random.default_rng(5)
    skills = rng.normal(size=(COUNTS["skill"], WIDTH))
    with artefacts.writing(folder, "graph_embeddings") as partial:
        for table in roles:
            name = table.split(".")[0]
            kept = np.setdiff1d(np.arange(COUNTS[name]), [MISSING.get(table, -1)])
            for shard, nodes in enumerate(np.array_split(rng.permutation(kept), 2)):
                vectors = skills[skill_of(nodes)] + 0.2 * rng.normal(size=(len(nodes), WIDTH))
                if unit_norm:
                    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                    vectors[0] = 0  # Nothing is known of a node.
                size = len(nodes)
                rows = EmbeddingTable(
                    entity=np.arange(size, dtype=np.int32),
                    text_id=np.full(size, -1, np.int32),
                    t=np.full(size, NO_TIME, np.int64),
                    vectors=vectors.astype(np.float32),
                )
                write_shard(partial / table, shard, [f"{name}-{node}" for node in nodes], rows)
        meta = {"roles": roles, "embedding_size": WIDTH, "visible": visible, "graph": graph}
        artefacts.set_meta(partial, meta | {"model": "a model"})
    return folder


def write_chain(folder, older):
    """Two transforms that lead on from the older version: widths 8 -> 4 -> 5, a table drops out."""
    rng = np.random.default_rng(6)
    first = {
        table: (Step(linear(rng.normal(size=(WIDTH, 4)), rng.normal(size=4)), renormalise=True),)
        for table in ("member", "job")
    }
    second = {SHARED: (Step(linear(rng.normal(size=(4, 5))), renormalise=False),)}
    versions = [artefacts.digest(older), "a" * 64, "b" * 64]
    folders = []
    for number, steps in enumerate((first, second)):
        transform = Transform("ridge", versions[number], versions[number + 1], steps)
        folders.append(folder / f"transform{number}")
        write_transform(folders[-1], transform, {})
    return folders


def by_id(folder, table):
    """Id -> vector."""
    return dict(zip(read_ids(folder, table), read_table(folder, table).vectors, strict=True))
