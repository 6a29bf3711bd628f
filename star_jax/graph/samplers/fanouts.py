"""How many neighbours: one total per hop, shared out over the relations, or one per relation."""

import dataclasses
from collections.abc import Collection

from star_jax.config import InputError
from star_jax.graph.samplers.channels import channel_key
from star_jax.graph.samplers.sample import Fanouts
from star_jax.graph.samplers.sampler import Kind, SamplerConfig
from star_jax.graph.store import GraphMeta

_MAX_FULL = 4096  # Slots per row and relation.


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
    def largest(self) -> int:
        """The largest number among them."""
        return max(self.total or max(self.per_relation.values()))

    def at_most(self, size: int) -> "FanoutConfig":
        """The same with no number above one."""
        return FanoutConfig(
            total=tuple(min(n, size) for n in self.total),
            per_relation={
                key: tuple(min(n, size) for n in hops) for key, hops in self.per_relation.items()
            },
        )

    @property
    def num_hops(self) -> int:
        """Hops of neighbours."""
        return len(self.total) or len(next(iter(self.per_relation.values())))


def channels(
    config: FanoutConfig, meta: GraphMeta, sampler: SamplerConfig, seed_types: Collection[str]
) -> dict[str, int]:
    """Neighbours by personalised PageRank of every type that is asked for; none for other kinds.

    Args:
      config: Its first hop is shared out evenly.
      meta: Of the graph.
      sampler: Names the types.
      seed_types: Whose neighbours they are.

    Raises:
      InputError: A type that is asked for is not in the graph, or the fanouts are by relation.
    """
    if not sampler.by_rank:
        return {}
    if config.per_relation:
        raise InputError(
            f"sampler.kind {sampler.kind!r} does not look at relations, needed fanouts.total "
            "instead of fanouts.per_relation"
        )
    known = {end for edge in meta.schema.edges for end in (edge.sender, edge.receiver)}
    for name in sampler.ppr.types:
        if name not in known:
            raise InputError(f"sampler.ppr.types names {name!r}, needed one of {sorted(known)}")
    types = sampler.ppr.types or tuple(sorted(known))
    whole, rest = divmod(config.total[0], len(types))
    counts = {name: whole + (i < rest) for i, name in enumerate(types)}
    return {
        channel_key(name, seed): count
        for seed in sorted(seed_types)
        for name, count in counts.items()
        if count
    }


def resolve(config: FanoutConfig, meta: GraphMeta, kind: Kind = "uniform") -> Fanouts:
    """Neighbours per relation of one graph.

    A total is shared out evenly; what a relation could hardly use (more than its 99th percentile
    of degrees) goes to the others. For the kind `full`, each relation gets its largest degree.

    Raises:
      InputError: `per_relation` names a relation that the graph lacks, or `full` needs too many
        neighbours.
    """
    for key in config.per_relation:
        if key not in meta.num_edges:
            raise InputError(
                f"fanouts.per_relation names {key!r}, needed one of {sorted(meta.num_edges)}"
            )
    asked = _asked(config, meta)
    return _all_neighbours(asked, meta) if kind == "full" else asked


def _all_neighbours(asked: Fanouts, meta: GraphMeta) -> Fanouts:
    for key, hops in asked.items():
        if any(hops) and meta.max_degree[key] > _MAX_FULL:
            raise InputError(
                f"sampler.kind 'full' takes all neighbours, of {key} up to "
                f"{meta.max_degree[key]}, needed at most {_MAX_FULL}; take 'uniform' or 'last_n'"
            )
    return {
        key: tuple(meta.max_degree[key] if n else 0 for n in hops) for key, hops in asked.items()
    }


def _asked(config: FanoutConfig, meta: GraphMeta) -> Fanouts:
    if config.per_relation:
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
