"""Pairs of a task without fixed ones: its positives, split by time, and the negatives drawn."""

from collections.abc import Callable

import numpy as np

from star_jax.pipeline.tables.database import Database, quoted
from star_jax.pipeline.tables.edges import edge_table
from star_jax.pipeline.tables.negatives import (
    NO_RECEIVER,
    Attributes,
    Propose,
    Rules,
    draw,
    draw_rest,
    from_list,
    known_keys,
    look_alikes,
    mix,
    shown_before,
    slots,
)
from star_jax.pipeline.tables.nodes import node_table
from star_jax.pipeline.tables.pairs import (
    Outcomes,
    TextLookup,
    earliest_unseen,
    with_pointer,
)
from star_jax.pipeline.tables.read import SPLIT_CODES, PairTable
from star_jax.pipeline.tables.schema import NEGATIVE_KINDS, TaskSource
from star_jax.pipeline.tables.texts import text_as_of


def read_attributes(db: Database, task: TaskSource) -> Attributes | None:
    """What makes two receivers look alike, if the task says so."""
    near = task.negatives.near
    if near is None:
        return None
    if "__" in near:
        sql = (
            "SELECT CAST(sender_idx AS BIGINT) AS receiver, CAST(receiver_idx AS BIGINT) AS value "
            f"FROM {quoted(edge_table(near))}"
        )
    else:
        column = quoted(f"cat_{near}")
        sql = (
            "SELECT CAST(idx AS BIGINT) AS receiver, "
            f"dense_rank() OVER (ORDER BY {column}) AS value "
            f"FROM {quoted(node_table(task.receiver))} WHERE idx IS NOT NULL AND {column} <> ''"
        )
    rows = db.arrays(f"SELECT DISTINCT receiver, value FROM ({sql}) ORDER BY receiver, value")
    return Attributes(rows["receiver"].astype(np.int64), rows["value"].astype(np.int64))


class PairSampler:
    """Draws the pairs of one task, split by split."""

    def __init__(
        self,
        db: Database,
        task: TaskSource,
        *,
        positives: Outcomes,
        shown: Outcomes,
        lookup: TextLookup,
        created: np.ndarray,
        seed: int,
    ) -> None:
        self._db = db
        self._task = task
        self._positives = positives
        self._shown = shown
        self._lookup = lookup
        self._created = created
        self._attributes = read_attributes(db, task)
        self._seed = seed

    def pairs(self, split: str) -> PairTable:
        """Every positive of the split, each followed by its negatives, in the order of time."""
        code = SPLIT_CODES[split]
        settings = self._task.negatives
        ratios = settings.train if split == "train" else settings.evaluation
        positives = self._positives.take(self._positives.code == code)
        shown = self._shown.take(self._shown.code == code)
        keys = known_keys(self._positives, code, len(self._created))
        rules = Rules(keys, self._created)
        parts = [(np.arange(len(positives.t)), positives.receiver, "")]
        for kind in NEGATIVE_KINDS:
            if kind in ratios and not (kind == "impressed" and settings.impressed == "alone"):
                parts.append(self._kind(kind, ratios[kind], positives, shown, rules, split))
        alone = "impressed" in ratios and settings.impressed == "alone"
        return self._assemble(positives, parts, shown if alone else None, split)

    def _kind(
        self,
        kind: str,
        ratio: float,
        positives: Outcomes,
        shown: Outcomes,
        rules: Rules,
        split: str,
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """(row of the positive, receiver, kind) of every negative of one kind."""
        slot = slots(len(positives.t), ratio)
        word = self._word(kind, split)
        propose, options = self._source(kind, positives, shown)
        chosen = draw(positives, slot, propose, rules, word)
        chosen = draw_rest(positives, slot, chosen, options, rules, word)
        found = chosen != NO_RECEIVER
        what = f"{self._task.name} {split}: {kind} negatives that do not exist"
        self._db.findings.count("short", what, int((~found).sum()))
        return slot[found], chosen[found], kind

    def _source(
        self, kind: str, positives: Outcomes, shown: Outcomes
    ) -> tuple[Propose, Callable[[int], np.ndarray]]:
        pool = np.unique(positives.receiver)
        if kind == "near":
            assert self._attributes is not None  # Checked by `Negatives`.
            return look_alikes(positives, pool, self._attributes)
        if kind == "impressed":
            return shown_before(positives, shown)
        receivers = pool if kind == "uniform" else np.sort(positives.receiver)
        return from_list(receivers), lambda row: pool

    def _word(self, kind: str, split: str) -> int:
        words = np.array([self._seed], np.uint64)
        for part in (NEGATIVE_KINDS.index(kind), SPLIT_CODES[split], *self._task.name.encode()):
            words = mix(words ^ np.uint64(part))
        return int(words[0])

    def _assemble(
        self,
        positives: Outcomes,
        parts: list[tuple[np.ndarray, np.ndarray, str]],
        alone: Outcomes | None,
        split: str,
    ) -> PairTable:
        group = np.concatenate([slot for slot, _, _ in parts])
        receiver = np.concatenate([receivers for _, receivers, _ in parts])
        kind = np.concatenate([np.full(len(slot), name, "U9") for slot, _, name in parts])
        label = (kind == "").astype(np.int8)
        leaders = positives
        if alone is not None:  # Each of them leads a group of its own.
            leaders = Outcomes(
                *(np.concatenate(both) for both in zip(positives, alone, strict=True))
            )
            group = np.append(group, np.arange(len(alone.t)) + len(positives.t))
            receiver = np.append(receiver, alone.receiver)
            kind = np.append(kind, np.full(len(alone.t), "impressed"))
            label = np.append(label, np.zeros(len(alone.t), np.int8))
        rank = np.empty(len(leaders.t), np.int64)
        rank[np.lexsort((leaders.receiver, leaders.sender, leaders.t))] = np.arange(len(leaders.t))
        order = np.argsort(rank[group], kind="stable")
        group, receiver, kind, label = group[order], receiver[order], kind[order], label[order]
        leads = leaders.receiver[group] == receiver
        t, sender = leaders.t[group], leaders.sender[group]
        texts = self._lookup
        own_text = with_pointer(leaders.receiver_text[group], texts.receiver, receiver, t)
        other_text = text_as_of(texts.receiver, receiver, t)
        seen = self._positives.code < earliest_unseen(split)
        return PairTable(
            sender=sender.astype(np.int32),
            receiver=receiver.astype(np.int32),
            label=label,
            negative=kind,
            t=t,
            group=rank[group].astype(np.int32),
            sender_text=with_pointer(leaders.sender_text[group], texts.sender, sender, t),
            sender_resume=with_pointer(leaders.sender_resume[group], texts.resume, sender, t),
            receiver_text=np.where(leads, own_text, other_text).astype(np.int32),
            warm_sender=np.isin(sender, self._positives.sender[seen]),
            warm_receiver=np.isin(receiver, self._positives.receiver[seen]),
            true_logit=np.full(len(t), np.nan, np.float32),
            slice=np.full(len(t), "", "U1"),
        )
