import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from star_jax.config import InputError
from star_jax.pipeline.tables.read import read_meta, read_pairs
from star_jax.pipeline.teacher import with_teacher
from star_jax.pipeline.text_pairs import PairRecords
from tests.pipeline.text_market import write_tables

NOBODY = pa.array([], pa.string())


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """Tables, their task and the train pairs; nothing here reads a text."""
    tables = tmp_path_factory.mktemp("market") / "tables"
    write_tables(tables)
    pairs = read_pairs(tables, "apply", "train")
    none = np.full(len(pairs.label), -1, np.int32)
    records = PairRecords(
        pairs.sender,
        pairs.receiver,
        pairs.label,
        pairs.group,
        none,
        none,
        none,
        hard=none > 0,
        teacher=np.full(len(none), np.nan, np.float32),
    )
    return tables, read_meta(tables).tasks["apply"], records


@pytest.fixture
def taught(tmp_path, market):
    """Writes a teacher's file and joins it."""
    tables, task, pairs = market

    def join(**columns):
        path = tmp_path / "teacher.parquet"
        pq.write_table(pa.table(columns), path)
        return with_teacher(pairs, path, tables, task).teacher

    return join


def test_scores_find_their_pairs(taught, market):
    pairs = market[2]
    scores = {(3, 7): 0.25, (0, 4): -3.0}  # And one pair that is no training pair.
    for i in range(0, len(pairs.label), 3):
        scores[int(pairs.sender[i]), int(pairs.receiver[i])] = float(i)
    sender, receiver = zip(*scores, strict=True)
    found = taught(
        sender=[f"member-{i}" for i in sender],
        receiver=[f"job-{i}" for i in receiver],
        score=list(scores.values()),
        other=[None] * len(sender),
    )
    expected = [
        scores.get((s, r), np.nan)
        for s, r in zip(pairs.sender.tolist(), pairs.receiver.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
    assert np.isnan(found).any()


def test_numbers_are_ids_too(tmp_path, market):
    _, task, pairs = market
    for name, count in (("member", 24), ("job", 16)):
        (tmp_path / "nodes").mkdir(exist_ok=True)
        ids = pa.table({"id": [str(1000 + i) for i in range(count)]})
        pq.write_table(ids, tmp_path / "nodes" / f"{name}.parquet")
    first = {"sender": [1000 + pairs.sender[0]], "receiver": [1000 + pairs.receiver[0]]}
    pq.write_table(pa.table(first | {"score": [2]}), tmp_path / "teacher.parquet")
    found = with_teacher(pairs, tmp_path / "teacher.parquet", tmp_path, task).teacher
    own = (pairs.sender == pairs.sender[0]) & (pairs.receiver == pairs.receiver[0])
    np.testing.assert_array_equal(found, np.where(own, 2.0, np.nan).astype(np.float32))


def test_all_problems_are_told_at_once(taught, caplog):
    with pytest.raises(InputError) as stopped:
        taught(
            sender=["member-1", "member-1", "member-99", None, "member-2"],
            receiver=["job-1", "job-1", "job-2", "job-3", "x"],
            score=[1.0, 2.0, None, float("nan"), 0.5],
        )
    assert "5 kinds of problem" in str(stopped.value)
    for problem in (
        r"unknown id in .*:sender: 1 rows, first 3 \('member-99'\); needed ids of member nodes",
        r"unknown id in .*:receiver: 1 rows, first 5 \('x'\); needed ids of job nodes",
        r"null id in .*:sender: 1 rows, first 4 \(None\); needed an id in every row",
        r"missing score in .*:score: 2 rows, first 3 \(None\), 4 \(nan\); needed a finite number",
        r"duplicate pair in .*: 1 rows, first 2 \('member-1'\); needed one score each",
    ):
        assert any(re.match(problem, message) for message in caplog.messages), problem


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sender": ["member-1"]}, "lacks receiver, score, needed sender, receiver, score; it has"),
        (
            {"sender": [1.5], "receiver": ["job-1"], "score": [1.0]},
            "column sender holds double, needed strings or integers",
        ),
        (
            {"sender": ["member-1"], "receiver": ["job-1"], "score": ["1"]},
            "column score holds string, needed numbers",
        ),
        (
            {"sender": NOBODY, "receiver": NOBODY, "score": pa.array([], pa.float32())},
            "has no rows",
        ),
        (
            {"sender": ["member-0"], "receiver": ["job-1"], "score": [1]},
            "none of its 1 pairs is among the 160 training pairs",
        ),
    ],
)
def test_a_file_that_is_of_no_use(taught, columns, message):
    with pytest.raises(InputError, match=message):
        taught(**columns)


def test_no_file_and_no_parquet(tmp_path, market):
    tables, task, pairs = market
    with pytest.raises(InputError, match="does not exist, needed a Parquet file"):
        with_teacher(pairs, tmp_path / "no.parquet", tables, task)
    (tmp_path / "a.parquet").write_text("a,b\n", encoding="utf-8")
    with pytest.raises(InputError, match="is no Parquet file"):
        with_teacher(pairs, tmp_path / "a.parquet", tables, task)
