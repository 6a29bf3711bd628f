"""Rows of edges that neighbours are picked from, on the host and inside the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.graph.engines.mesh import picks, words
from star_jax.graph.engines.mesh import weighted as mesh_weighted
from star_jax.graph.engines.mesh.topology import Edges, digits_of
from star_jax.graph.engines.mesh.visibility import Row as Rows
from star_jax.graph.engines.mesh.visibility import Rule, Viewers, time_bounds, visible
from star_jax.graph.samplers import visibility
from star_jax.graph.samplers.picks import last_n, top_k, uniform, weighted
from star_jax.graph.samplers.picks.draw import Draw, Scratch
from star_jax.shapes import NO_TIME

_BIG = 2**31 - 1


class RowWorld:
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
