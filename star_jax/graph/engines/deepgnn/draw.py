"""Draws the neighbours of many rows of one relation through DeepGNN, and keeps the visible ones."""

from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Int

from star_jax.graph.samplers.compiled import kernel
from star_jax.graph.samplers.kernels import Relations, Rows, Slots, fill_slot, place_of
from star_jax.graph.samplers.picks.uniform import SMALL
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.samplers.search import places_in_runs
from star_jax.graph.samplers.visibility import Edges, Row, Rule, time_bounds, visible


class Asked(NamedTuple):
    """Rows of one relation, as DeepGNN and as the store know them."""

    node: Int[np.ndarray, " R"]  # DeepGNN's numbers.
    time: Int[np.ndarray, " R"]  # DeepGNN's timestamps.
    edge_type: int  # DeepGNN's number.
    begin: Int[np.ndarray, " R"]  # Position of the first edge of each row in the store.
    end: Int[np.ndarray, " R"]
    receiver: Int[np.ndarray, " R"]
    group: Int[np.ndarray, " R"]
    hidden: int  # Of `Relations`, like what follows.
    dated: bool
    traits: int


class Picker:
    """Picks from rows; every pick is an edge's position in the store."""

    def __init__(
        self, graph: Any, ticks: int, sampler: SamplerConfig, edges: Edges, rule: Rule
    ) -> None:
        """Picks from the edges of one receiver type.

        Args:
          graph: Of `open_graph`.
          ticks: Of its clock.
          sampler: Of a kind in `KINDS`.
          edges: Of the store.
          rule: Who sees what.
        """
        self._graph, self._ticks, self._sampler = graph, ticks, sampler
        self._edges, self._rule = edges, rule

    def pick(
        self, asked: Asked, fanout: int, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """At most `fanout` visible edges of every row.

        A row that DeepGNN draws too few visible edges from is listed and picked from as a whole.
        Whether that happens does not depend on which visible edges were drawn.

        Returns:
          Row of every pick, its place among the picks of the row, its position.
        """
        counts = self._graph.neighbor_counts(asked.node, asked.edge_type, asked.time).astype(
            np.int64
        )
        listed = np.zeros(len(counts), np.bool_)
        if not self._sampler.replace:
            listed = (counts > 0) & (counts <= SMALL * fanout)
        tried = np.flatnonzero((counts > 0) & ~listed)
        position = self._draw(asked, tried, 2 * fanout + 8, rng)
        row = np.repeat(tried, position.shape[1]).reshape(position.shape)
        fine = self._visible(asked, row.ravel(), position.ravel()).reshape(position.shape)
        if not self._sampler.replace:
            fine &= ~_repeated(position)
        enough = fine.sum(axis=1) >= fanout
        listed[tried[~enough]] = True
        kept = fine[enough] & (np.cumsum(fine[enough], axis=1) <= fanout)
        rows, positions = self._from_lists(asked, np.flatnonzero(listed), fanout, rng)
        rows = np.concatenate([row[enough][kept], rows])
        positions = np.concatenate([position[enough][kept], positions])
        order = np.argsort(rows, kind="stable")
        return rows[order], places_in_runs(rows[order]), positions[order]

    def _draw(
        self, asked: Asked, rows: Int[np.ndarray, " T"], count: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "T count"]:
        """Positions, -1 where a row has no more; of random ones the order is random."""
        if not len(rows):
            return np.zeros((0, count), np.int64)
        node, time = asked.node[rows], asked.time[rows]
        options = {"count": count, "return_edge_created_ts": True}
        if self._sampler.kind == "last_n":
            found = self._graph.lastn_neighbors(node, asked.edge_type, time, **options)
        else:
            options |= {"timestamps": time, "seed": int(rng.integers(1 << 62))}
            if self._sampler.kind == "weighted":
                found = self._graph.weighted_sample_neighbors(node, asked.edge_type, **options)
            else:
                # Its draws without replacement crash when they return times: with replacement,
                # and a second look at an edge does not count.
                found = self._graph.uniform_sample_neighbors(
                    False, node, asked.edge_type, **options
                )
        position = asked.begin[rows, None] + found[-1] % self._ticks
        position = np.where(found[0] >= 0, position, -1)
        if self._sampler.kind == "last_n":
            return -np.sort(-position, axis=1)
        return rng.permuted(position, axis=1)

    def _from_lists(
        self, asked: Asked, rows: Int[np.ndarray, " L"], fanout: int, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Picks from all that is visible in some rows."""
        if not len(rows):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        *_, counts, created = self._graph.neighbors(
            asked.node[rows], asked.edge_type, asked.time[rows], return_edge_created_ts=True
        )
        row = np.repeat(rows, counts.astype(np.int64))
        position = asked.begin[row] + created % self._ticks
        fine = self._visible(asked, row, position)
        row, position = row[fine], position[fine]
        if self._sampler.replace:
            return self._replaced(row, position, fanout, rng)
        rank = -position if self._sampler.kind == "last_n" else rng.permutation(len(row))
        order = np.lexsort((rank, row))
        row, position = row[order], position[order]
        kept = places_in_runs(row) < fanout
        return row[kept], position[kept]

    def _replaced(
        self, row: np.ndarray, position: np.ndarray, fanout: int, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        rows = np.unique(row)
        picks = [np.zeros(0, np.int64)]
        for each in rows:
            own = position[row == each]
            weight = np.ones(len(own))
            if self._sampler.kind == "weighted":
                weight = np.asarray(self._edges.weight[own], np.float64)
            picks.append(rng.choice(own, fanout, p=weight / weight.sum()))
        return np.repeat(rows, fanout), np.concatenate(picks)

    def _visible(self, asked: Asked, row: np.ndarray, position: np.ndarray) -> np.ndarray:
        fine = np.zeros(len(row), np.bool_)
        weighted = self._sampler.kind == "weighted"
        _mark_visible(self._edges, self._rule, tuple(asked[3:]), row, position, weighted, fine)
        return fine


@kernel
@no_type_check
def _mark_visible(
    edges: Edges,
    rule: Rule,
    asked: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, bool, int],
    row: Int[np.ndarray, " n"],
    position: Int[np.ndarray, " n"],
    weighted: bool,
    fine: Bool[np.ndarray, " n"],
) -> None:
    first, last, receiver, group, hidden, dated, traits = asked
    for i in range(row.size):
        p, r = position[i], row[i]
        if p < 0 or (weighted and edges.weight[p] <= 0.0):
            continue
        begin, end = time_bounds(edges, rule, group[r], first[r], last[r], dated, traits)
        if begin <= p < end:
            seen = Row(first[r], begin, end, receiver[r], group[r], hidden, False)
            fine[i] = visible(edges, rule, seen, p)


@kernel
@no_type_check
def put(
    edges: Edges,
    relations: Relations,
    r: int,
    rule: Rule,
    rows: Rows,
    slots: Slots,
    group: Int[np.ndarray, " n"],
    position: Int[np.ndarray, " n"],
    slot: Int[np.ndarray, " n"],
    age_unit: float,
) -> None:
    """Writes picked edges of relation `r` into their slots."""
    for i in range(slot.size):
        place = place_of(rows, relations.sender_type[r], group[i], edges.sender[position[i]])
        pick = (position[i], slot[i], r, group[i], place)
        fill_slot(edges, relations, rule, rows, slots, pick, age_unit)


def _repeated(values: Int[np.ndarray, "T c"]) -> Bool[np.ndarray, "T c"]:
    """Which entries of a row have come before in it."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    again = np.zeros(values.shape, np.bool_)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.zeros_like(again)
    np.put_along_axis(repeated, order, again, axis=1)
    return repeated
