"""The parts of bench/gnn_step.py that need no torch: same edges for the peer, turns, bars."""

import sys
from collections import Counter

import jax
import numpy as np
import pytest

from bench import gnn_step
from bench.gnn_step_world import (
    APPLY,
    EXPORTED,
    TASK,
    Size,
    describe,
    make_world,
    pack,
    pack_pairs,
    whole,
)
from bench.turns import Side
from star_jax.graph.schema import parse_key
from star_jax.pipeline.graph_embedding import split_view
from star_jax.pipeline.graph_streams import count_pairs

SIZE = Size(
    relations=(APPLY, "job__has__skill"),
    num_edges=400,
    least_nodes=12,
    num_pairs=20,  # No multiple of what rows are padded to.
    num_batches=3,
    fanouts=(5, 3, 2),  # The third hop is over relations of the first.
    num_exported=8,
    num_steps=1,
    num_turns=1,
)
ENDS = {"sender": "member", "receiver": "job"}
KEYS = {APPLY, "job__rev_apply__member", "job__has__skill", "skill__rev_has__job"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("gnn_step"), SIZE)


@pytest.fixture(scope="module")
def batch(world):
    return world.maker(1)


@pytest.fixture(scope="module")
def pairs(batch):
    return jax.tree.map(lambda array: array[0], batch.tasks[TASK.name])


@pytest.fixture(scope="module")
def packed(pairs):
    return pack_pairs(pairs)


def _of_tables(subgraph, seed_type):
    """Per hop and key, how often two nodes are joined; seeds come first in their table."""
    found = []
    for hop, tables in enumerate(subgraph.hops):
        joined = {}
        for key, table in tables.items():
            sender, _, receiver = parse_key(key)
            first = 0
            if hop == 2 and receiver == seed_type:
                first = next(iter(subgraph.hops[0].values())).mask.shape[0]
            joined[key] = Counter(
                (
                    int(subgraph.nodes[sender].node[table.index[row, slot]]),
                    int(subgraph.nodes[receiver].node[first + row]),
                )
                for row, slot in np.argwhere(table.mask)
            )
        found.append(joined)
    return found


@pytest.mark.parametrize("role", ENDS)
def test_the_peer_gets_the_edges_of_our_tables(pairs, packed, role):
    found = _of_tables(getattr(pairs, role), ENDS[role])
    assert all(sum(sum(each.values()) for each in hop.values()) > 10 for hop in found)
    for key in {key for hop in found for key in hop}:
        sender, _, receiver = parse_key(key)
        edges, sizes = packed[f"{role}/{key}/edges"], packed[f"{role}/{key}/sizes"]
        assert edges.shape == (2, sizes.sum())
        begin = 0
        for hop, size in enumerate(sizes):
            senders, receivers = edges[:, begin : begin + size]
            begin += size
            nodes = zip(
                packed[f"{role}/{sender}/node"][senders].tolist(),
                packed[f"{role}/{receiver}/node"][receivers].tolist(),
                strict=True,
            )
            assert Counter(nodes) == found[hop].get(key, Counter())
            # Trimming by hop is right only if a hop's rows and edges lie together.
            rows = packed[f"{role}/{receiver}/rows"]
            assert np.all((receivers >= rows[:hop].sum()) & (receivers < rows[: hop + 1].sum()))
            assert np.all(senders < packed[f"{role}/{sender}/rows"][: hop + 2].sum())


def test_nothing_that_pads_is_handed_over(batch, pairs, packed):
    edges = sum(array.shape[1] for name, array in packed.items() if name.endswith("/edges"))
    assert edges == count_pairs(batch).figures["neighbours"]
    for role in ENDS:
        for name, nodes in getattr(pairs, role).nodes.items():
            rows = packed[f"{role}/{name}/rows"]
            assert len(packed[f"{role}/{name}/node"]) == rows.sum() == nodes.mask.sum()
            assert rows.sum() < len(nodes.mask)
    assert len(packed["label"]) == pairs.mask.sum()


@pytest.mark.parametrize("role", ENDS)
def test_pairs_keep_their_nodes_and_nodes_their_texts(world, pairs, packed, role):
    name = ENDS[role]
    ours = getattr(pairs, role)
    rows = getattr(pairs, f"{role}_row")[pairs.mask]
    theirs = packed[f"{role}/{name}/node"][packed[f"{role}_row"]]
    np.testing.assert_array_equal(theirs, ours.nodes[name].node[rows])
    for each in ("member", "job"):
        texts, text_row = (packed[f"{role}/{each}/{part}"] for part in ("texts", "text_row"))
        table = ours.nodes[each]
        np.testing.assert_array_equal(
            world.store.text_vectors[each][texts[text_row]], table.texts[table.text_row[table.mask]]
        )


