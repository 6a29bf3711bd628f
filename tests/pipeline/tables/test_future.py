"""Permuting the future changes no input byte."""

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.pipeline.tables import mini

_TIMED = {
    "events.parquet": ("time", ("sender", "receiver", "action", "session")),
    "save.parquet": ("t", ("sender", "receiver")),
    "texts_job.parquet": ("t", ("text",)),
    "texts_member.parquet": ("t", ("entity", "text")),
}

# Who permutes the future may write two versions at one time, or act before a job's creation.
_SHUFFLED = ("early event", "duplicate edge", "duplicate text")


def _permute_after(tables, time):
    """Shuffles who did and wrote what among all rows after a time."""
    rng = np.random.default_rng(0)
    changed = 0
    for name, (column, contents) in _TIMED.items():
        table = tables[name]
        late = [row for row, t in enumerate(table[column]) if t is not None and t > time]
        order = rng.permutation(late)
        for content in contents:
            old = table[content]
            table[content] = list(old)
            for row, other in zip(late, order, strict=True):
                table[content][row] = old[other]
                changed += old[other] != old[row]
    assert changed > 50


def _both(tmp_path, time, schema):
    tables = mini.tables()
    before, _ = mini.imported(tmp_path / "before", tables, schema)
    _permute_after(tables, time)
    after, _ = mini.imported(tmp_path / "after", tables, schema)
    return before, after


@pytest.mark.parametrize("cut", ["val", "test"])
def test_permuting_the_future_changes_no_input_byte(cut, tmp_path):
    time = {"val": mini.VAL_FROM, "test": mini.TEST_FROM}[cut] - 1
    before, after = _both(tmp_path, time, mini.schema(allowed=_SHUFFLED))
    whole = ["pairs/apply/train.parquet", *(f"nodes/{n}.parquet" for n in ("member", "job"))]
    whole += ["vocab/member.city.parquet", "vocab/job.industry.parquet"]
    if cut == "test":
        whole += ["pairs/apply/val.parquet", "rank/apply/val.parquet"]
        whole += ["rank/apply/candidates_val.parquet"]
    for name in whole:
        assert (before / name).read_bytes() == (after / name).read_bytes(), name
    for name in (
        "edges/member__apply__job",
        "edges/member__save__job",
        "edges/job__has__skill",
        "texts/member",
        "texts/job",
        "texts/skill",
    ):
        _same_until(before / f"{name}.parquet", after / f"{name}.parquet", time)
    test = "pairs/apply/test.parquet"
    assert (before / test).read_bytes() != (after / test).read_bytes()


def test_inside_a_split_the_inputs_of_earlier_pairs_stay(tmp_path):
    """Its negatives come from the whole split's pool, so there only positives are compared."""
    time = mini.START + 40 * mini.DAY
    before, after = _both(tmp_path, time, mini.schema(allowed=_SHUFFLED))
    kept = [
        pq.read_table(folder / "pairs/apply/train.parquet").filter(
            (pc.field("t") <= time) & (pc.field("label") == 1)
        )
        for folder in (before, after)
    ]
    assert len(kept[0]) > 20
    assert kept[0].equals(kept[1])


def _same_until(before, after, time):
    tables = [pq.read_table(path) for path in (before, after)]
    then = pc.field("t").is_null() | (pc.field("t") <= time)
    if before.match("texts/job.parquet"):  # A first text without a time is as old as its job.
        born = pq.read_table(before.parents[1] / "nodes/job.parquet").to_pydict()
        future = [i for i, t in zip(born["idx"], born["t"], strict=True) if t > time]
        then &= ~(pc.field("entity").isin(future) & pc.field("t").is_null())
    early = [table.filter(then) for table in tables]
    assert len(early[0])
    assert early[0].equals(early[1]), before.name
    assert tables[0].slice(0, len(early[0])).equals(early[0])  # The future only comes after.
