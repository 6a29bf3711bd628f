"""Which map is fitted to the pairs of two versions: the config, and each mode from its module."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from star_jax.config import InputError
from star_jax.embeddings.transforms.closed_form import fit_linear
from star_jax.embeddings.transforms.descent import DescentConfig, Rows
from star_jax.embeddings.transforms.frames import Frame, frame
from star_jax.embeddings.transforms.maps import Identity, Map
from star_jax.embeddings.transforms.mlp import fit_mlp
from star_jax.embeddings.transforms.normal_equations import Moments
from star_jax.embeddings.transforms.pairs import Pairs, Part
from star_jax.embeddings.transforms.sgd import fit_sgd
from star_jax.embeddings.transforms.transform import Step

Mode = Literal["none", "ridge", "sgd", "procrustes", "lowrank", "mlp"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """How the vectors of a new version are mapped to an old one's.

    Attributes:
      mode: "none": not at all, the new version is said to be a drop-in of the same width. "ridge":
        the best matrix, in closed form. "sgd": the same by gradient steps. "procrustes": the best
        rotation, which keeps all dot products. "lowrank": the best matrix of `rank`. "mlp": the
        best matrix with a small network beside it. Where all old vectors have length 1, what is
        mapped is brought to it too; else never.
      node_types: Which tables. Empty: those that both versions have.
      shared: One map for all of them, which then have one width; else one for each.
      bias: Maps deviations from the means; else, as in the paper (Eq. 8), a matrix alone.
      whiten: Maps both versions whitened, each by its own second moments; folded into the map.
      ridge: Of `ridge`, `sgd`, `lowrank` and the linear part of `mlp`, relative to the mean square
        of the new version's dimensions: a direction of that size is shrunk by 1 / (1 + ridge).
      rank: Of `lowrank`.
      hidden_size: Of the network of `mlp`.
      descent: Of `sgd` and `mlp`.
      held_out: Share of the entities that the map is judged on, in the manifest; 0: none.
      block_pairs: In memory at a time.
      memory_limit_gib: For finding the pairs; beyond it they are sorted on disk.
    """

    mode: Mode = "ridge"
    node_types: tuple[str, ...] = ()
    shared: bool = False
    bias: bool = False
    whiten: bool = False
    ridge: float = 1e-6
    rank: int = 64
    hidden_size: int = 256
    descent: DescentConfig = dataclasses.field(default_factory=DescentConfig)
    held_out: float = 0.1
    block_pairs: int = 8192
    memory_limit_gib: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rank", "hidden_size", "block_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be >= 1")
        if self.ridge < 0:
            raise ValueError(f"ridge {self.ridge} must be >= 0")
        if not 0 <= self.held_out <= 1 - self.descent.stopping:
            raise ValueError(
                f"held_out {self.held_out} and descent.stopping {self.descent.stopping} must be "
                "shares that leave pairs to fit on"
            )
        if self.memory_limit_gib < 0.1:
            raise ValueError(f"memory_limit_gib {self.memory_limit_gib} must be >= 0.1")
        if self.mode == "none" and (self.bias or self.whiten):
            raise ValueError(f"mode 'none' with bias {self.bias} and whiten {self.whiten}: no map")

    @property
    def descends(self) -> bool:
        """Whether pairs are held back for stopping."""
        return self.mode in ("sgd", "mlp")


class Fitted(NamedTuple):
    """One map."""

    step: Step
    best_step: int | None  # Of a descent.


def fit(config: TransformConfig, name: str, moments: Moments, pairs: Sequence[Pairs]) -> Fitted:
    """The map of a node type, or of several together.

    Args:
      config: As described there.
      name: Of the node type, for messages.
      moments: Of all pairs to fit on.
      pairs: Of each node type; all of the same widths.

    Raises:
      InputError: The pairs are too few, or not finite.
    """
    sizes = pairs[0].sizes
    if config.mode == "none":
        if sizes[0] != sizes[1]:
            raise InputError(
                f"mode none: {name} has {sizes[0]} dimensions in the new version and {sizes[1]} in "
                "the old one, needed as many, or a mode that maps"
            )
        return Fitted(Step(Identity(sizes[0]), False), None)
    if not moments.count:
        raise InputError(
            f"{name}: no pair is left to fit on of {sum(map(_num_pairs, pairs))} with held_out "
            f"{config.held_out}; give less"
        )
    moments.check_finite(name)
    best: int | None = None
    if config.mode in ("sgd", "mlp"):
        found, best = _descended(config, name, moments, pairs)
    else:
        found: Map = fit_linear(
            moments,
            config.mode,
            ridge=config.ridge,
            rank=config.rank,
            bias=config.bias,
            whiten=config.whiten,
        )
    return Fitted(Step(found, moments.lengths.are_one()), best)


def measure(
    pairs: Pairs,
    block: int,
    on_block: Callable[[int], None],
    *,
    worker: int = 0,
    workers: int = 1,
) -> Moments:
    """Moments of a worker's share of the pairs to fit on; each block is told of."""
    moments = Moments(*pairs.sizes)
    for x, y in pairs.blocks("fit", block, worker=worker, workers=workers):
        moments.add(x, y)
        on_block(len(x))
    return moments


def _descended(
    config: TransformConfig, name: str, moments: Moments, pairs: Sequence[Pairs]
) -> tuple[Map, int]:
    inside = frame(moments, bias=config.bias, whiten=config.whiten)
    rows, stopping = (_rows(pairs, part, inside) for part in ("fit", "stopping"))
    if not stopping.number:
        raise InputError(
            f"{name}: none of {sum(map(_num_pairs, pairs))} pairs is left to choose the stopping "
            f"point, descent.stopping {config.descent.stopping}; give more"
        )
    if config.mode == "sgd":
        return fit_sgd(inside, rows, stopping, config.ridge, config.descent)
    return fit_mlp(inside, rows, stopping, config.ridge, config.hidden_size, config.descent)


def _rows(pairs: Sequence[Pairs], part: Part, inside: Frame) -> Rows:
    """The pairs of all node types, one after the other."""
    ends = np.cumsum([0, *(each.count(part) for each in pairs)])

    def take(
        numbers: Int[np.ndarray, " N"],
    ) -> tuple[Float32[np.ndarray, "N I"], Float32[np.ndarray, "N O"]]:
        x, y = (np.empty((len(numbers), size), np.float32) for size in pairs[0].sizes)
        of = np.searchsorted(ends, numbers, side="right") - 1
        for number in np.unique(of):
            here = of == number
            x[here], y[here] = pairs[number].take(part, numbers[here] - ends[number])
        return inside.inside(x, y)

    return Rows(int(ends[-1]), take)


def _num_pairs(pairs: Pairs) -> int:
    return sum(pairs.count(part) for part in ("fit", "stopping", "held_out"))
