"""How many neighbours training samples: few at first, more when validation stops to gain.

"Algorithm 1" of the paper after LiGNN (SPEC 3.7): after each validation, a score that is not above
the last one by a tolerance raises the number by a stride; the tolerance shrinks each time.
"""

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveConfig:
    """When the number of neighbours grows; it never shrinks.

    Attributes:
      start: Neighbours per node and hop at first; the fanouts' own numbers are the largest.
      stride: How many more at a time.
      tolerance: A validation must gain more than this.
      decay: What the tolerance is multiplied by after every validation; 1 keeps it.
      patience: Validations in a row without such a gain before the number grows.
    """

    start: int = 2
    stride: int = 20
    tolerance: float = 0.002
    decay: float = 0.9
    patience: int = 1

    def __post_init__(self) -> None:
        for name in ("start", "stride", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, needed at least 1")
        if self.tolerance < 0:
            raise ValueError(f"tolerance is {self.tolerance}, needed at least 0")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay is {self.decay}, needed above 0 and at most 1")


class AdaptiveState(NamedTuple):
    """Where the controller stands."""

    size: int  # Neighbours per node and hop.
    tolerance: float
    last: float | None  # Score of the validation before; None: there was none.
    without_gain: int  # Validations in a row.


def begin(config: AdaptiveConfig, largest: int) -> AdaptiveState:
    """Before the first validation."""
    return AdaptiveState(min(config.start, largest), config.tolerance, None, 0)


def advance(
    config: AdaptiveConfig, state: AdaptiveState, score: float, largest: int
) -> AdaptiveState:
    """After one more validation.

    Args:
      config: The rule.
      state: Before it.
      score: What it found; more is better.
      largest: Neighbours that are never exceeded.
    """
    if state.last is None:
        return state._replace(last=score)
    gained = score > state.last + state.tolerance
    without_gain = 0 if gained else state.without_gain + 1
    size = state.size
    if without_gain == config.patience:
        size, without_gain = min(size + config.stride, largest), 0
    return AdaptiveState(size, state.tolerance * config.decay, score, without_gain)
