"""A small graph with all that tells the layers apart, and models of it whose parameters matter.

Members know members and apply to jobs; one member, one job and one skill have no edge;
one skill is asked for by nearly every job. Some applications belong to later splits, some texts
were written after the last visible event.
"""

import jax
import numpy as np

from star_jax.graph.decoders import DecoderConfig
from star_jax.graph.encoder import GraphEncoderConfig
from star_jax.graph.features import FeatureConfig
from star_jax.graph.match import MatchConfig
from star_jax.graph.model import GraphModel, GraphModelConfig, LinkTask, init_model
from star_jax.graph.samplers.channels import channel_key
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline.graph_loader import Sampling
from star_jax.pipeline.graph_model import node_features
from star_jax.pipeline.graph_programs import RowShards
from tests.graph.worlds import Edge, Text, World

COUNTS = {"member": 14, "job": 12, "skill": 5}
TASK = LinkTask("apply", "member", "job")
TARGETS = (("sender", "member"), ("receiver", "job"), ("sender", "skill"), ("receiver", "member"))
ONE = RowShards(make_mesh(MeshConfig(data=1)))
MANY = RowShards(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
KNOWS, APPLY = "member__knows__member", "member__apply__job"


def world(*, knows: bool) -> World:
    """The graph; `knows`: with the relation within a type."""
    rng = np.random.default_rng(5)

    def edges(sender, receiver, num, **fields):
        pairs = {
            (int(rng.integers(COUNTS[sender] - 1)), int(rng.integers(COUNTS[receiver] - 1)))
            for _ in range(num)
        }
        return [
            Edge(*pair, weight=float(rng.uniform(0.5, 2)), **{n: f(i) for n, f in fields.items()})
            for i, pair in enumerate(sorted(pairs))
        ]

    needs = edges("job", "skill", 10)
    asked = {edge.sender for edge in needs if edge.receiver == 0}
    needs += [Edge(job, 0) for job in range(COUNTS["job"] - 1) if job not in asked]
    relations = {
        APPLY: edges(
            "member", "job", 50, t=lambda i: 100 + i, split=lambda i: 1 + (i % 5 > 2) + (i % 5 > 3)
        ),
        "job__needs__skill": needs,
    }
    if knows:
        relations[KNOWS] = edges("member", "member", 30, t=lambda i: 90 + i)
    return World(
        nodes={name: [None] * count for name, count in COUNTS.items()},
        edges=relations,
        texts={
            "member": [Text(m, t) for m in range(COUNTS["member"] - 2) for t in (0, 120, 900)],
            "job": [Text(j, 10) for j in range(COUNTS["job"])],
        },
        categorical={"job": {"site": [j % 10 for j in range(COUNTS["job"])]}},
        dense={"member": {"years": [float(m) for m in range(COUNTS["member"])]}},
        kinds={key: "attribute" for key in relations if key not in (APPLY, KNOWS)},
    )


def model_of(store, sampling, identity_rows=None, **options):
    """A model and random variables: no bias or running statistic is what training begins with."""
    encoder = {"dim": 8, "multiplier": 1, "heads": 2, "layers": sampling.num_hops}
    config = GraphModelConfig(
        features=FeatureConfig(identity_types=("skill",), identity_rows=identity_rows),
        encoder=GraphEncoderConfig(**encoder | options),
        decoder=DecoderConfig(hidden_size=8, match=MatchConfig(width=4, text_width=4)),
    )
    keys = (*sorted(store.meta.num_edges), *sorted(sampling.channels))
    model = GraphModel(config, node_features(config.features, store, (TASK,)), keys, (TASK,))
    shapes = jax.eval_shape(lambda: init_model(model, 0))
    rng = np.random.default_rng(1)

    def drawn(path, leaf):
        # The text vectors of a world are long: they name their text.
        scale = 0.01 if path[-1].key == "text_kernel" else 0.3
        values = rng.normal(scale=scale, size=leaf.shape).astype(np.float32)
        return np.abs(values) + 0.1 if path[-1].key == "variance" else values

    params, statistics = jax.tree_util.tree_map_with_path(drawn, shapes)
    return model, {"params": params, "batch_stats": statistics}


def visible_edges(world, splits, node_type, node):
    """Edge key, sender and edge of all visible ones that end in a node."""
    for key, edges in world.edges.items():
        sender, relation, receiver = key.split("__")
        for edge in edges:
            if splits >> edge.split & 1:
                if (receiver, edge.receiver) == (node_type, node):
                    yield key, edge.sender, edge
                if (sender, edge.sender) == (node_type, node):
                    yield f"{receiver}__rev_{relation}__{sender}", edge.receiver, edge


def sampling_of(store, *hops, receiver_keys=None, **fields):
    """The same number of neighbours for all relations at each hop."""
    fanouts = dict.fromkeys(sorted(store.meta.num_edges), hops)
    return Sampling(fanouts=fanouts, receiver_keys=receiver_keys, **fields)


def channels():
    """Three ranked neighbours of each other type for the seeds of both roles."""
    return {
        channel_key(name, seed): 3 for seed in ("member", "job") for name in COUNTS if name != seed
    }
