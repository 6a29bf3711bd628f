"""Every kind of problem: found, counted, its first rows shown, all of them in one pass."""

import dataclasses
import logging
import re

import pyarrow.parquet as pq
import pytest

from star_jax.pipeline.tables.findings import InputProblemsError
from star_jax.pipeline.tables.schema import SplitColumn, TimeCuts
from tests.pipeline.tables import mini


def _set(file, column, row, value):
    def bend(tables):
        tables[file][column][row] = value

    return bend


def _copy_row(file, row, **changes):
    def bend(tables):
        for column, values in tables[file].items():
            values.append(changes.get(column, values[row]))

    return bend


def _drop_column(file, column):
    return lambda tables: tables[file].pop(column)


def _all_of(file, column, value):
    def bend(tables):
        tables[file][column] = [value(v) for v in tables[file][column]]

    return bend


def _empty(file):
    return lambda tables: tables.update({file: {c: v[:0] for c, v in tables[file].items()}})


PROBLEMS = {
    "dangling sender": (
        _set("save.parquet", "sender", 4, "nobody"),
        r"^dangling id in save.parquet:sender: 1 rows, first row 5 \(sender 'nobody'\); "
        r"needed the id of a member$",
    ),
    "dangling receiver": (
        _set("job_skill.parquet", "receiver", 0, 99),
        r"dangling id in job_skill.parquet:receiver: 1 rows, first row 1 \(receiver '99'\)",
    ),
    "dangling event": (
        _set("events.parquet", "receiver", 2, "gone"),
        r"dangling id in events.parquet:receiver: 1 rows, first row 3",
    ),
    "dangling text": (
        _set("resume.parquet", "entity", 1, "x"),
        r"dangling id in resume.parquet:entity: 1 rows, first row 2 \(entity 'x'\)",
    ),
    "duplicate id": (
        _copy_row("job.parquet", 3, t=mini.START - 2 * mini.DAY),
        r"duplicate id in job.parquet:id: 1 rows, first row 25 \(id 'j3'\); needed one row per id",
    ),
    "duplicate edge": (
        _copy_row("save.parquet", 7),
        r"duplicate edge in save.parquet: 1 rows, first row 61; needed one row per sender",
    ),
    "duplicate event": (
        _copy_row("events.parquet", 0),
        r"duplicate event in events.parquet: 1 rows",
    ),
    "duplicate text": (
        _copy_row("resume.parquet", 0, text="another"),
        r"duplicate text in resume.parquet: 1 rows, first row 16; needed one version per entity",
    ),
    "duplicate text id": (
        _set("texts_member.parquet", "text_id", 1, "m0.0"),
        r"duplicate id in texts_member.parquet:text_id: 1 rows, first row 2 \(pointer 'm0.0'\)",
    ),
    "null id": (
        _set("member.parquet", "id", 29, None),
        r"null in member.parquet:id: 1 rows, first row 30; needed a value in every row",
    ),
    "null time": (
        _set("events.parquet", "time", 1, None),
        r"null in events.parquet:time: 1 rows, first row 2; needed a value in every row",
    ),
    "null weight": (
        _set("job_skill.parquet", "w", 1, None),
        r"null in job_skill.parquet:w: 1 rows, first row 2",
    ),
    "null consent": (
        _set("member.parquet", "consent", 1, None),
        r"null in member.parquet:consent: 1 rows, first row 2",
    ),
    "milliseconds": (
        _set("texts_job.parquet", "t", 2, mini.START * 1000),
        r"mixed time units in texts_job.parquet:t: 1 rows, first row 3 \(t '1600000000000'\); "
        r"needed unix seconds, as declared \(these look like milliseconds\)$",
    ),
    "days": (
        _set("job.parquet", "t", 1, 18000),
        r"mixed time units in job.parquet:t: 1 rows, first row 2 .* look like days or hours",
    ),
    "negative weight": (
        _set("job_skill.parquet", "w", 5, -0.5),
        r"negative weight in job_skill.parquet:w: 1 rows, first row 6 \(weight '-0.5'\)",
    ),
    "unknown action": (
        _set("events.parquet", "action", 3, "LOVE"),
        r"unknown action in events.parquet:action: 1 rows, first row 4 \(action 'LOVE'\); "
        r"needed one of APPLY, SKIP$",
    ),
    "empty text": (
        _set("texts_job.parquet", "text", 0, "  "),
        r"empty text in texts_job.parquet:text: 1 rows, first row 1; needed a text in every row",
    ),
    "missing column": (
        _drop_column("save.parquet", "receiver"),
        r"missing column in save.parquet:receiver: needed this column among sender, t$",
    ),
    "wrong type": (
        _all_of("member.parquet", "years", lambda v: "many" if v == 3.0 else str(v or 0)),
        r"wrong type in member.parquet:years: 1 rows, first row 4; needed finite numbers",
    ),
    "fractional time": (
        _all_of("save.parquet", "t", lambda t: t + 0.5),
        r"wrong type in save.parquet:t: 60 rows, first row 1, row 2, row 3; needed whole numbers",
    ),
    "boolean id": (
        _all_of("skill.parquet", "id", lambda v: v > 2),
        r"wrong type in skill.parquet:id: 5 rows",
    ),
    "infinite": (
        _set("member.parquet", "years", 1, float("inf")),
        r"wrong type in member.parquet:years: 1 rows, first row 2; needed finite numbers",
    ),
    "empty table": (
        _empty("save.parquet"),
        r"empty table in save.parquet: needed at least one row$",
    ),
    "missing file": (
        lambda tables: tables.pop("save.parquet"),
        r"missing file in save.parquet: needed the file .*raw/save.parquet$",
    ),
    "early event": (
        _set("events.parquet", "time", 0, mini.START - 60 * mini.DAY),
        r"early event in events.parquet:time: 1 rows, first row 1; needed a time at or after",
    ),
    "blanks in ids": (
        _set("save.parquet", "sender", 0, "m1 "),
        r"surrounding blanks in save.parquet:sender: 1 rows, first row 1; needed no blanks",
    ),
    "e-mail column": (
        lambda tables: tables["member.parquet"].update(contactEmail=["?"] * mini.NUM_MEMBERS),
        r"personal data in member.parquet:contactEmail: needed the column gone, or "
        r'"member.parquet:contactEmail" in the schema\'s personal_data \(its name says so\)$',
    ),
    "e-mail values": (
        lambda tables: tables["member.parquet"].update(
            handle=[f"a{i}@example.org" for i in range(mini.NUM_MEMBERS)]
        ),
        r"personal data in member.parquet:handle: .* \(its values are e-mail addresses\)$",
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_each_kind_of_problem_has_its_own_words(name, tmp_path, caplog):
    bend, message = PROBLEMS[name]
    tables = mini.tables()
    bend(tables)
    caplog.set_level(logging.ERROR)
    with pytest.raises(InputProblemsError) as error:
        mini.imported(tmp_path, tables, mini.schema())
    lines = [str(problem) for problem in error.value.problems]
    # A bent id may also leave others dangling or double; its own words must be there all the same.
    assert any(re.search(message, line) for line in lines), lines
    assert "\n" not in str(error.value)
    if len(lines) == 1:
        assert str(error.value) == lines[0]


def test_all_problems_come_in_one_go(tmp_path, caplog):
    tables = mini.tables()
    bent = ("dangling sender", "negative weight", "unknown action", "empty text", "milliseconds")
    for name in bent:
        PROBLEMS[name][0](tables)
    caplog.set_level(logging.ERROR)
    with pytest.raises(
        InputProblemsError, match="5 kinds of problem, each listed above: "
    ) as error:
        mini.imported(tmp_path, tables, mini.schema())
    kinds = {problem.kind for problem in error.value.problems}
    assert kinds == {
        "dangling id",
        "negative weight",
        "unknown action",
        "empty text",
        "mixed time units",
    }
    assert len(caplog.records) == 5


def test_the_first_offending_rows_are_shown_and_all_are_counted(tmp_path):
    tables = mini.tables()
    for row in (3, 9, 11, 20):
        tables["save.parquet"]["sender"][row] = f"nobody {row}"
    with pytest.raises(InputProblemsError) as error:
        mini.imported(tmp_path, tables, mini.schema())
    (problem,) = error.value.problems
    assert problem.count == 4
    assert [e.split(" ")[1] for e in problem.examples] == ["4", "10", "12"]


def test_a_truncated_parquet_file_is_named(tmp_path):
    tables = mini.tables()
    data = mini.write(tmp_path / "raw", tables)
    path = data / "save.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    out = tmp_path / "tables"
    out.mkdir()
    with pytest.raises(
        InputProblemsError, match=r"^unreadable file in save.parquet: needed a whole"
    ):
        mini.build(data, mini.schema(), out, mini.LIMITS, seed=0, fix=False)


def test_an_unreadable_node_file_hides_no_other_problem_and_makes_none(tmp_path):
    tables = mini.tables()
    PROBLEMS["negative weight"][0](tables)
    data = mini.write(tmp_path / "raw", tables)
    (data / "member.parquet").write_bytes(b"PAR1 nothing PAR1")
    out = tmp_path / "tables"
    out.mkdir()
    with pytest.raises(InputProblemsError) as error:
        mini.build(data, mini.schema(), out, mini.LIMITS, seed=0, fix=False)
    assert {p.kind for p in error.value.problems} == {"unreadable file", "negative weight"}


def test_an_unknown_split_is_named(tmp_path):
    tables = mini.tables()
    events = tables["events.parquet"]
    events["part"] = ["train", "val", "test"] * (len(events["time"]) // 3 + 1)
    events["part"] = events["part"][: len(events["time"])]
    events["part"][5] = "tset"
    schema = mini.schema(events=(mini.events_source(split="part"),), split=SplitColumn())
    message = r"unknown split in events.parquet:part: 1 rows, first row 6 \(split 'tset'\); needed"
    with pytest.raises(InputProblemsError, match=message):
        mini.imported(tmp_path, tables, schema)


def test_a_split_without_events_is_named(tmp_path):
    schema = mini.schema(split=TimeCuts(val_from=mini.END, test_from=mini.END + 1))
    message = r"empty split in val of task apply \(1\), empty split in test of task apply"
    with pytest.raises(InputProblemsError, match=message):
        mini.imported(tmp_path, mini.tables(), schema)


def test_a_pointer_must_lead_to_a_text_of_the_same_member(tmp_path):
    tables = mini.tables()
    events = tables["events.parquet"]
    events["text"] = [f"{m}.0" for m in events["sender"]]
    events["text"][0] = "no such"
    events["text"][1] = "m0.1" if events["sender"][1] != "m0" else "m1.1"
    schema = mini.schema(events=(mini.events_source(sender_text="text"),))
    with pytest.raises(InputProblemsError) as error:
        mini.imported(tmp_path, tables, schema)
    assert [p.kind for p in error.value.problems] == [
        "dangling text pointer",
        "foreign text pointer",
    ]


def test_removal_before_creation_is_a_problem(tmp_path):
    tables = mini.tables()
    times = tables["save.parquet"]["t"]
    tables["save.parquet"]["gone"] = [None, times[1] - 1, times[2]] + [None] * (len(times) - 3)
    schema = mini.schema()
    save = dataclasses.replace(schema.edges[1], removed_time="gone")
    message = r"removed before created in save.parquet:gone: 1 rows, first row 2"
    with pytest.raises(InputProblemsError, match=message):
        mini.imported(tmp_path, tables, dataclasses.replace(schema, edges=(schema.edges[0], save)))


def test_fix_removes_exact_copies_and_blanks_and_counts_them(tmp_path):
    tables = mini.tables()
    tables["save.parquet"]["sender"][0] += "  "
    PROBLEMS["duplicate event"][0](tables)
    _copy_row("job.parquet", 3)(tables)
    out, meta = mini.imported(tmp_path, tables, mini.schema(), fix=True)
    assert meta.import_report["fixed"] == {
        "exact copies of rows in job.parquet": 1,
        "exact copies of rows in events.parquet": 1,
        "blanks around values in save.parquet:sender": 1,
    }
    clean = tmp_path / "clean"
    clean.mkdir()
    expected, _ = mini.imported(clean, mini.tables(), mini.schema())
    for path in sorted(expected.rglob("*.parquet")):
        assert pq.read_table(out / path.relative_to(expected)).equals(pq.read_table(path)), path


@pytest.mark.parametrize("name", ["duplicate id", "duplicate text", "dangling sender", "null id"])
def test_fix_never_guesses(name, tmp_path):
    tables = mini.tables()
    PROBLEMS[name][0](tables)
    with pytest.raises(InputProblemsError):
        mini.imported(tmp_path, tables, mini.schema(), fix=True)


def test_csv_says_the_same_as_parquet(tmp_path):
    tables = mini.tables()
    expected, _ = mini.imported(tmp_path / "parquet", tables, mini.schema())
    renamed = {name.replace(".parquet", ".csv"): table for name, table in tables.items()}
    schema = mini.schema()
    as_csv = {
        part: tuple(
            dataclasses.replace(source, file=source.file.replace(".parquet", ".csv"))
            for source in getattr(schema, part)
        )
        for part in ("nodes", "edges", "texts", "events")
    }
    out, _ = mini.imported(tmp_path / "csv", renamed, dataclasses.replace(schema, **as_csv))
    for path in sorted(expected.rglob("*.parquet")):
        assert pq.read_table(out / path.relative_to(expected)).equals(pq.read_table(path)), path
