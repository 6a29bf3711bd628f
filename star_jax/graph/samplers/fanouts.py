"""How many neighbours: one total per hop, shared out over the relations, or one per relation."""

import dataclasses

from star_jax.config import InputError
from star_jax.graph.samplers.uniform import Fanouts
from star_jax.graph.store import GraphMeta


@dataclasses.dataclass(frozen=True, kw_only=True)
class FanoutConfig:
    """Neighbours per node and hop, in one of two forms.

    Attributes:
      total: Per hop, over all relations into a node; every relation gets at least one.
      per_relation: Edge key -> per hop. When given, `total` must be empty, and relations that
        are not named are not sampled.
    """

    total: tuple[int, ...] = (24, 8)
    per_relation: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.total) == bool(self.per_relation):
            raise ValueError(
                f"total is {self.total} and per_relation {self.per_relation}, needed one of them"
            )
        lengths = {len(hops) for hops in self.per_relation.values()}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(f"per_relation has {lengths} hops, needed one number above 0 for all")
        if any(n < 1 for n in self.total):
            raise ValueError(f"total is {self.total}, needed at least 1 at every hop")
        if any(n < 0 for hops in self.per_relation.values() for n in hops):
            raise ValueError("per_relation has a negative number of neighbours")

    @property
    def num_hops(self) -> int:
        """Hops of neighbours."""
        return len(self.total) or len(next(iter(self.per_relation.values())))


def resolve(config: FanoutConfig, meta: GraphMeta) -> Fanouts:
    """Neighbours per relation of one graph.

    A total is shared out evenly; what a relation could hardly use (more than its 99th percentile
    of degrees) goes to the others.

    Raises:
      InputError: `per_relation` names a relation that the graph lacks.
    """
    if config.per_relation:
        for key in config.per_relation:
            if key not in meta.num_edges:
                raise InputError(
                    f"fanouts.per_relation names {key!r}, needed one of {sorted(meta.num_edges)}"
                )
        return {key: config.per_relation.get(key, (0,) * config.num_hops) for key in meta.num_edges}
    fanouts: dict[str, tuple[int, ...]] = {}
    for receiver in meta.schema.nodes:
        useful = {edge.key: meta.wide_degree[edge.key] for edge in meta.schema.into(receiver)}
        shares = [_share_out(total, useful) for total in config.total]
        fanouts |= {key: tuple(share[key] for share in shares) for key in useful}
    return fanouts


def _share_out(total: int, useful: dict[str, int]) -> dict[str, int]:
    """One each, then one more to the smallest share that can use it, until the total is reached."""
    share = {key: min(1, cap) for key, cap in useful.items()}
    while sum(share.values()) < total:
        wanting = [key for key in share if share[key] < useful[key]]
        if not wanting:
            break
        share[min(wanting, key=lambda key: (share[key], key))] += 1
    return share
