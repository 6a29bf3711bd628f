"""Token records as arrays of static shape."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from star_jax.pipeline.layouts import Layout, num_slots
from star_jax.pipeline.text_records import Records
from star_jax.text.packing import Tokens


def put_texts(
    records: Records,
    texts: Int[np.ndarray, " U"],
    placed: Int[np.ndarray, " U"],
    layout: Layout,
    num_chunks: int,
) -> tuple[Tokens, ...]:
    """Reads texts into the tables of a layout, with a leading axis where there are chunks.

    Args:
      records: Where the texts are.
      texts: Records.
      placed: Slot of each, as `place` gave it.
      layout: Of a chunk.
      num_chunks: Chunks.
    """
    chunk, slot = np.divmod(placed, num_slots(layout))
    tables, start = [], 0
    for rows, length, slots in layout:
        end = start + rows * slots
        inside = (slot >= start) & (slot < end)
        at = (chunk[inside] * rows * slots + slot[inside] - start).astype(np.int64)
        table = pad_tokens(records, texts[inside], at, num_chunks * rows, length, slots)
        if num_chunks > 1:
            table = jax.tree.map(lambda a: a.reshape(num_chunks, -1, a.shape[-1]), table)
        tables.append(table)
        start = end
    return tuple(tables)


def pad_tokens(
    records: Records,
    texts: Int[np.ndarray, " U"],
    slots_of: Int[np.ndarray, " U"],
    num_rows: int,
    length: int,
    num_slots: int,
) -> Tokens:
    """Reads texts into an array of static shape; what holds no text is padding.

    Args:
      records: Where they are.
      texts: Records.
      slots_of: Slot of each, counted through the rows.
      num_rows: Rows of the array.
      length: Columns of the array; the texts of a row are not longer together.
      num_slots: Texts that a row has room for.
    """
    tokens: Any = np.full((num_rows, length), records.pad_id, np.int32)  # Host arrays; `place`
    lengths: Any = np.zeros((num_rows, num_slots), np.int32)  # makes device arrays of them.
    skipped: Any = np.zeros((num_rows, num_slots), np.int32)
    kind: Any = np.full((num_rows, num_slots), -1, np.int32)
    order = np.argsort(slots_of, kind="stable")
    skipped.reshape(-1)[slots_of] = records.prompts[texts]
    kind.reshape(-1)[slots_of] = records.kinds[texts]
    for at, ids in zip(slots_of[order], records.read(texts[order].tolist()), strict=True):
        row, slot = divmod(int(at), num_slots)
        start = int(lengths[row, :slot].sum())
        tokens[row, start : start + len(ids)] = ids
        lengths[row, slot] = len(ids)
    return Tokens(tokens, lengths, skipped, kind)
