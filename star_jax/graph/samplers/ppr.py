"""Personalised PageRank on what an example may see: the nodes that matter most to a seed.

Standard convention: a walk stops at every node with probability alpha, and the score of a node is
the probability to stop there (SPEC 7). Scores come from forward push, whose error is below
`epsilon` times the degree at every node, with what it left over added where it lies; or from
walks. A walk that meets a node without visible edges stays there.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float64, Int

from star_jax.graph.samplers.compiled import kernel
from star_jax.graph.samplers.draws import below, mix, stream
from star_jax.graph.samplers.kernels import Rows, Slots, row_of
from star_jax.graph.samplers.visibility import Edges, Row, Rule, plain, time_bounds, visible

_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)
LONGEST_WALK = 64  # Steps; at alpha 0.25 one walk of 10^8 is longer.


class Graph(NamedTuple):
    """The edges into all node types; every array but `edges` is per type and relation."""

    edges: tuple[Edges, ...]
    sender_type: np.ndarray  # -1 where a type has fewer relations, or one that is not followed.
    hidden: np.ndarray  # As in `Relations`.
    dated: np.ndarray
    traits: np.ndarray


class Channels(NamedTuple):
    """The neighbour tables that are filled; one entry per node type of the neighbours."""

    graph_type: np.ndarray  # In `Graph`.
    table_type: np.ndarray  # In `Rows`.
    start: np.ndarray  # Of the table among the slots.
    width: np.ndarray  # Slots per row.
    taken: np.ndarray  # Neighbours of a seed.


class Settings(NamedTuple):
    """How scores are found."""

    alpha: float
    epsilon: float
    cap: int  # Edges of one node and relation that count: the latest.
    num_walks: int  # 0: forward push.
    salt: np.uint64  # Of the walks' draws.


class _Scores(NamedTuple):
    """The nodes met from one seed, the seed first."""

    key: np.ndarray  # Open addressing: (type, node) -> place in the arrays below.
    place: np.ndarray
    type: np.ndarray
    node: np.ndarray
    score: np.ndarray
    residual: np.ndarray
    degree: np.ndarray
    queued: np.ndarray
    used: np.ndarray  # Slots of `key`, to be freed.

    @classmethod
    def of(cls, most: int) -> "_Scores":
        """Room for so many nodes."""
        size = 8
        while size < 2 * most:
            size *= 2
        places, types, nodes, degrees, used = np.empty((5, size), np.int64)
        score, residual = np.empty((2, most), np.float64)
        queued = np.empty(most, np.bool_)
        key = np.full(size, _FREE)
        return cls(key, places, types, nodes, score, residual, degrees, queued, used)


class Memory(NamedTuple):
    """What the search from a seed works in."""

    scores: _Scores
    queue: np.ndarray
    seen: np.ndarray  # (Type, node) of the neighbours of one node.
    best: np.ndarray

    @classmethod
    def of(cls, graph: Graph, settings: Settings, most: int, taken: int) -> "Memory":
        """For at most so many nodes that are met, and so many taken of a channel."""
        widest = settings.cap * graph.sender_type.shape[1]
        return cls(
            _Scores.of(most),
            np.empty(most + 1, np.int64),
            np.empty((widest, 2), np.int64),
            np.empty(max(taken, 1), np.int64),
        )


@kernel
@no_type_check
def _index_of(scores: _Scores, found: int, node_type: int, node: int) -> tuple[int, int]:
    """Index of a node, and how many are known with it."""
    key = np.uint64(node_type) << np.uint64(32) | np.uint64(node)
    wrap = np.uint64(scores.key.size - 1)
    slot = mix(key) & wrap
    while scores.key[slot] != _FREE:
        if scores.key[slot] == key:
            return scores.place[slot], found
        slot = (slot + np.uint64(1)) & wrap
    scores.key[slot], scores.place[slot] = key, found
    scores.type[found], scores.node[found] = node_type, node
    scores.score[found] = scores.residual[found] = 0.0
    scores.degree[found], scores.queued[found] = 1, False
    scores.used[found] = np.int64(slot)
    return found, found + 1


@kernel
@no_type_check
def _neighbours(
    graph: Graph, rule: Rule, group: int, node_type: int, node: int, cap: int, out: np.ndarray
) -> int:
    """Puts (type, node) of the visible neighbours into `out`, one entry per edge; how many."""
    edges, n = graph.edges[node_type], 0
    for j in range(graph.sender_type.shape[1]):
        sender_type = graph.sender_type[node_type, j]
        if sender_type < 0:
            continue
        begin, end = np.int64(edges.bounds[node, j]), np.int64(edges.bounds[node, j + 1])
        if begin == end:
            continue
        first, traits = begin, graph.traits[node_type, j]
        hidden, dated = graph.hidden[node_type, j], graph.dated[node_type, j]
        begin, end = time_bounds(edges, rule, group, begin, end, dated, traits)
        is_plain = plain(rule, group, node, hidden, traits)
        row = Row(first, begin, end, node, group, hidden, is_plain)
        left, position = cap, end - 1
        while left > 0 and position >= begin:
            if visible(edges, rule, row, position):
                out[n, 0], out[n, 1] = sender_type, edges.sender[position]
                n += 1
                left -= 1
            position -= 1
    return n


@kernel
@no_type_check
def _push(
    graph: Graph,
    rule: Rule,
    group: int,
    settings: Settings,
    scores: _Scores,
    queue: Int[np.ndarray, " most"],
    out: Int[np.ndarray, "n 2"],
) -> int:
    """Scores of all nodes that mass is pushed to from node 0; how many they are."""
    found, head, tail = 1, 0, 1
    queue[0], scores.residual[0], scores.queued[0] = 0, 1.0, True
    while head != tail:
        u = queue[head]
        head = (head + 1) % queue.size
        scores.queued[u] = False
        n = _neighbours(graph, rule, group, scores.type[u], scores.node[u], settings.cap, out)
        mass = scores.residual[u]
        scores.degree[u] = max(n, 1)
        if n == 0:
            scores.score[u] += mass
            scores.residual[u] = 0.0
            continue
        if mass <= settings.epsilon * n:
            continue
        scores.score[u] += settings.alpha * mass
        scores.residual[u] = 0.0
        share = (1.0 - settings.alpha) * mass / n
        for i in range(n):
            v, found = _index_of(scores, found, out[i, 0], out[i, 1])
            scores.residual[v] += share
            if scores.residual[v] > settings.epsilon * scores.degree[v] and not scores.queued[v]:
                scores.queued[v] = True
                queue[tail] = v
                tail = (tail + 1) % queue.size
    for i in range(found):
        scores.score[i] += scores.residual[i]
    return found


@kernel
@no_type_check
def _walk(
    graph: Graph,
    rule: Rule,
    group: int,
    settings: Settings,
    scores: _Scores,
    start: np.uint64,
    out: Int[np.ndarray, "n 2"],
) -> int:
    """Shares of the walks from node 0 that stop at each node; how many nodes they are."""
    found, slot = 1, 0
    stop = np.int64(settings.alpha * (1 << 30))
    for _ in range(settings.num_walks):
        u = 0
        for _ in range(LONGEST_WALK):
            drawn, slot = below(start, slot, 1 << 30)
            if drawn < stop:
                break
            n = _neighbours(graph, rule, group, scores.type[u], scores.node[u], settings.cap, out)
            if n == 0:
                break
            i, slot = below(start, slot, n)
            u, found = _index_of(scores, found, out[i, 0], out[i, 1])
        scores.score[u] += 1.0 / settings.num_walks
    return found


@kernel
@no_type_check
def _best(
    scores: _Scores, found: int, node_type: int, count: int, best: Int[np.ndarray, " k"]
) -> int:
    """Indices of the highest scores of one type, the seed left out; ties by node."""
    n = 0
    for i in range(1, found):
        if scores.type[i] != node_type or scores.score[i] <= 0.0:
            continue
        j = n if n < count else count
        while j > 0 and (
            scores.score[best[j - 1]] < scores.score[i]
            or (
                scores.score[best[j - 1]] == scores.score[i]
                and scores.node[best[j - 1]] > scores.node[i]
            )
        ):
            j -= 1
        if j == count:
            continue
        last = n if n < count else count - 1
        for m in range(last, j, -1):
            best[m] = best[m - 1]
        best[j] = i
        n = min(n + 1, count)
    return n


@kernel
@no_type_check
def expand(
    graph: Graph,
    channels: Channels,
    rule: Rule,
    rows: Rows,
    slots: Slots,
    block: tuple[int, int, int],
    seed_type: int,
    settings: Settings,
    memory: Memory,
    key: np.uint64,
) -> None:
    """Fills the channels' tables for a block of seeds: (type in `rows`, first row, end row).

    The weight of a slot is the score.
    """
    table_type, first, last = block
    scores, queue, out, best = memory.scores, memory.queue, memory.seen, memory.best
    for seed_row in range(first, last):
        node = rows.node[rows.base[table_type] + seed_row]
        group = rows.group[rows.base[table_type] + seed_row]
        _index_of(scores, 0, seed_type, node)
        if settings.num_walks == 0:
            found = _push(graph, rule, group, settings, scores, queue, out)
        else:
            start = stream(key, settings.salt, node)
            found = _walk(graph, rule, group, settings, scores, start, out)
        for c in range(channels.taken.size):
            n = _best(scores, found, channels.graph_type[c], channels.taken[c], best)
            slot = channels.start[c] + (seed_row - first) * channels.width[c]
            for i in range(n):
                row = row_of(rows, channels.table_type[c], group, scores.node[best[i]])
                if row < 0:
                    rows.dropped[channels.table_type[c]] += 1
                    continue
                slots.row[slot + i] = row
                slots.mask[slot + i] = True
                slots.weight[slot + i] = scores.score[best[i]]
        for i in range(found):
            scores.key[scores.used[i]] = _FREE


def scores_of(
    graph: Graph,
    rule: Rule,
    seed_type: int,
    seed: int,
    settings: Settings,
    most: int,
    key: np.uint64,
) -> tuple[Int[np.ndarray, "n 2"], Float64[np.ndarray, " n"]]:
    """(Type, node) and score of everything met from one seed of group 0, the seed first."""
    memory = Memory.of(graph, settings, most, 0)
    scores = memory.scores
    _index_of(scores, 0, seed_type, seed)
    if settings.num_walks == 0:
        found = _push(graph, rule, 0, settings, scores, memory.queue, memory.seen)
    else:
        start = stream(key, settings.salt, seed)
        found = _walk(graph, rule, 0, settings, scores, start, memory.seen)
    nodes = np.stack([scores.type[:found], scores.node[:found]], axis=1)
    return nodes, scores.score[:found].copy()
