"""All models together, as the validation split teaches: stacked, and weighed to rank senders."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from star_jax.evaluation.stacking import Ends, Stack, fit_stack
from star_jax.pipeline.scored import Answer, Questions
from star_jax.pipeline.sender_ranking import SenderWeights
from star_jax.pipeline.tables.read import PairTable, Ranking, TablesMeta, read_links

STACKED = "stacked"


class Warm(NamedTuple):
    """Which nodes have links of a task that a split may see."""

    senders: Bool[np.ndarray, " M"]
    receivers: Bool[np.ndarray, " N"]

    def of_pairs(self, pairs: PairTable) -> Ends:
        """The ends of every pair."""
        return Ends(self.senders[pairs.sender], self.receivers[pairs.receiver])

    def of_grid(self, asked: Ranking) -> Ends:
        """The ends of every query with every candidate."""
        return Ends(self.senders[asked.sender][:, None], self.receivers[asked.candidates][None])


class Asked(NamedTuple):
    """What models were asked about a split, their answers, and what had links."""

    questions: Questions
    answers: Mapping[str, Answer]
    warm: Warm


class Taught(NamedTuple):
    """What the validation split teaches.

    Attributes:
      stack: Of the models.
      senders: By model, the stack among them, what makes a receiver's sender likely.
      answer: Of the stack, to what was asked about another split.
    """

    stack: Stack
    senders: dict[str, SenderWeights]
    answer: Answer


def teach(val: Asked, other: Asked) -> Taught:
    """Fits to what models say of the validation split, and asks the stack about another one."""
    pairs = val.questions.pairs
    scores = {name: answer.pairs for name, answer in val.answers.items()}
    stack = fit_stack(scores, val.warm.of_pairs(pairs), pairs.label == 1)
    senders = {}
    if val.questions.of_senders is not None:
        unranked = val._replace(questions=val.questions._replace(ranking=None))
        for name, answer in {**val.answers, STACKED: answer_of(stack, unranked)}.items():
            if answer.turned is not None:
                senders[name] = val.questions.of_senders.fit(answer.turned)
    return Taught(stack, senders, answer_of(stack, other))


def answer_of(stack: Stack, asked: Asked) -> Answer:
    """A stack's own answer to what its models were asked."""
    pairs, ranking, of_senders = asked.questions
    own = {name: asked.answers[name] for name in stack.models}

    def grid(
        of: Ranking | None, grids: Mapping[str, Float[np.ndarray, "Q C"] | None]
    ) -> Float[np.ndarray, "Q C"] | None:
        given = {name: each for name, each in grids.items() if each is not None}
        if of is None or len(given) < len(grids):  # A model says nothing.
            return None
        return stack.logits(given, asked.warm.of_grid(of))

    return Answer(
        stack.logits({name: each.pairs for name, each in own.items()}, asked.warm.of_pairs(pairs)),
        grid(ranking, {name: each.grid for name, each in own.items()}),
        grid(
            None if of_senders is None else of_senders.asked,
            {name: each.turned for name, each in own.items()},
        ),
    )


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
