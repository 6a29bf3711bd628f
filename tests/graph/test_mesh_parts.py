"""The parts of the engine inside the program, each against the host's or an obvious slow one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from star_jax.graph.engines.mesh import numbering, picks, words
from star_jax.graph.engines.mesh import weighted as mesh_weighted
from star_jax.graph.engines.mesh.exchange import ask
from star_jax.graph.engines.mesh.numbering import (
    Named,
    leaders_by_hash,
    leaders_by_sort,
    number,
)
from star_jax.graph.engines.mesh.topology import AXES, Edges, digits_of
from star_jax.graph.engines.mesh.visibility import Row as Rows
from star_jax.graph.engines.mesh.visibility import (
    Rule,
    Viewers,
    first_at_least,
    time_bounds,
    visible,
)
from star_jax.graph.samplers import draws, visibility
from star_jax.graph.samplers.picks import last_n, top_k, uniform, weighted
from star_jax.graph.samplers.picks.draw import Draw, Scratch
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.shapes import NO_TIME

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
    value = words.each_below(word, jnp.full(size, 7, jnp.int32), jnp.asarray(n, jnp.int32))
    slots = np.full(size, 7)
    for column in range(n.shape[1]):
        one_by_one = [draws.below(*each) for each in zip(start, slots, n[:, column], strict=True)]
        drawn, slots = np.transpose(one_by_one)
        np.testing.assert_array_equal(value[:, column], drawn)
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
    key = jnp.asarray([5, 3, 3, 4, 5, 7, 4, 9], jnp.int32)
    found = leaders_by_hash((key,), jnp.ones(8, bool))
    np.testing.assert_array_equal(found, [0, 1, 1, 3, 0, 5, 3, 7])


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
        *(jnp.asarray(part, jnp.int32) for part in (values, begin, end, bound)), longest
    )
    expected = [
        low + np.searchsorted(values[low:high], least)
        for low, high, least in zip(begin, end, bound, strict=True)
    ]
    np.testing.assert_array_equal(found, expected)


class World:
    """Rows of one relation, all edges of one shard, and who may see them."""

    def __init__(self, lengths, share, seed, weights=None):
        rng = np.random.default_rng(seed)
        self.end = np.cumsum(lengths)
        self.begin = self.end - lengths
        total, num_rows = int(self.end[-1]), len(lengths)
        time = [np.sort(rng.integers(0, 50, n)) for n in lengths]
        self.time = np.concatenate(time).astype(np.int32)
        self.flags = np.where(rng.random(total) < share, 1, 3).astype(np.uint8)
        self.removed = np.where(rng.random(total) < 0.1, 30, _BIG).astype(np.int32)
        self.sender = rng.integers(0, 9, total).astype(np.int32)
        self.node = rng.integers(0, 9, num_rows).astype(np.int32)
        self.group = rng.integers(0, 4, num_rows).astype(np.int32)
        self.group_time = np.asarray([20, 30, 60, np.iinfo(np.int32).min], np.int32)
        self.pairs = rng.integers(0, 9, (4, 5, 2)).astype(np.int32)
        self.hidden = rng.integers(0, 3, num_rows).astype(np.int32)
        self.start = rng.integers(0, 2**64, num_rows, dtype=np.uint64)
        few = rng.integers(0, 4, total)  # Many are equal, and many are 0.
        self.weight = (few if weights is None else weights(rng, self.time)).astype(np.float32)
        rows = [
            self.weight[b:e].astype(np.float64) for b, e in zip(self.begin, self.end, strict=True)
        ]
        self.cumulative = np.concatenate([np.cumsum(row) for row in rows])

    def on_device(self):
        digits, exponent = digits_of(self.cumulative)
        edges = Edges(
            bounds=self.end,
            sender=self.sender,
            time=self.time,
            removed=self.removed,
            weight=self.weight,
            flags=self.flags,
            digits=digits,
            exponent=exponent,
        )
        edges = Edges(*map(jnp.asarray, edges))
        viewers = Viewers(*map(jnp.asarray, (self.group_time, *np.moveaxis(self.pairs, 2, 0))))
        columns = (self.begin, self.end, self.node, self.group, self.hidden)
        return edges, viewers, Rows(*(jnp.asarray(c, jnp.int32) for c in columns))

    def on_host(self):
        """The same arrays as `samplers.visibility` has them."""
        times = self.group_time.astype(np.int64)
        times[times == np.iinfo(np.int32).min] = NO_TIME
        pairs = np.sort(self.pairs[..., 0].astype(np.int64) << 32 | self.pairs[..., 1], axis=1)
        rule = visibility.Rule(times, True, 12, 0b0011, np.arange(5) * 5, pairs.reshape(-1))
        edges = visibility.Edges(
            bounds=np.zeros((1, 1), np.int64),
            sender=self.sender,
            time=self.time.astype(np.int64),
            removed=self.removed.astype(np.int64),
            weight=self.weight,
            cumulative=self.cumulative,
            flags=self.flags,
        )
        return edges, rule

    def picks_on_host(self, pick, fanouts, *, replace):
        edges, rule = self.on_host()
        found = []
        for i, fanout in enumerate(fanouts.tolist()):
            first = begin = int(self.begin[i])
            end = int(self.end[i])
            if begin < end:
                group, all_traits = self.group[i], 0xFF
                begin, end = visibility.time_bounds(
                    edges, rule, group, begin, end, True, all_traits
                )
            row = visibility.Row(
                first, begin, end, int(self.node[i]), int(self.group[i]), int(self.hidden[i]), False
            )
            out, scratch = np.empty(fanout, np.int64), Scratch.of(int(max(self.end - self.begin)))
            count = pick(edges, rule, row, Draw(fanout, replace, self.start[i]), scratch, out)
            found.append(out[:count].tolist())
        return found


LENGTHS = {
    "short and empty": [0, 1, 3, 5, 8, 12, 0, 2] * 6,
    "long": [30, 70, 110, 200, 55] * 8,
}


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
    world = World(np.asarray(LENGTHS[lengths]), share, seed=3)
    found, expected = picks_of_both(world, kind, replace=bool(replace))
    assert found == expected
    assert any(expected)


WEIGHTS = {
    "equal": lambda rng, time: np.full(len(time), 0.3),
    "fractions": lambda rng, time: rng.random(len(time)),
    "mostly zeros": lambda rng, time: np.where(
        rng.random(len(time)) < 0.1, rng.random(len(time)), 0.0
    ),
    "one huge": lambda rng, time: np.where(
        rng.random(len(time)) < 0.03, 1e12, rng.random(len(time))
    ),
    "all sizes": lambda rng, time: 10.0 ** rng.uniform(-44, 38, len(time)),
    "below the smallest normal": lambda rng, time: 10.0 ** rng.uniform(-45, -37, len(time)),
    "the smallest": lambda rng, time: np.full(
        len(time), 2.0**-149
    ),  # Sums of a few thousand units.
    "the largest": lambda rng, time: np.full(len(time), np.finfo(np.float32).max),
    "heavy when old": lambda rng, time: np.where(time < 15, 3e4, 1.0) + rng.random(len(time)),
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("replace", "share"), [(False, 0.8), (False, 0.1), (True, 0.3)])
def test_weights_of_any_size_are_drawn_as_the_host_draws_them(weights, replace, share):
    """Rows lose their old edges: where those are heavy, little is left of the sums."""
    lengths = np.asarray([*LENGTHS["short and empty"] * 4, *LENGTHS["long"], 1000])
    world = World(lengths, share, seed=4, weights=WEIGHTS[weights])
    found, expected = picks_of_both(world, "weighted", replace=replace)
    assert found == expected
    assert sum(map(len, expected)) > 5
    assert all(world.weight[position] > 0 for row in expected for position in row)


@pytest.mark.parametrize("weights", ["mostly zeros", "one huge", "all sizes"])
def test_integers_become_the_edge_whose_sum_is_the_first_above(weights):
    """Both integers at the border of every edge."""
    world = World(np.asarray([40] * 20), 1.0, seed=5, weights=WEIGHTS[weights])
    edges, _, row = world.on_device()
    begin = row.begin + np.arange(20) % 5 * 3
    zeros = jnp.zeros_like(begin)
    draw = picks.Draw(begin, row.end, zeros, words.word(0))
    sums = np.frexp(world.cumulative.reshape(20, 40))
    upto = np.ldexp(sums[0], 31).astype(np.int64) >> np.minimum(sums[1][:, -1:] - sums[1], 31)
    before = np.asarray([own[b - 1] if b else 0 for own, b in zip(upto, begin % 40, strict=True)])
    total, place = mesh_weighted.sums_of(draw, edges, row.begin, 40)
    np.testing.assert_array_equal(total, upto[:, -1] - before)
    inside = upto - before[:, None]
    drawn = np.clip(np.concatenate([inside - 1, inside], axis=1), 0, np.asarray(total)[:, None] - 1)
    expected = [np.searchsorted(own, x, side="right") for own, x in zip(inside, drawn, strict=True)]
    found = place(jnp.asarray(drawn, jnp.int32)) - np.asarray(row.begin)[:, None]
    some = np.asarray(total) > 0
    assert some.sum() > 10
    np.testing.assert_array_equal(np.asarray(found)[some], np.asarray(expected)[some])


def picks_of_both(world, kind, *, replace):
    fanout = np.resize([1, 2, 3], len(world.node)).astype(np.int32)
    longest = int(np.max(world.end - world.begin))

    @jax.jit
    def on_device(edges, viewers, row, start, fanout):
        rule = Rule(0b0011, True, 12)
        dated = jnp.ones(row.node.shape, bool)
        first = row.begin
        row = time_bounds(edges, viewers, rule, row, dated, longest)
        draw = picks.Draw(row.begin, row.end, fanout, start)

        def seen(position):
            return visible(edges, viewers, rule, row, position)

        if kind == "last_n":
            return picks.last_n(draw, seen, 3)
        if kind == "top_k":
            return picks.top_k(draw, seen, edges.weight, 3)
        if kind == "weighted":
            options = {"most": 3, "longest": longest, "replace": replace}
            return mesh_weighted.weighted(draw, seen, edges, first, **options)
        return picks.uniform(draw, seen, 3, replace=replace)

    start = words.Word(
        jnp.asarray((world.start >> np.uint64(32)).astype(np.uint32)),
        jnp.asarray(world.start.astype(np.uint32)),
    )
    made = on_device(*world.on_device(), start, jnp.asarray(fanout))
    found = [row[:n].tolist() for row, n in zip(*map(np.asarray, made), strict=True)]
    pick = {"last_n": last_n, "top_k": top_k, "uniform": uniform, "weighted": weighted}[kind].pick
    return found, world.picks_on_host(pick, fanout, replace=replace)


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
            num_shards=4,
            slack=slack,
        )
        return jax.tree.map(lambda leaf: leaf[None], (answer, refused))

    spec = PartitionSpec(AXES)
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
