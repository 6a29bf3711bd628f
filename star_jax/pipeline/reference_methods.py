"""The simple methods that every model must beat, fitted on the tables of a set."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from star_jax.evaluation.baselines import item_knn, mf_als, popularity, tfidf
from star_jax.evaluation.baselines.interactions import Interactions, row_products
from star_jax.pipeline.tables.read import (
    SPLITS,
    PairTable,
    Ranking,
    TablesMeta,
    read_links,
    read_pairs,
    read_texts,
)

_log = logging.getLogger(__name__)


@runtime_checkable
class Method(Protocol):
    """Anything that scores pairs; those that can also order candidates."""

    def score(self, pairs: PairTable) -> Float[np.ndarray, " B"]:
        """Higher means more likely positive."""
        ...

    def score_grid(self, ranking: Ranking) -> Float[np.ndarray, "Q C"] | None:
        """Scores every candidate for every query; None where the method cannot."""
        ...


@runtime_checkable
class _IdScores(Protocol):
    def score(
        self, sender: Int[np.ndarray, " B"], receiver: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, " B"]: ...

    def grid(
        self, sender: Int[np.ndarray, " Q"], receiver: Int[np.ndarray, " C"]
    ) -> Float[np.ndarray, "Q C"]: ...


class ById(NamedTuple):
    """A method that knows senders and receivers by their index alone."""

    model: _IdScores

    def score(self, pairs: PairTable) -> Float[np.ndarray, " B"]:
        """As `Method.score`."""
        return self.model.score(pairs.sender, pairs.receiver)

    def score_grid(self, ranking: Ranking) -> Float[np.ndarray, "Q C"]:
        """As `Method.score_grid`."""
        return self.model.grid(ranking.sender, ranking.candidates)


class TextCosine(NamedTuple):
    """Cosine between all that a sender's texts say and the receiver's text."""

    sender_texts: sparse.csr_array  # One row per text, and a last one of zeros for "none".
    receiver_texts: sparse.csr_array

    def score(self, pairs: PairTable) -> Float[np.ndarray, " B"]:
        """As `Method.score`."""
        senders = self._senders(pairs.sender_text, pairs.sender_resume)
        return row_products(senders, self.receiver_texts[pairs.receiver_text])

    def score_grid(self, ranking: Ranking) -> Float[np.ndarray, "Q C"]:
        """As `Method.score_grid`."""
        senders = self._senders(ranking.sender_text, ranking.sender_resume)
        return (senders @ self.receiver_texts[ranking.candidate_text].T).toarray()

    def _senders(
        self, text: Int[np.ndarray, " B"], resume: Int[np.ndarray, " B"]
    ) -> sparse.csr_array:
        return tfidf.unit_rows(self.sender_texts[text] + self.sender_texts[resume])


class Chance(NamedTuple):
    """Draws every score."""

    seed: int

    def score(self, pairs: PairTable) -> Float[np.ndarray, " B"]:
        """As `Method.score`."""
        return np.random.default_rng(self.seed).random(len(pairs.sender))

    def score_grid(self, ranking: Ranking) -> Float[np.ndarray, "Q C"]:
        """As `Method.score_grid`."""
        shape = (len(ranking.sender), len(ranking.candidates))
        return np.random.default_rng(self.seed + 1).random(shape)


class Optimum:
    """The planted truth of a synthetic market: no model can do better."""

    def score(self, pairs: PairTable) -> Float[np.ndarray, " B"]:
        """As `Method.score`."""
        return pairs.true_logit.astype(np.float64)

    def score_grid(self, ranking: Ranking) -> None:
        """Only pairs carry the truth."""
        del ranking


def fit_references(
    tables: Path, meta: TablesMeta, task: str, split: str, seed: int
) -> dict[str, Method]:
    """Fits every method on what is visible from a split; `optimum` where the truth is known."""
    interactions = visible_interactions(tables, meta, task, split)
    fits: dict[str, Callable[[], Method | None]] = {
        "popularity": lambda: ById(popularity.fit(interactions)),
        "tfidf_cosine": lambda: fit_text_cosine(tables, meta, task, split),
        "item_knn": lambda: ById(item_knn.fit(interactions)),
        "mf_als": lambda: ById(mf_als.fit(interactions, seed)),
        "random": lambda: Chance(seed),
        "optimum": lambda: _optimum(tables, task, split),
    }
    return {name: method for name, fit in fits.items() if (method := fit()) is not None}


def visible_interactions(tables: Path, meta: TablesMeta, task: str, split: str) -> Interactions:
    """All links of the task that a split may see: val sees train, test sees both."""
    about = meta.tasks[task]
    links = read_links(tables, meta, about, before=split)
    return Interactions(
        links.sender,
        links.receiver,
        meta.node_types[about.sender].count,
        meta.node_types[about.receiver].count,
    )


def fit_text_cosine(tables: Path, meta: TablesMeta, task: str, split: str) -> TextCosine | None:
    """Counts words in the texts of the visible positives, one document per event and side."""
    about = meta.tasks[task]
    silent = [t for t in (about.sender, about.receiver) if not meta.node_types[t].has_texts]
    if silent:
        _log.info("tfidf_cosine: no reference for %s, %s has no texts", task, " and ".join(silent))
        return None
    sender_texts = read_texts(tables, about.sender).text
    receiver_texts = read_texts(tables, about.receiver).text
    documents: list[str] = []
    for earlier in SPLITS[: SPLITS.index(split)]:
        pairs = read_pairs(tables, task, earlier)
        positive = pairs.label == 1
        for column, texts in (
            (pairs.sender_text, sender_texts),
            (pairs.sender_resume, sender_texts),
            (pairs.receiver_text, receiver_texts),
        ):
            documents += [texts[i] for i in column[positive] if i >= 0]
    fitted = tfidf.fit(documents)
    return TextCosine(fitted.vectors([*sender_texts, ""]), fitted.vectors([*receiver_texts, ""]))


def _optimum(tables: Path, task: str, split: str) -> Optimum | None:
    planted = np.isfinite(read_pairs(tables, task, split).true_logit)
    return Optimum() if len(planted) and planted.all() else None
