"""The engine that asks DeepGNN, the graph engine that STAR was built on, in this process.

It takes the place of the walk over edges alone: rules, rows and features are those of the host.
"""

from pathlib import Path
from typing import Any

import numpy as np

from star_jax.graph.engines.deepgnn.draw import Asked, Picker, put
from star_jax.graph.engines.deepgnn.export import Clock, first_nodes, first_types, open_graph
from star_jax.graph.engines.host import HostEngine
from star_jax.graph.engines.protocol import Question
from star_jax.graph.samplers import kernels
from star_jax.graph.samplers.layout import layout_of
from star_jax.graph.samplers.sample import Walk
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.samplers.visibility import Edges, Rule
from star_jax.graph.store import GraphStore


class DeepGnnEngine(HostEngine):
    """As `GraphEngine`; every pick is equally likely as with `HostEngine`, none is the same.

    DeepGNN's draws are no functions of (key, relation, node, slot): they depend on all rows that
    are asked for together. One key still gives one sample of one batch.

    Attributes:
      graph: DeepGNN's client.
    """

    def __init__(self, store: GraphStore, folder: Path) -> None:
        """Opens a graph, which is exported first if the folder does not hold it.

        Raises:
          InputError: As in `open_graph`.
        """
        super().__init__(store)
        self.graph = open_graph(store, folder)
        self._clock = Clock.of(store)
        self._nodes, self._types = first_nodes(store), first_types(store)

    def walk(self, question: Question) -> Walk:
        """Draws through DeepGNN.

        Raises:
          ValueError: DeepGNN does not draw so.
        """
        refused = why_refused(question.sampler)
        if refused:
            raise ValueError(refused)
        types = layout_of(question.budget).types

        def walk(
            edges: Edges,
            relations: kernels.Relations,
            rule: Rule,
            rows: kernels.Rows,
            slots: kernels.Slots,
            block: tuple[int, int, int],
            *rest: Any,
        ) -> None:
            _, key, age_unit, _ = rest
            picker = Picker(self.graph, self._clock.ticks, question.sampler, edges, rule)
            for r in np.flatnonzero(relations.fanout).tolist():
                asked = self._asked(types[block[0]], edges, relations, r, rule, rows, block)
                rng = np.random.default_rng([int(key), int(relations.salt[r]), *block])
                row, place, position = picker.pick(asked, int(relations.fanout[r]), rng)
                slot = relations.start[r] + row * relations.width[r] + place
                group = asked.group[row]
                put(edges, relations, r, rule, rows, slots, group, position, slot, age_unit)

        return walk

    def _asked(
        self,
        receiver_type: str,
        edges: Edges,
        relations: kernels.Relations,
        r: int,
        rule: Rule,
        rows: kernels.Rows,
        block: tuple[int, int, int],
    ) -> Asked:
        """The rows of a block, for one relation."""
        node_type, first, last = block
        part = slice(rows.base[node_type] + first, rows.base[node_type] + last)
        node, group = rows.node[part].astype(np.int64), rows.group[part].astype(np.int64)
        column = int(relations.column[r])
        return Asked(
            node=self._nodes[receiver_type] + node,
            time=self._clock.before(rule.time[group], rule.use_time),
            edge_type=self._types[receiver_type] + column,
            begin=np.asarray(edges.bounds[node, column], np.int64),
            end=np.asarray(edges.bounds[node, column + 1], np.int64),
            receiver=node,
            group=group,
            hidden=int(relations.hidden[r]),
            dated=bool(relations.dated[r]),
            traits=int(relations.traits[r]),
        )


def why_refused(sampler: SamplerConfig) -> str | None:
    """What DeepGNN cannot draw, as an error says it; None for what it can."""
    if sampler.kind == "weighted" and not sampler.replace:
        return (
            "sampler.kind 'weighted' with engine.kind=deepgnn, which draws by weight with "
            "replacement alone; needed sampler.replace=true, or engine.kind=host"
        )
    if sampler.kind not in ("uniform", "weighted", "last_n", "full"):
        return (
            f"sampler.kind {sampler.kind!r} with engine.kind=deepgnn, needed one of uniform, "
            "weighted, last_n, full, or engine.kind=host"
        )
    return None
