"""Mined negatives beside the training pairs that they belong to."""

from pathlib import Path

import numpy as np

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.pipeline.tables.read import PairTable, read_pairs
from star_jax.pipeline.text_pairs import PairRecords

FOLDER = "hard_negatives"
KIND = "hard_negatives"
HARD = "hard"  # Kind of these negatives.


def read_hard_negatives(workdir: Path, task: str) -> PairTable:
    """What `star mine-negatives` wrote; its groups are those of the train pairs.

    Raises:
      InputError: There is nothing, or it was mined from other tables or for another task.
    """
    folder, tables = workdir / FOLDER, workdir / "tables"
    meta = artefacts.read_manifest(folder, KIND).meta
    needed = {"tables": artefacts.digest(tables), "task": task}
    for name, value in needed.items():
        if meta[name] != value:
            raise InputError(
                f"{folder} was mined for {name} {meta[name][:12]}, got {value[:12]}; "
                "run `star mine-negatives` again"
            )
    return read_pairs(folder, task, "train")


def with_hard_negatives(pairs: PairRecords, mined: PairRecords) -> PairRecords:
    """The pairs with the mined ones behind them, each in the group of its positive.

    Args:
      pairs: Of the train split.
      mined: As they were mined for it; they are marked as `hard`.
    """
    mined = mined._replace(hard=np.ones(len(mined.label), bool))
    return PairRecords(*(np.concatenate(both) for both in zip(pairs, mined, strict=True)))


def beside_tables(pairs: PairTable, mined: PairTable, most: int) -> PairTable:
    """The pairs of tables with mined ones behind them, each in the group of its positive.

    Args:
      pairs: Of the train split.
      mined: As they were mined for it.
      most: Of a group; its first ones.
    """
    order = np.argsort(mined.group, kind="stable")
    group = mined.group[order]
    place = np.arange(len(group)) - np.searchsorted(group, group, side="left")
    chosen = order[place < most]
    return PairTable(
        *(np.concatenate([own, more[chosen]]) for own, more in zip(pairs, mined, strict=True))
    )