def _first_hop(world, model, view, nodes):
    """Which nodes the edges into the seeds join."""
    packed = pack(whole(world, model, view, nodes), EXPORTED)
    np.testing.assert_array_equal(packed["job/node"][: len(nodes)], nodes)
    found = Counter()
    for key in KEYS:
        sender, _, receiver = parse_key(key)
        senders, receivers = packed[f"{key}/edges"][:, : packed[f"{key}/sizes"][0]]
        ends = packed[f"{sender}/node"][senders], packed[f"{receiver}/node"][receivers]
        found.update((key, *pair) for pair in zip(*map(np.ndarray.tolist, ends), strict=True))
    return found


def test_one_subgraph_holds_what_samples_of_the_nodes_hold(world):
    model = world.file.build()
    view = split_view(world.store, "val")
    nodes = np.arange(SIZE.num_exported, dtype=np.int32)
    alone = sum((_first_hop(world, model, view, nodes[n : n + 1]) for n in nodes), Counter())
    together = _first_hop(world, model, view, nodes)
    assert together == alone
    assert len(together) > 10


def test_positives_are_edges_of_the_graph(world, packed):
    adjacency = world.store.adjacency["job"]
    column = [edge.key for edge in world.store.relations["job"]].index(APPLY)
    senders = packed["sender/member/node"][packed["sender_row"]]
    receivers = packed["receiver/job/node"][packed["receiver_row"]]
    linked = np.array(
        [
            sender in adjacency.sender[slice(*adjacency.bounds[receiver, column : column + 2])]
            for sender, receiver in zip(senders, receivers, strict=True)
        ]
    )
    assert np.all(linked[packed["label"] == 1])
    assert not np.all(linked)


def test_the_peer_is_told_what_reaches_the_seeds(world):
    told = describe(world.file)
    assert set(told["keys"]) == KEYS
    assert told["receiving"]["sender"] == (("job", "member"), ("member",))
    assert told["receiving"]["receiver"] == (("job", "member", "skill"), ("job",))
    assert told["text_size"] == {"job": 384, "member": 384, "skill": 0}
    assert told["num_identities"] == {"job": 0, "member": 0, "skill": 12}


_SIDE = """
from bench.turns import take_turns
print("a word of a library")
take_turns({"count": lambda: {"number": 3}, "end": exit})
"""


def test_sides_answer_until_they_end(capfd):
    with Side("the side", [sys.executable, "-c", _SIDE]) as side:
        assert side.ask("count") == side.ask("count") == {"number": 3}
        with pytest.raises(RuntimeError, match="the side ended with code 0 at 'end'"):
            side.ask("end")


def _found(step, epoch, export, **about):
    parts = ("sample", "gather", "place", "forward", "backward", "update")
    steps = {part: [step / 3] * 2 for part in parts}
    steps |= {"compute": [step] * 2, "loss": [0.7, 0.5]}
    gflop = {"step_gflop": 2.0, "sampled_gflop": 4.0, "export_gflop": 1.0}
    about = {**gflop, "edges": 5, "loss": 0.7, **about}
    return gnn_step.Found(
        about,
        {
            "step": [steps, steps],
            "epoch": [{"seconds": epoch}, {"seconds": epoch}],
            "sampled": [{"seconds": 2 * export, "sample": export / 4}],
            "export": [{"seconds": export}],
        },
    )


@pytest.mark.parametrize(("export", "met"), [(4.1, True), (3.9, False)])
def test_bars_are_held(capsys, export, met):
    star = _found(1.0, 10.0, 2.0, num_exported=9, compile_s=30.0)
    found = {"star": star, "gat": _found(3.0, 25.0, export, step_gflop=8.0)}
    assert gnn_step.report(found, SIZE) == met
    out = capsys.readouterr().out
    assert "| step, s | 1 (1 to 1) | 3 (3 to 3) | 3.00 | 2 | 8 | - |" in out
    assert "| 10 (10 to 10) | 25 (25 to 25) | 2.50 | 6 | 24 | 2.0 (3.0) |" in out
    assert "| vectors of 9 jobs, a sample for each, s | 4 (4 to 4) |" in out
    assert "| vectors of 9 jobs, every node once, s | 2 (2 to 2) |" in out
    assert f"| {export / 2:.2f} | 4 | 4 | 2.0 (3.0) |" in out
    assert f"| {export / 2:.2f} | 1 | 1 | 2.0 (3.0) |" in out
    assert ("sampled: 1.95 times the speed of PyG, needed 2.0." in out) != met
    assert ("export: 1.95 times the speed of PyG, needed 2.0." in out) != met
    assert "| 0.333 s (17%) | 0.333 s (17%) | 0.333 s (17%) | 1 s (50%) |" in out


def test_other_work_is_no_comparison(capsys):
    found = {"star": _found(1, 1, 1), "gat": _found(3, 3, 3), "bipartite": _found(2, 2, 2)}
    assert gnn_step.same_work(found)
    found["gat"].about["edges"] = 6
    assert not gnn_step.same_work(found)
    assert "gat got 6 edges, we 5" in capsys.readouterr().out
    found["gat"].about.update(edges=5, loss=0.71)
    assert not gnn_step.same_work(found)


def test_without_a_peer_nothing_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gnn_step.py", "false"])
    assert gnn_step.main() == 2
    assert "false has no torch_geometric: not measured" in capsys.readouterr().out
