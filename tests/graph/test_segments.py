import jax
import jax.numpy as jnp
import jraph
import numpy as np

from star_jax.graph.schema import parse_key
from star_jax.graph.segments import (
    edge_features,
    edge_keys,
    edge_mask,
    hop_blocks,
    row_offsets,
    segment_softmax,
    segment_sum,
    to_graphs_tuple,
)
from tests.graph.subgraphs import ROWS, random_subgraph


def hidden_of(subgraph):
    rows = {name: len(nodes.node) for name, nodes in subgraph.nodes.items()}
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for name, n in rows.items()}


def test_block_sizes_follow_from_the_tables():
    for seed_type, rows in ROWS.items():
        blocks = hop_blocks(random_subgraph(seed_type), seed_type)
        assert blocks == {name: sizes[:2] for name, sizes in rows.items()}


def test_rows_that_receive_nothing_are_counted_too():
    subgraph = random_subgraph("member")
    lonely = subgraph._replace(hops=({}, {}))
    assert hop_blocks(lonely, "member") == {"member": (11, 0), "job": (0, 0), "skill": (0, 0)}
    half = subgraph._replace(hops=(subgraph.hops[0], {}))
    assert hop_blocks(half, "member") == {"member": (5, 0), "job": (0, 15), "skill": (0, 11)}


def test_a_graphs_tuple_holds_exactly_the_real_edges():
    subgraph = random_subgraph("member", seed=2)
    hidden = hidden_of(subgraph)
    graph = jax.jit(to_graphs_tuple, static_argnums=2)(subgraph, hidden, "member")
    offsets, keys = row_offsets(hidden), edge_keys(subgraph)
    expected = set()
    for hop, tables in enumerate(subgraph.hops):
        for key, table in tables.items():
            sender, _, receiver = parse_key(key)
            first = offsets[receiver] + sum(ROWS["member"][receiver][:hop])
            for row, slot in zip(*np.nonzero(table.mask), strict=True):
                edge = (offsets[sender] + table.index[row, slot], first + row)
                facts = (keys.index(key), hop, table.weight[row, slot], table.age[row, slot])
                expected.add((*map(int, edge), *map(float, facts)))
    real = np.asarray(edge_mask(graph))
    columns = (graph.senders, graph.receivers, *edge_features(graph))
    found = {
        (int(s), int(r), *map(float, facts))
        for s, r, *facts in zip(*(np.asarray(c)[real] for c in columns), strict=True)
    }
    assert found == expected
    assert len(found) == real.sum() == graph.n_edge[0]
    num_rows = sum(len(nodes.node) for nodes in subgraph.nodes.values())
    assert graph.n_node.tolist() == [num_rows, 1]
    assert (np.asarray(graph.senders)[~real] == num_rows).all()
    assert (np.asarray(graph.receivers)[~real] == num_rows).all()
    for name, start in offsets.items():
        rows = graph.nodes[start : start + len(hidden[name])]
        np.testing.assert_array_equal(rows, hidden[name])


def test_jraph_reads_it():
    subgraph = random_subgraph("job")
    graph = to_graphs_tuple(subgraph, hidden_of(subgraph), "job")
    (alone,) = jraph.unbatch(jraph.unpad_with_graphs(jax.tree.map(np.asarray, graph)))
    assert alone.senders is not None
    assert len(alone.senders) == sum(t.mask.sum() for hop in subgraph.hops for t in hop.values())


def test_segments_without_rows():
    data, segments = jnp.ones((3, 2)), jnp.array([0, 0, 2])
    np.testing.assert_array_equal(segment_sum(data, segments, 4), [[2, 2], [0, 0], [1, 1], [0, 0]])
    np.testing.assert_allclose(segment_softmax(data, segments, 4), [[0.5] * 2, [0.5] * 2, [1] * 2])
