"""All models together: their scores stacked, with weights fitted on the validation split."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from star_jax.evaluation.stacking import Ends, Stack, fit_stack, names
from star_jax.pipeline.scored import Answer, Questions
from star_jax.pipeline.tables.read import Ranking, TablesMeta, read_links

STACKED = "stacked"


class Warm(NamedTuple):
    """Which nodes have links of a task that a split may see."""

    senders: Bool[np.ndarray, " M"]
    receivers: Bool[np.ndarray, " N"]


class FittedStack(NamedTuple):
    """A stack of models.

    Attributes:
      models: Their names, in the order of its scores.
      stack: Their weights.
    """

    models: tuple[str, ...]
    stack: Stack

    @classmethod
    def fit(cls, questions: Questions, answers: Mapping[str, Answer], warm: Warm) -> "FittedStack":
        """Fits to what the models answer to the pairs of the validation split."""
        pairs = questions.pairs
        ends = Ends(warm.senders[pairs.sender], warm.receivers[pairs.receiver])
        scores = [each.pairs for each in answers.values()]
        return cls(tuple(answers), fit_stack(scores, ends, pairs.label == 1))

    def answer(self, questions: Questions, answers: Mapping[str, Answer], warm: Warm) -> Answer:
        """Its own answer to what the models were asked on another split."""
        own = [answers[name] for name in self.models]
        pairs, ranking, of_senders = questions
        ends = Ends(warm.senders[pairs.sender], warm.receivers[pairs.receiver])
        asked = None if of_senders is None else of_senders.asked
        return Answer(
            self.stack.logits([each.pairs for each in own], ends),
            self._grid(ranking, [each.grid for each in own], warm),
            self._grid(asked, [each.turned for each in own], warm),
        )

    def _grid(
        self,
        asked: Ranking | None,
        grids: Sequence[Float[np.ndarray, "Q C"] | None],
        warm: Warm,
    ) -> Float[np.ndarray, "Q C"] | None:
        """None where a model says nothing."""
        given = [grid for grid in grids if grid is not None]
        if asked is None or len(given) < len(grids):
            return None
        senders, receivers = warm.senders[asked.sender], warm.receivers[asked.candidates]
        return self.stack.logits(given, Ends(senders[:, None], receivers[None]))

    def weights(self) -> dict[str, float]:
        """By what they weigh, to be read by people."""
        values = [self.stack.bias, *self.stack.weights.tolist()]
        return dict(zip(["bias", *names(self.models)], values, strict=True))


def warm_ends(tables: Path, meta: TablesMeta, task: str, split: str) -> Warm:
    """Looks through the links of a task that a split may see."""
    about = meta.tasks[task]
    links = read_links(tables, meta, about, before=split)
    found = []
    for node_type, ends in ((about.sender, links.sender), (about.receiver, links.receiver)):
        seen = np.zeros(meta.node_types[node_type].count, bool)
        seen[ends] = True
        found.append(seen)
    return Warm(*found)
