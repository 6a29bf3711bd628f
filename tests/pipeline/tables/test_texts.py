"""The text that held at a time: pointers first, else the last version strictly before."""

import dataclasses

import numpy as np
import pytest

from star_jax.pipeline.tables import read
from star_jax.pipeline.tables.texts import Versions, text_as_of
from star_jax.shapes import NO_TIME
from tests.pipeline.tables import mini


def test_as_of_equals_the_definition():
    rng = np.random.default_rng(0)
    entity = np.sort(rng.integers(0, 6, 40))
    t = rng.integers(0, 12, 40)
    t[rng.random(40) < 0.2] = NO_TIME
    order = np.lexsort((t, entity))
    known = Versions(
        entity[order].astype(np.int64), t[order].astype(np.int64), np.arange(40, dtype=np.int32)
    )
    who = rng.integers(0, 8, 200).astype(np.int64)
    when = rng.integers(-1, 14, 200).astype(np.int64)
    when[:20] = NO_TIME
    expected = []
    for e, at in zip(who, when, strict=True):
        rows = [i for i in range(40) if known.entity[i] == e]
        if at == NO_TIME:
            expected.append(rows[0] if rows else -1)
        else:
            expected.append(max((i for i in rows if known.t[i] < at), default=-1))
    assert text_as_of(known, who, when).tolist() == expected


def _texts(out, node_type):
    texts = read.read_texts(out, node_type)
    assert texts.text_id.tolist() == list(range(len(texts.text)))
    return texts


def test_pairs_get_the_last_version_before_their_time(tmp_path):
    tables = mini.tables()
    out, _ = mini.imported(tmp_path, tables, mini.schema())
    members, jobs = _texts(out, "member"), _texts(out, "job")
    raw = tables["texts_member.parquet"]
    late = mini.START + 70 * mini.DAY
    for split in read.SPLITS:
        pairs = read.read_pairs(out, "apply", split)
        for row in range(len(pairs.t)):
            t, s, r = pairs.t[row], int(pairs.sender[row]), int(pairs.receiver[row])
            version = [k for k, at in enumerate(raw["t"][:3]) if at < t][-1]
            assert members.text[pairs.sender_text[row]] == f"profile {version} of m{s}"
            edited = ", edited" if r < 6 and late < t else ""
            assert jobs.text[pairs.receiver_text[row]] == f"posting of j{r}{edited}"
            resume = pairs.sender_resume[row]
            place = s // 2
            at = tables["resume.parquet"]["t"][place] if s % 2 == 0 else None
            if s % 2 == 0 and (at is None or at < t):
                assert members.text[resume] == f"resume of m{s}"
                assert members.kind[resume] == "resume"
            else:
                assert resume == -1


def test_a_pointer_wins_over_the_time(tmp_path):
    tables = mini.tables()
    events = tables["events.parquet"]
    # Version 2 is later than many events; "-1" says that there was none; null says nothing.
    pointers = [(f"{m}.2", "-1", None)[n % 3] for n, m in enumerate(events["sender"])]
    events["text"] = pointers
    schema = mini.schema(events=(mini.events_source(sender_text="text"),))
    out, _ = mini.imported(tmp_path, tables, schema)
    texts = _texts(out, "member")
    given = {
        (int(s[1:]), int(r[1:])): p
        for s, r, p in zip(events["sender"], events["receiver"], pointers, strict=True)
    }
    pairs = read.read_pairs(out, "apply", "train")
    assert not np.any(pairs.t > mini.START + 75 * mini.DAY)
    leader = pairs.receiver[np.flatnonzero(pairs.label == 1)[pairs.group]]
    for row in range(len(pairs.t)):
        member = int(pairs.sender[row])
        pointer = given[member, int(leader[row])]
        if pointer == "-1":
            assert pairs.sender_text[row] == -1
        else:
            text = texts.text[pairs.sender_text[row]]
            late = pairs.t[row] > mini.START + 30 * mini.DAY
            assert text == f"profile {2 if pointer else int(late)} of m{member}"


def test_allowed_empty_texts_count_as_none(tmp_path):
    tables = mini.tables()
    raw = tables["texts_member.parquet"]
    raw["text"][1] = ""  # m0 cleared its profile after 30 days.
    schema = mini.schema(allowed=("empty text",))
    out, meta = mini.imported(tmp_path, tables, schema)
    assert meta.import_report["allowed"] == {"empty text in texts_member.parquet:text": 1}
    assert "" not in _texts(out, "member").text
    texts = _texts(out, "member")
    for split in read.SPLITS:
        pairs = read.read_pairs(out, "apply", split)
        for row in np.flatnonzero(pairs.sender == 0):
            days = (pairs.t[row] - mini.START) / mini.DAY
            if days <= 30:
                assert texts.text[pairs.sender_text[row]] == "profile 0 of m0"
            elif days <= 75:
                assert pairs.sender_text[row] == -1
            else:
                assert texts.text[pairs.sender_text[row]] == "profile 2 of m0"


def test_a_postings_first_text_is_there_at_its_first_event(tmp_path):
    tables = mini.tables()
    events = tables["events.parquet"]
    first = {}
    for row, (job, t) in enumerate(zip(events["receiver"], events["time"], strict=True)):
        if t < first.get(job, (1 << 60, 0))[0]:
            first[job] = (t, row)
    for job, (t, _) in first.items():
        place = int(job[1:])
        tables["job.parquet"]["t"][place] = t
        tables["texts_job.parquet"]["t"][place] = t
    tables["job_skill.parquet"]["t"] = [t for t in tables["job.parquet"]["t"] for _ in range(2)]
    out, _ = mini.imported(tmp_path, tables, mini.schema())
    for split in read.SPLITS:
        assert np.all(read.read_pairs(out, "apply", split).receiver_text >= 0)


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("Nurse", "Nurse in Bonn.", "Nurse in Bonn."),
        ("Nurse", "Works in Bonn.", "Nurse. Works in Bonn."),
        ("Nurse", None, "Nurse"),
        (None, "Works in Bonn.", "Works in Bonn."),
        ("看護師", "東京で働く", "看護師. 東京で働く"),
    ],
)
def test_titles_come_first_unless_the_text_begins_with_them(title, text, expected, tmp_path):
    tables = mini.tables()
    tables["texts_job.parquet"]["title"] = ["x"] * 30
    tables["texts_job.parquet"]["title"][0] = title
    tables["texts_job.parquet"]["text"][0] = text
    schema = mini.schema()
    job = dataclasses.replace(schema.texts[0], title="title")
    schema = dataclasses.replace(schema, texts=(job, *schema.texts[1:]))
    out, _ = mini.imported(tmp_path, tables, schema)
    assert expected in _texts(out, "job").text
