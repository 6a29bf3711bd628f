"""The other direction of a task: which senders to show to a receiver, e.g. members to a job."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int32, Int64

from star_jax.evaluation.logistic import conditional_logit
from star_jax.evaluation.ranking import query_metrics
from star_jax.pipeline.tables.rankings import linked_to
from star_jax.pipeline.tables.read import (
    PairTable,
    Ranking,
    TablesMeta,
    Texts,
    read_links,
    read_texts,
)
from star_jax.pipeline.tables.sources import RESUME
from star_jax.pipeline.tables.texts import Versions, text_as_of
from star_jax.shapes import NO_TIME

_log = logging.getLogger(__name__)

SENDER = "sender_"  # Before the metrics of this direction,
ACTIVE = "active_"  # and before that, where how active a sender is joins the scores,
WEIGHED = "weighed_"  # or where the validation split taught how much of what joins them.

_RECENT = 0.1  # Share of all links that came since, after which a link counts 1 / e.


class SenderWeights(NamedTuple):
    """What makes a receiver's sender likely: weights of three columns."""

    score: float  # Of the pair.
    activity: float  # Of its log.
    recent_activity: float  # Of its log.


class SenderRanking(NamedTuple):
    """Receivers, each of which has to order all senders that were linked before.

    What scores it is asked for `asked`, where the senders, in order, are the queries and the
    receivers the candidates, and its answer is turned around.
    """

    asked: Ranking
    activity: Int64[np.ndarray, " S"]  # Links of each sender that the split may see.
    recent_activity: Float64[np.ndarray, " S"]  # The same, each counting less the older it is.
    relevant: list[np.ndarray]  # Senders, per receiver.
    excluded: list[np.ndarray]

    def metrics(
        self, scores: Float[np.ndarray, "S R"], weights: SenderWeights | None = None
    ) -> dict[str, float]:
        """Recall and NDCG of the senders, by the scores and by scores that weigh activity.

        Models learn which receivers a sender links to: of as many negatives as positives of every
        sender, the logit s(u, v) is the log of p(v | u) over how often v is a negative. By Bayes'
        rule log p(u | v) = s(u, v) + log p(u) + what is the same for all senders, where p(u) is the
        sender's share of all links so far: its activity. Scores that are no logits are weighed
        likewise. What the future share is, and how far scores are to be trusted, is better known
        from another split: `weights`.

        Args:
          scores: Of every sender with every receiver, as `Method.score_grid` gives them.
          weights: Of `fit`, to another split; None: there are none.
        """
        ways = {"": SenderWeights(1.0, 0.0, 0.0), ACTIVE: SenderWeights(1.0, 1.0, 0.0)}
        if weights is not None:
            ways[WEIGHED] = weights
        columns, found = self._columns(scores), {}
        for name, weighed in ways.items():
            total = sum(
                (weight * column for weight, column in zip(weighed, columns, strict=True)),
                np.zeros(()),
            )
            ranked = query_metrics(total, self.asked.sender, self.relevant, self.excluded)
            found |= {f"{name}{SENDER}{metric}": mean for metric, mean in ranked.means().items()}
        return found

    def fit(self, scores: Float[np.ndarray, "S R"]) -> SenderWeights:
        """The weights under which the senders that were linked here are likeliest."""
        senders = self.asked.sender  # In order.
        chosen = [np.searchsorted(senders, own) for own in self.relevant]
        shown = np.ones(scores.T.shape, bool)
        for row, (left_out, own) in enumerate(zip(self.excluded, chosen, strict=True)):
            shown[row, np.searchsorted(senders, left_out)] = False
            shown[row, own] = True
        return SenderWeights(*conditional_logit(self._columns(scores), chosen, shown).tolist())

    def _columns(self, scores: Float[np.ndarray, "S R"]) -> list[Float64[np.ndarray, "_ S"]]:
        logs = [np.log(each)[None] for each in (self.activity, self.recent_activity)]
        return [scores.T.astype(np.float64), *logs]


def sender_ranking(
    tables: Path,
    meta: TablesMeta,
    task: str,
    split: str,
    pairs: PairTable,
    most_pairs: int,
) -> SenderRanking | None:
    """The receivers that known senders link to in a split, and all known senders.

    Args:
      tables: Folder of the tables.
      meta: Of the tables.
      task: Name of it.
      split: "val" or "test".
      pairs: Of the task and split.
      most_pairs: Of senders with receivers. Where there are more, as many receivers are asked
        about, evenly chosen.

    Returns:
      None where no known sender has a positive in the split, or they are more than `most_pairs`.
    """
    about = meta.tasks[task]
    links = read_links(tables, meta, about, before=split)
    senders, row, activity = np.unique(links.sender, return_inverse=True, return_counts=True)
    positive = pairs.label == 1
    known = positive & np.isin(pairs.sender, senders)
    receivers, first = np.unique(pairs.receiver[known], return_index=True)
    num_asked = min(len(receivers), most_pairs // max(len(senders), 1))
    if not num_asked:
        _log.info("%s, %s: no ranking of %d senders", task, split, len(senders))
        return None
    chosen = np.linspace(0, len(receivers) - 1, num_asked).astype(np.int64)
    receivers, first = receivers[chosen], first[chosen]
    time = _as_of(links.sender, links.t, senders, pairs.t[positive])
    texts = read_texts(tables, about.sender)
    resume = np.asarray([kind == RESUME for kind in texts.kind], bool)
    asked = Ranking(
        sender=senders.astype(np.int32),
        t=time,
        sender_text=_latest(texts, ~resume, senders, time),
        sender_resume=_latest(texts, resume, senders, time),
        relevant=[],
        excluded=[],
        candidates=receivers.astype(np.int32),
        candidate_text=pairs.receiver_text[known][first],
    )
    return SenderRanking(
        asked,
        activity.astype(np.int64),
        np.bincount(row, _freshness(links.t), len(senders)),
        relevant=linked_to(receivers, pairs.receiver[known], pairs.sender[known]),
        excluded=linked_to(receivers, links.receiver, links.sender),
    )


def _freshness(t: Int64[np.ndarray, " M"]) -> Float64[np.ndarray, " M"]:
    """1 for the newest link, exp(-1) after one in ten of all links came since; 1 without times."""
    since = 1 - np.searchsorted(np.sort(t), t, side="right") / max(len(t), 1)
    return np.exp(-since / _RECENT)


def _as_of(
    sender: Int[np.ndarray, " M"],
    t: Int64[np.ndarray, " M"],
    senders: Int[np.ndarray, " S"],
    of_split: Int64[np.ndarray, " P"],
) -> Int64[np.ndarray, " S"]:
    """When each sender is looked at: as the split begins, or after its last link that is visible.

    The second where times only order events of one part of the set, as its sites.
    """
    last = np.full(len(senders), NO_TIME, np.int64)
    np.maximum.at(last, np.searchsorted(senders, sender), t)
    timed = of_split[of_split != NO_TIME]
    start = int(timed.min()) if len(timed) else NO_TIME
    return np.maximum(np.where(last == NO_TIME, NO_TIME, last + 1), start)


def _latest(
    texts: Texts,
    kept: Bool[np.ndarray, " N"],
    senders: Int[np.ndarray, " S"],
    time: Int64[np.ndarray, " S"],
) -> Int32[np.ndarray, " S"]:
    """Each sender's last text of a kind before its time."""
    rows = np.flatnonzero(kept)
    rows = rows[np.lexsort((texts.t[rows], texts.entity[rows]))]
    entity = texts.entity[rows].astype(np.int64)
    return text_as_of(Versions(entity, texts.t[rows], texts.text_id[rows]), senders, time)
