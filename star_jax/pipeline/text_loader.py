"""Batches of text pairs: Grain shuffles groups, a batch encodes every different text once."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jaxtyping import Bool, Int, Int32

from star_jax.pipeline.lengths import Layout, choose_layouts, place
from star_jax.pipeline.tables.read import PairTable
from star_jax.pipeline.text_records import TextRecords
from star_jax.text.bi_encoder import TextBatch, Tokens
from star_jax.train.loop import Counts

_THREADS = 2
_BUFFERED_BATCHES = 4
_SAMPLED_BATCHES = 256  # To see how long the texts of a batch are.


class PairRecords(NamedTuple):
    """Pairs that point at token records; -1 where there is no text."""

    sender: Int32[np.ndarray, " B"]
    receiver: Int32[np.ndarray, " B"]
    label: Int[np.ndarray, " B"]
    group: Int32[np.ndarray, " B"]
    document: Int32[np.ndarray, " B"]
    profile: Int32[np.ndarray, " B"]
    resume: Int32[np.ndarray, " B"]


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """Static sizes of a batch.

    Attributes:
      num_groups: Positives of a microbatch, each with its negatives.
      num_negatives: Per positive; groups with more give a random choice of them.
      num_microbatches: Of one batch.
      num_tables: Tables of texts, each with its own padded length.
      row_multiple: Rows of every table are a multiple of it: the number of devices.
    """

    num_groups: int
    num_negatives: int
    num_microbatches: int
    num_tables: int
    row_multiple: int

    @property
    def num_rows(self) -> int:
        """Pairs of a microbatch, padding included."""
        return self.num_groups * (1 + self.num_negatives)


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
    )


def with_both_sides(pairs: PairRecords) -> PairRecords:
    """The pairs that have a document and something to compare it with, in whole groups.

    A group stays when its positive has both; negatives without a document go.
    """
    both = (pairs.document >= 0) & ((pairs.profile >= 0) | (pairs.resume >= 0))
    anchored = np.unique(pairs.group[both & (pairs.label == 1)])
    keep = both & np.isin(pairs.group, anchored)
    return PairRecords(*(column[keep] for column in pairs))


class BatchBuilder:
    """Makes batch number i from the groups that Grain chose for it; a pure function of both."""

    def __init__(
        self,
        pairs: PairRecords,
        records: TextRecords,
        shape: BatchShape,
        *,
        known: PairRecords,
        seed: int,
    ) -> None:
        """Prepares the groups.

        Args:
          pairs: At least one; their order does not matter.
          records: What the pairs point at.
          shape: Of every batch.
          known: Pairs whose positives must never serve as negatives.
          seed: Of the choice among a group's negatives.
        """
        order = np.lexsort((-pairs.label.astype(np.int64), pairs.group))  # Positives first.
        self._pairs = PairRecords(*(column[order] for column in pairs))
        starts = np.flatnonzero(np.diff(self._pairs.group, prepend=self._pairs.group[0] - 1))
        self._bounds = np.append(starts, len(order))
        self._records, self._shape, self._seed = records, shape, seed
        positive = known.label == 1
        self._known = np.unique(_pair_key(known.sender[positive], known.receiver[positive]))
        self._layouts = self._choose_layouts()

    @property
    def num_groups(self) -> int:
        """Groups of one epoch."""
        return len(self._bounds) - 1

    def __call__(self, index: int, groups: Int[np.ndarray, " G"]) -> TextBatch:
        """Builds a batch; with several microbatches every array has them as leading axis.

        Args:
          index: Number of the batch since the start of training.
          groups: Of the whole batch, in order.
        """
        rng = np.random.default_rng((self._seed, index))
        rows = [self._rows(part, rng) for part in np.split(groups, self._shape.num_microbatches)]
        texts = [self._texts(part) for part in rows]
        lengths = [self._records.lengths[t] for t in texts]
        layout = next(o for o in self._layouts if all(place(n, o) is not None for n in lengths))
        micro = [self._microbatch(r, t, layout) for r, t in zip(rows, texts, strict=True)]
        if len(micro) == 1:
            return micro[0]
        return jax.tree.map(lambda *arrays: np.stack(arrays), *micro)

    def _rows(
        self, groups: Int[np.ndarray, " G"], rng: np.random.Generator
    ) -> Int[np.ndarray, " B"]:
        """Rows of the pairs of some groups; -1 where a group has too few negatives."""
        size = 1 + self._shape.num_negatives
        rows = np.full((len(groups), size), -1, np.int64)
        for i, group in enumerate(groups):
            members = np.arange(int(self._bounds[group]), int(self._bounds[group + 1]))
            if len(members) > size:
                members = np.append(members[0], rng.choice(members[1:], size - 1, replace=False))
            rows[i, : len(members)] = members
        return rows.reshape(-1)

    def _texts(self, rows: Int[np.ndarray, " B"]) -> Int[np.ndarray, " U"]:
        """The different texts of a microbatch."""
        pairs, real = self._pairs, rows[rows >= 0]
        used = np.concatenate([pairs.document[real], pairs.profile[real], pairs.resume[real]])
        return np.unique(used[used >= 0])

    def _microbatch(
        self, rows: Int[np.ndarray, " B"], texts: Int[np.ndarray, " U"], layout: Layout
    ) -> TextBatch:
        pairs, mask = self._pairs, rows >= 0
        placed = place(self._records.lengths[texts], layout)
        assert placed is not None  # The caller chose a layout that fits.

        def rows_of(column: Int32[np.ndarray, " N"]) -> Int32[np.ndarray, " B"]:
            used = np.where(mask, column[rows], -1)
            found = placed[np.searchsorted(texts, np.maximum(used, texts[0]))] if len(texts) else -1
            return np.where(used >= 0, found, -1).astype(np.int32)

        starts = np.cumsum([0, *(num_rows for num_rows, _ in layout)])
        sender = np.where(mask, pairs.sender[rows], -1).astype(np.int32)
        receiver = np.where(mask, pairs.receiver[rows], -1).astype(np.int32)
        columns: dict[str, Any] = {  # Host arrays; `Step.place` makes device arrays of them.
            "texts": tuple(
                pad_tokens(self._records, texts, placed - start, num_rows, length)
                for start, (num_rows, length) in zip(starts, layout, strict=False)
            ),
            "document": rows_of(pairs.document),
            "profile": rows_of(pairs.profile),
            "resume": rows_of(pairs.resume),
            "label": np.where(mask, pairs.label[rows], 0).astype(np.float32),
            "mask": mask,
            "sender": sender,
            "receiver": receiver,
            "known_positive": self._known_positive(sender, receiver),
        }
        return TextBatch(**columns)

    def _known_positive(
        self, sender: Int[np.ndarray, " B"], receiver: Int[np.ndarray, " B"]
    ) -> Bool[np.ndarray, "B B"]:
        """[i, j]: the sender of row j is known to have applied to the receiver of row i."""
        senders, of_sender = np.unique(sender, return_inverse=True)
        receivers, of_receiver = np.unique(receiver, return_inverse=True)
        keys = _pair_key(senders[None, :], receivers[:, None])
        at = np.minimum(np.searchsorted(self._known, keys), len(self._known) - 1)
        known = self._known[at] == keys if len(self._known) else np.zeros(keys.shape, bool)
        return known[of_receiver[:, None], of_sender[None, :]]

    def _choose_layouts(self) -> tuple[Layout, ...]:
        """Shapes that hold the texts of typical microbatches, and one that holds any."""
        shape, rng = self._shape, np.random.default_rng(0)
        samples = [
            self._records.lengths[self._texts(self._rows(groups, rng))]
            for groups in rng.integers(self.num_groups, size=(_SAMPLED_BATCHES, shape.num_groups))
        ]
        pairs = self._pairs
        kinds = [
            (pairs.document, shape.num_rows),
            (pairs.profile, shape.num_groups),
            (pairs.resume, shape.num_groups),
        ]
        return choose_layouts(
            samples,
            shape.num_tables,
            max_texts=max(1, sum(most for column, most in kinds if (column >= 0).any())),
            max_length=max(int(self._records.lengths[c[c >= 0]].max(initial=1)) for c, _ in kinds),
            row_multiple=shape.row_multiple,
        )


def make_batches(builder: BatchBuilder, shape: BatchShape, *, seed: int) -> Any:
    """Endless batches: every epoch visits all groups once, in another order.

    Returns:
      A Grain iterator; `get_state` and `set_state` are its position, threads do not change it.
    """
    size = shape.num_groups * shape.num_microbatches
    dataset = (
        grain.MapDataset.range(builder.num_groups)
        .shuffle(seed=seed)
        .repeat()
        .batch(size, batch_fn=np.array)
        .map_with_index(builder)
    )
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BUFFERED_BATCHES)
    return iter(dataset.to_iter_dataset(options))


def count_tokens(batch: TextBatch) -> Counts:
    """Real and padded tokens of a host batch."""
    masks = [table.mask for table in batch.texts]
    return Counts(sum(int(mask.sum()) for mask in masks), sum(int(mask.size) for mask in masks))


def pad_tokens(
    records: TextRecords,
    texts: Int[np.ndarray, " U"],
    rows: Int[np.ndarray, " U"],
    num_rows: int,
    length: int,
) -> Tokens:
    """Reads texts into an array of static shape; rows without a text are padding altogether.

    Args:
      records: Where they are.
      texts: Records.
      rows: Where each goes; those outside of the array are left out.
      num_rows: Rows of the array.
      length: Columns of the array; no text that goes into it is longer.
    """
    tokens: Any = np.full((num_rows, length), records.pad_id, np.int32)  # Host, as above.
    mask: Any = np.zeros((num_rows, length), bool)
    inside = (rows >= 0) & (rows < num_rows)
    for row, ids in zip(rows[inside], records.read(texts[inside].tolist()), strict=True):
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
    return Tokens(tokens, mask)


def _pair_key(sender: Int[np.ndarray, "*_"], receiver: Int[np.ndarray, "*_"]) -> np.ndarray:
    return (sender.astype(np.int64) << 32) | (receiver.astype(np.int64) & 0xFFFFFFFF)
