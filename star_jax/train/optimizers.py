"""AdamW without its learning rate, and the schedule that gives the rate of every step.

The rate is an input of the compiled step, so that the length of a run may be settled after the
first steps were timed without compiling anything again.
"""

import dataclasses
import math
import re
from typing import Literal

import jax
import optax
from jax.tree_util import keystr

from star_jax import trees
from star_jax.config import InputError
from star_jax.shapes import PyTree

_WARMUP_EXAMPLES = 30 * 3172  # SPEC 2.3: 30 steps at the paper's batch of 3172 pairs.


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (SPEC 2.3)."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_fraction: float = 0.0  # Part of `learning_rate` that the decay ends at.
    max_warmup_fraction: float = 0.1  # Small batches would warm up longer than they train.
    clip_norm: float = 1.0  # 0: no clipping.
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    no_decay: str = r"(?i)(.*/)?(bias|scale)|.*norm.*"  # Parameters that are not decayed.
    rate_multipliers: tuple[tuple[str, float], ...] = ()  # (Parameter pattern, factor).

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate {self.learning_rate} must be > 0")
        if not self.eps > 0:
            raise ValueError(f"eps {self.eps} must be > 0")
        for pattern, factor in self.rate_multipliers:
            if not factor >= 0:
                raise ValueError(f"rate_multipliers {pattern!r} has factor {factor}, needed >= 0")
        for name in ("weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name)} must be >= 0")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be in [0, 1)")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"final_fraction {self.final_fraction} must be in [0, 1]")
        if not 0 <= self.max_warmup_fraction <= 1:
            raise ValueError(f"max_warmup_fraction {self.max_warmup_fraction} must be in [0, 1]")
        for pattern in (self.no_decay, *(pattern for pattern, _ in self.rate_multipliers)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW whose updates still have to be multiplied by minus the learning rate."""
    parts = [
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda tree: decayed(tree, config.no_decay)
        ),
        _scale_by_path(config.rate_multipliers),
    ]
    return optax.chain(*parts)


def decayed(tree: PyTree, no_decay: str) -> PyTree:
    """True for the parameters that weight decay shrinks."""
    return jax.tree.map_with_path(
        lambda path, _: re.fullmatch(no_decay, keystr(path, simple=True, separator="/")) is None,
        tree,
    )


def warmup_steps(config: OptimizerConfig, batch_size: int, num_steps: int) -> int:
    """Warm-up inversely proportional to the effective batch, 30 steps at 3172 pairs.

    The rule is made for batches of thousands; it is capped at `max_warmup_fraction` of the run.
    """
    by_rule = max(1, round(_WARMUP_EXAMPLES / batch_size))
    return max(1, min(by_rule, int(config.max_warmup_fraction * num_steps)))


def learning_rate(config: OptimizerConfig, step: int, *, num_steps: int, warmup: int) -> float:
    """Rate of one step, counted from 0: linear warm-up, then the decay of the schedule."""
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    if config.schedule == "constant":
        left = 1.0
    elif config.schedule == "linear":
        left = 1.0 - done
    else:
        left = 0.5 * (1.0 + math.cos(math.pi * done))
    return config.learning_rate * (config.final_fraction + (1.0 - config.final_fraction) * left)


def _scale_by_path(multipliers: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    def factor(path: tuple) -> float:
        name = keystr(path, simple=True, separator="/")
        return next((f for pattern, f in multipliers if re.fullmatch(pattern, name)), 1.0)

    def scale(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        paths = trees.paths(updates)
        for pattern, _ in multipliers:
            if not any(re.fullmatch(pattern, path) for path in paths):
                raise InputError(
                    f"rate_multipliers {pattern!r} matches none of the parameters that train: "
                    f"{', '.join(paths)}"
                )
        return jax.tree.map_with_path(lambda p, u: u * factor(p), updates)

    return optax.stateless(scale)
