"""How the neighbours of a node are chosen among the edges an example may see."""

import dataclasses
import math
from typing import Literal

from star_jax.graph.samplers.compiled import Compiled
from star_jax.graph.samplers.picks import last_n, top_k, uniform, weighted

Kind = Literal["uniform", "weighted", "top_k", "last_n", "full", "ppr", "ppr_walks"]
_RANDOM = ("uniform", "weighted", "ppr", "ppr_walks")
_BY_RANK = ("ppr", "ppr_walks")
_PICKS = {"weighted": weighted.pick, "top_k": top_k.pick, "last_n": last_n.pick}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PprConfig:
    """Personalised PageRank, in the standard convention; defaults of SPEC 7.

    Attributes:
      alpha: Probability that a walk stops, at every node.
      epsilon: Bounds the error of forward push, per edge of a node.
      neighbour_cap: Edges of one node and relation that count: the latest.
      num_walks: Of one seed, for the kind `ppr_walks`.
      types: Node types of the neighbours, which share the first hop's fanout evenly; none: all.
    """

    alpha: float = 0.25
    epsilon: float = 1e-4
    neighbour_cap: int = 1000
    num_walks: int = 2000
    types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}, needed between 0 and 1")
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon is {self.epsilon}, needed between 0 and 1")
        for name in ("neighbour_cap", "num_walks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, needed at least 1")

    @property
    def most_pushed(self) -> int:
        """Nodes that forward push can meet: each push settles alpha epsilon of mass per edge."""
        return 1 + math.ceil(1 / (self.alpha * self.epsilon))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """One way to choose neighbours.

    Attributes:
      kind: Relation by relation: `uniform`; `weighted`, in proportion to the edges' weights;
        `top_k`, those of largest weight and of equal ones the latest; `last_n`, the latest; `full`,
        all of them, however many the fanouts name. Over all relations: `ppr`, for a seed the nodes
        of highest personalised PageRank by forward push, and around those uniform neighbours;
        `ppr_walks`, the same by random walks.
      replace: Draw with replacement.
      max_age: Interactions of longer before an example than this are not seen, nor any without a
        time; in the time unit of the tables. Attributes are seen whatever their age. None: no
        limit.
      ppr: For the kinds `ppr` and `ppr_walks`.
    """

    kind: Kind = "uniform"
    replace: bool = False
    max_age: int | None = None
    ppr: PprConfig = dataclasses.field(default_factory=PprConfig)

    def __post_init__(self) -> None:
        if self.replace and self.kind not in _RANDOM:
            raise ValueError(f"replace is for {', '.join(_RANDOM)}, kind is {self.kind!r}")
        if self.max_age is not None and self.max_age < 1:
            raise ValueError(f"max_age is {self.max_age}, needed at least 1 or none")

    @property
    def by_rank(self) -> bool:
        """Whether the seeds' neighbours come by rank over all relations together."""
        return self.kind in _BY_RANK

    @property
    def pick(self) -> Compiled:
        """The compiled function that picks from one row."""
        # With a fanout of at least its length, a row is taken whole: `full` is uniform.
        return _PICKS.get(self.kind, uniform.pick)
