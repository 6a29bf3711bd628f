import numpy as np

from star_jax.graph.batches import Budget, edge_lists
from tests.graph.visible import draw
from tests.graph.worlds import Edge, World


def test_blocks_follow_each_other_per_type():
    budget = Budget(
        rows=(("job", (0, 8, 16)), ("member", (24, 0, 8))),
        fanout=(("member__apply__job", (4, 2)),),
        texts=(("job", 8), ("member", 8)),
    )
    assert budget.num_hops == 2
    assert [budget.block("member", hop) for hop in range(3)] == [(0, 24), (24, 0), (24, 8)]
    assert [budget.block("job", hop) for hop in range(3)] == [(0, 0), (0, 8), (8, 16)]
    assert budget.block("town", 1) == (0, 0)
    assert hash(budget) == hash(Budget(budget.rows, budget.fanout, budget.texts))


def test_edge_lists_hold_the_graph_s_own_edges(tmp_path):
    """Every real edge of the lists joins two nodes that the tables join, once per such edge."""
    rng = np.random.default_rng(0)
    pairs = {(int(rng.integers(6)), int(rng.integers(7))) for _ in range(30)}
    world = World(
        nodes={"member": [None] * 6, "job": [None] * 7},
        edges={"member__apply__job": [Edge(s, r) for s, r in sorted(pairs)]},
    )
    subgraph, _, budget = draw(world.build(tmp_path), "job", [0, 3, 5], [None] * 3)
    lists = edge_lists(subgraph, budget)
    members, jobs = subgraph.nodes["member"].node, subgraph.nodes["job"].node
    seeds = lists[0]["member__apply__job"]
    found = {
        (int(members[s]), int(jobs[r]))
        for s, r in zip(seeds.sender_row[seeds.mask], seeds.receiver_row[seeds.mask], strict=True)
    }
    assert found == {pair for pair in pairs if pair[1] in (0, 3, 5)}
    assert set(jobs[np.unique(seeds.receiver_row[seeds.mask])]) <= {0, 3, 5}
    back = lists[1]["job__rev_apply__member"]
    assert {
        (int(members[r]), int(jobs[s]))
        for s, r in zip(back.sender_row[back.mask], back.receiver_row[back.mask], strict=True)
    } <= pairs
    start, size = budget.block("member", 1)
    assert back.receiver_row.min() == start
    assert back.receiver_row.max() == start + size - 1
    for tables, rows in zip(subgraph.hops, lists, strict=True):
        for key, table in tables.items():
            assert rows[key].mask.sum() == table.mask.sum()
