"""Which candidates become negatives: positive-aware filters, then the best or a draw."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt64

from star_jax.pipeline.tables.negatives import mix


@dataclass(frozen=True, kw_only=True)
class ChoiceConfig:
    """How negatives are chosen among what the model ranks highest.

    A candidate scored about as high as the positive is likely a match that nobody recorded; the
    margins leave such ones out. Scores are cosines, or probabilities of the scorer.

    Attributes:
      num_negatives: Per positive, at most.
      skip_top: Ranks left out at the top,
      window: and ranks looked at behind them.
      relative_margin: A negative scores less than the positive by more than this part of the
        positive's score; 0.05 is the 95 % of NV-Embed (arXiv 2405.17428, 2407.15831). None is
        no bound.
      absolute_margin: As above, by more than this. None is no bound.
      sampling: The highest of those left, or a random choice.
      seed: Of the random choice.
    """

    num_negatives: int = 1
    skip_top: int = 0
    window: int = 100
    relative_margin: float | None = 0.05
    absolute_margin: float | None = None
    sampling: Literal["top", "random"] = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_negatives < 1:
            raise ValueError(f"num_negatives {self.num_negatives} must be >= 1")
        if self.skip_top < 0:
            raise ValueError(f"skip_top {self.skip_top} is below 0")
        if self.window < self.num_negatives:
            raise ValueError(f"window {self.window} is below num_negatives {self.num_negatives}")
        for name in ("relative_margin", "absolute_margin"):
            margin = getattr(self, name)
            if margin is not None and margin < 0.0:
                raise ValueError(f"{name} {margin} is below 0; None is no bound")


class Choice(NamedTuple):
    """The chosen candidates, and how many went where."""

    chosen: Bool[np.ndarray, "P K"]
    removed: Counter[str]


def choose(
    positive: Float32[np.ndarray, " P"],
    score: Float32[np.ndarray, "P K"],
    words: UInt64[np.ndarray, "P K"],
    config: ChoiceConfig,
) -> Choice:
    """Filters the candidates of every positive, then takes `num_negatives` of what is left.

    Args:
      positive: Score of each positive.
      score: Of its candidates, best first; -inf where there is none.
      words: A random word per candidate.
      config: What is removed; the count of each candidate goes to the first that removes it.
    """
    left, removed = np.isfinite(score), Counter[str]()
    rank = np.arange(score.shape[1])[None, :]
    own = positive[:, None]
    rules = {"skip_top": rank >= config.skip_top}
    if config.relative_margin is not None:
        rules["relative_margin"] = score < own - config.relative_margin * np.abs(own)
    if config.absolute_margin is not None:
        rules["absolute_margin"] = score < own - config.absolute_margin
    for name, kept in rules.items():
        removed[name] = int((left & ~kept).sum())
        left &= kept
    order = words if config.sampling == "random" else np.broadcast_to(rank, score.shape)
    last = np.iinfo(order.dtype).max
    place = np.argsort(np.where(left, order, last), axis=1, kind="stable")
    chosen = np.zeros_like(left)
    np.put_along_axis(chosen, place[:, : config.num_negatives], True, axis=1)
    chosen &= left
    removed["not_chosen"] = int((left & ~chosen).sum())
    return Choice(chosen, removed)


def candidate_words(
    sender: np.ndarray, t: np.ndarray, own: np.ndarray, receiver: np.ndarray, seed: int
) -> UInt64[np.ndarray, "P K"]:
    """A random word per candidate that depends on nothing but it, its positive and the seed.

    Args:
      sender: Of each positive.
      t: Its time.
      own: Its receiver.
      receiver: Of each candidate, one row per positive.
      seed: Of the draw.
    """
    words = np.full(len(sender), seed, np.uint64)
    for column in (sender, own, t):
        words = mix(words ^ column.astype(np.int64).view(np.uint64))
    words = words[:, None] ^ receiver.astype(np.int64).view(np.uint64)
    return mix(words.reshape(-1)).reshape(receiver.shape)
