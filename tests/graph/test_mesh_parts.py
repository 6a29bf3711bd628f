"""The parts of the engine inside the program, each against the host's or an obvious slow one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from star_jax.graph.engines.mesh import numbering, picks, words
from star_jax.graph.engines.mesh.exchange import ask
from star_jax.graph.engines.mesh.numbering import (
    Named,
    leaders_by_hash,
    leaders_by_sort,
    number,
)
from star_jax.graph.engines.mesh.topology import Clock, Places
from star_jax.graph.engines.mesh.visibility import first_at_least
from star_jax.graph.samplers import draws
from star_jax.parallel.mesh import ROW_AXES, MeshConfig, make_mesh
from tests.graph.rows import LENGTHS, RowWorld, picks_of_both

_BIG = 2**31 - 1


def joined(word):
    return np.asarray(word.high, np.uint64) << np.uint64(32) | np.asarray(word.low, np.uint64)


def test_words_are_the_host_s():
    rng = np.random.default_rng(0)
    key, salt = (int(x) for x in rng.integers(0, 2**63, 2))
    nodes = np.concatenate([[0, 1, _BIG], rng.integers(0, _BIG, 50)]).astype(np.int32)
    start = words.stream(words.word(key), words.word(salt), jnp.asarray(nodes))
    expected = [draws.stream(np.uint64(key), np.uint64(salt), node) for node in nodes]
    np.testing.assert_array_equal(joined(start), np.asarray(expected, np.uint64))


def test_integers_below_a_bound_are_the_host_s_with_their_refusals():
    rng = np.random.default_rng(1)
    size = 400
    # Half of the words above 2^31 - 1 times 2^31 / n are refused for n just above 2^30.
    n = rng.integers(1, 100, (size, 4))
    n[::2] = 2**30 + 1 + np.arange(size // 2)[:, None]
    start = rng.integers(0, 2**64, size, dtype=np.uint64)
    word = words.Word(
        jnp.asarray((start >> np.uint64(32)).astype(np.uint32)),
        jnp.asarray(start.astype(np.uint32)),
    )
    start_slot = jnp.full(size, 7, jnp.int32)
    value, slot = words.each_below(word, start_slot, jnp.asarray(n, jnp.int32))
    slots = np.full(size, 7)
    for column in range(n.shape[1]):
        one_by_one = [draws.below(*each) for each in zip(start, slots, n[:, column], strict=True)]
        drawn, slots = np.transpose(one_by_one)
        np.testing.assert_array_equal(value[:, column], drawn)
        np.testing.assert_array_equal(slot[:, column], slots)
    assert len(np.unique(slots)) > 4  # Refusals, several in a row of them.


def shuffled_one_by_one(targets):
    rows = []
    for row in targets:
        entries = list(range(1000))
        for i, target in enumerate(row):
            if target >= 0:
                entries[i], entries[target] = entries[target], entries[i]
        rows.append(entries[: len(row)])
    return np.asarray(rows)


@pytest.mark.parametrize("width", [1, 5, 16])
def test_shuffles_are_the_swaps_one_after_the_other(width):
    rng = np.random.default_rng(width)
    step = np.arange(width)
    # Few entries for so many swaps: chains of swaps with the same place are long.
    targets = rng.integers(step, width + 3, (500, width))
    wanted = step < rng.integers(0, width + 1, (500, 1))
    targets = np.where(wanted, targets, -1)
    taken = np.asarray(picks.shuffled_ranks(jnp.asarray(targets, jnp.int32)))
    expected = shuffled_one_by_one(targets)
    np.testing.assert_array_equal(taken[wanted], expected[wanted])


@pytest.mark.parametrize("leaders", [leaders_by_sort, leaders_by_hash])
@pytest.mark.parametrize(("size", "values"), [(1, 1), (300, 3), (3000, 40)])
def test_leaders_are_the_first_of_their_kind(leaders, size, values):
    rng = np.random.default_rng(size)
    keys = rng.integers(0, values, (3, size)).astype(np.int32)
    real = rng.random(size) < 0.8
    first: dict[tuple[int, ...], int] = {}
    for i in np.flatnonzero(real):
        first.setdefault(tuple(keys[:, i]), int(i))
    found = jax.jit(leaders)(tuple(map(jnp.asarray, keys)), jnp.asarray(real))
    expected = [first[tuple(keys[:, i])] for i in np.flatnonzero(real)]
    np.testing.assert_array_equal(np.asarray(found)[real], expected)


def test_hashes_that_meet_in_every_round_are_told_apart(monkeypatch):
    """All keys choose one place of two: a round settles one of each."""
    monkeypatch.setattr(numbering, "_hash", lambda keys, number: keys[0].astype(jnp.uint32) % 2)
    key = jnp.asarray([5, 3, 3, 4, 5, 7, 4, 9, 9], jnp.int32)
    found = leaders_by_hash((key,), jnp.ones(9, bool))
    np.testing.assert_array_equal(found, [0, 1, 1, 3, 0, 5, 3, 7, 7])


@pytest.mark.parametrize("longest", [1, 3, 4, 5, 40])
def test_places_in_sorted_rows_are_those_of_a_search(longest):
    rng = np.random.default_rng(longest)
    lengths = np.append(rng.integers(0, longest + 1, 200), longest)
    end = np.cumsum(lengths)
    begin = end - lengths
    values = rng.integers(0, 30, end[-1])
    for row in zip(begin, end, strict=True):
        values[slice(*row)].sort()
    bound = rng.integers(-1, 32, len(lengths))
    found = first_at_least(
        *(jnp.asarray(part, jnp.int32) for part in (values, begin, end, bound)), longest=longest
    )
    expected = [
        low + np.searchsorted(values[low:high], least)
        for low, high, least in zip(begin, end, bound, strict=True)
    ]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(
    ("kind", "replace", "share"),
    [
        ("uniform", False, 0.8),
        ("uniform", False, 0.02),
        ("uniform", True, 0.05),
        ("weighted", False, 0.8),
        ("weighted", False, 0.02),
        ("weighted", True, 0.05),
        ("last_n", 0, 0.3),
        ("top_k", 0, 0.6),
    ],
)
def test_picks_are_the_host_s(kind, replace, share, lengths):
    """A share of 0.02 makes most long rows give up trying and be enumerated."""
    world = RowWorld(np.asarray(LENGTHS[lengths]), share, seed=3)
    found, expected = picks_of_both(world, kind, replace=bool(replace))
    assert found == expected
    assert any(expected)


def rows_one_by_one(known, met, first, room):
    """A dictionary hands out the rows."""
    table = {}
    for row, (node, group, real) in enumerate(known):
        if real:
            table.setdefault((node, group), row)
    rows, added = [], []
    for node, group, real in met:
        if real and (node, group) not in table and len(added) < room:
            table[node, group] = first + len(added)
            added.append((node, group))
        rows.append(table.get((node, group), -1) if real else -1)
    return rows, added


@pytest.mark.parametrize("room", [2, 30])
def test_rows_are_given_in_the_order_nodes_are_met(room):
    rng = np.random.default_rng(5)

    def some(size):
        nodes = rng.integers(0, 6, size), rng.integers(0, 3, size), rng.random(size) < 0.8
        return list(zip(*(part.tolist() for part in nodes), strict=True))

    def named(rows):
        node, group, real = zip(*rows, strict=True)
        return Named(jnp.asarray(node), jnp.asarray(group), jnp.asarray(real))

    known, met = {"a": some(9), "b": some(4), "c": some(3)}, {"a": some(25), "c": some(12)}
    found = jax.jit(lambda known, met: number(known, met, dict.fromkeys("ac", (7, 7 + room))))(
        {name: named(rows) for name, rows in known.items()},
        {name: named(rows) for name, rows in met.items()},
    )
    assert set(found) == {"a", "c"}
    for name, numbered in found.items():
        rows, added = rows_one_by_one(known[name], met[name], 7, room)
        assert numbered.row.tolist() == rows
        count = int(numbered.added.real.sum())
        nodes, groups = (part.tolist()[:count] for part in numbered.added[:2])
        assert list(zip(nodes, groups, strict=True)) == added
        assert not numbered.added.real[count:].any()


@pytest.mark.parametrize("slack", [8.0, 1.0])
def test_questions_travel_to_their_owner_and_back(slack):
    """With a slack of 1, too many questions to one shard stay unanswered and are counted."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    places = Places(ROW_AXES, 4, (), Clock(0), 1.0, 0, 0, ())
    rng = np.random.default_rng(7)
    owner = rng.integers(0, 5, (4, 16)).astype(np.int32)  # 4: nobody.
    owner[0] = 1
    asked = rng.integers(0, 100, (4, 16)).astype(np.int32)
    secret = np.asarray([1000, 2000, 3000, 4000], np.int32)

    def device(owner, asked, secret):
        answer, refused = ask(
            lambda question: {"sum": question + secret[0], "pair": jnp.stack([question] * 2, 1)},
            owner[0],
            asked[0],
            places=places,
            slack=slack,
        )
        return jax.tree.map(lambda leaf: leaf[None], (answer, refused))

    spec = PartitionSpec(ROW_AXES)
    run = jax.shard_map(device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    answer, refused = jax.jit(run)(owner, asked, secret)
    fits = owner < 4
    if slack == 1.0:  # Room for four questions of a device to each shard, first come first served.
        before = np.asarray([[(row[:i] == row[i]).sum() for i in range(len(row))] for row in owner])
        fits &= before < 4
    expected = np.where(fits, asked + secret[np.minimum(owner, 3)], 0)
    np.testing.assert_array_equal(answer["sum"], expected)
    np.testing.assert_array_equal(answer["pair"][..., 1], np.where(fits, asked, 0))
    np.testing.assert_array_equal(refused, ((owner < 4) & ~fits).sum(axis=1))
    assert (np.asarray(refused).sum() > 0) == (slack == 1.0)
