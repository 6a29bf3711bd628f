"""Pairs of entities whose texts are token records."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from star_jax.pipeline.tables.read import PairTable
from star_jax.pipeline.text_records import TextRecords


class PairRecords(NamedTuple):
    """Pairs that point at token records; -1 where there is no text."""

    sender: Int32[np.ndarray, " B"]
    receiver: Int32[np.ndarray, " B"]
    label: Int[np.ndarray, " B"]
    group: Int32[np.ndarray, " B"]
    document: Int32[np.ndarray, " B"]
    profile: Int32[np.ndarray, " B"]
    resume: Int32[np.ndarray, " B"]
    hard: Bool[np.ndarray, " B"]
    """Mined: a group takes such negatives beside its others."""
    teacher: Float32[np.ndarray, " B"]
    """A cross-encoder's logit; NaN where there is none."""


def pair_records(
    pairs: PairTable, records: TextRecords, *, sender: str, receiver: str
) -> PairRecords:
    """Replaces the texts of pairs by their records.

    Args:
      pairs: Of one split.
      records: Of all texts.
      sender: Node type whose texts are profiles and resumes.
      receiver: Node type whose texts are documents.
    """
    return PairRecords(
        sender=pairs.sender,
        receiver=pairs.receiver,
        label=pairs.label,
        group=pairs.group,
        document=records.of(receiver, pairs.receiver_text),
        profile=records.of(sender, pairs.sender_text),
        resume=records.of(sender, pairs.sender_resume),
        hard=np.zeros(len(pairs.label), bool),
        teacher=np.full(len(pairs.label), np.nan, np.float32),
    )


def has_both_sides(
    document: Int32[np.ndarray, " B"],
    profile: Int32[np.ndarray, " B"],
    resume: Int32[np.ndarray, " B"],
) -> Bool[np.ndarray, " B"]:
    """Whether pairs have a document and something to compare it with; -1 is no text."""
    return (document >= 0) & ((profile >= 0) | (resume >= 0))


def with_both_sides(pairs: PairRecords) -> PairRecords:
    """The pairs that have a document and something to compare it with, in whole groups.

    A group stays when its positive has both; negatives without a document go.
    """
    both = has_both_sides(pairs.document, pairs.profile, pairs.resume)
    anchored = np.unique(pairs.group[both & (pairs.label == 1)])
    keep = both & np.isin(pairs.group, anchored)
    return PairRecords(*(column[keep] for column in pairs))
