"""Training whose neighbourhoods grow: batches and validation around `graph.samplers.adaptive`."""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

from star_jax.graph.samplers.adaptive import AdaptiveConfig, AdaptiveState, advance, begin
from star_jax.shapes import PyTree
from star_jax.train.loop import Batches

GraphValidate = Callable[[PyTree, int], dict[str, float]]
"""Variables and step to metrics; see `GraphValidation`."""

_log = logging.getLogger(__name__)


class AdaptiveBatches:
    """One stream of examples, sampled with as many neighbours as the controller says.

    The position holds the controller, so that a resumed run grows where an uninterrupted one does.
    Batches that were made ahead for another number are thrown away and made anew.
    """

    def __init__(
        self, make: Callable[[int], Batches], config: AdaptiveConfig, *, largest: int
    ) -> None:
        """Begins with the smallest number.

        Args:
          make: Neighbours per node and hop -> batches; all of the same examples in one order.
          config: The rule.
          largest: Neighbours that are never exceeded.
        """
        self._make, self._config, self._largest = make, config, largest
        self._state = begin(config, largest)
        self._batches = make(self._state.size)

    @property
    def size(self) -> int:
        """Neighbours per node and hop of the next batch."""
        return self._state.size

    @property
    def is_largest(self) -> bool:
        """Whether the number can grow no more."""
        return self.size == self._largest

    def __next__(self) -> Any:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """The position of the examples, and the controller."""
        return {"batches": self._batches.get_state(), "adaptive": self._state._asdict()}

    def set_state(self, state: Mapping[str, Any], /) -> None:
        """Goes to a position."""
        self._go_to(state["batches"], AdaptiveState(**state["adaptive"]))

    def heed(self, score: float) -> None:
        """Tells the controller what a validation found."""
        new = advance(self._config, self._state, score, self._largest)
        if new.size != self._state.size:
            _log.info(
                "score %.4f after %.4f: sampling %d neighbours instead of %d",
                *(score, self._state.last, new.size, self._state.size),
            )
            self._go_to(self._batches.get_state(), new)
        self._state = new

    def _go_to(self, position: dict[str, Any], state: AdaptiveState) -> None:
        if state.size != self._state.size:
            self._batches = self._make(state.size)
        self._state = state
        self._batches.set_state(position)


class AdaptiveValidation:
    """Validates with all neighbours, as exports have them, and with as many as training samples.

    The first score chooses the checkpoint, the second one decides about the number: it is what
    `Algorithm 1` looks at.
    """

    def __init__(
        self,
        full: GraphValidate,
        make: Callable[[int], GraphValidate],
        batches: AdaptiveBatches,
    ) -> None:
        """Prepares nothing yet.

        Args:
          full: Validation with all neighbours.
          make: Neighbours per node and hop -> validation on the same pairs.
          batches: Are told every score.
        """
        self._full, self._make = full, functools.lru_cache(1)(make)  # No size comes back.
        self._batches = batches

    def __call__(self, variables: PyTree, step: int) -> dict[str, float]:
        """Metrics with all neighbours, and those with n of them as `<name>@n`."""
        size = self._batches.size
        found = self._full(variables, step)
        sized = found if self._batches.is_largest else self._make(size)(variables, step)
        self._batches.heed(sized["score"])
        return found | {f"{name}@{size}": value for name, value in sized.items()}
