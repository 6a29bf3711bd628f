import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from star_jax.pipeline.sender_ranking import sender_ranking
from star_jax.pipeline.tables.read import read_edges, read_meta, read_pairs
from star_jax.shapes import NO_TIME
from tests.jobs.fake_run import TASK, make_run


@pytest.fixture
def tables(tmp_path):
    make_run(tmp_path)
    return tmp_path / "tables"


def asked_of(tables, split="test", most_pairs=1 << 20, meta=None):
    pairs = read_pairs(tables, TASK, split)
    found = sender_ranking(tables, meta or read_meta(tables), TASK, split, pairs, most_pairs)
    assert found is not None
    return found


def rewrite(path, **columns):
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path)


def test_metrics_are_those_of_lists_that_are_sorted_one_by_one(tables):
    edges = read_edges(tables, f"member__{TASK}__job")
    asked, pairs = asked_of(tables), read_pairs(tables, TASK, "test")
    visible = edges.split < 3
    seen = [*zip(edges.sender[visible], edges.receiver[visible], strict=True)]
    known = {s: sum(s == other for other, _ in seen) for s, _ in seen}
    assert max(known.values()) > min(known.values())  # So that activity changes the order.
    assert asked.asked.sender.tolist() == sorted(known)
    positive = pairs.label == 1
    positives = [*zip(pairs.sender[positive], pairs.receiver[positive], strict=True)]
    receivers = sorted({r for s, r in positives if s in known})
    assert asked.asked.candidates.tolist() == receivers
    scores = np.random.default_rng(0).standard_normal((len(known), len(receivers)))
    found = asked.metrics(scores)
    for name, weight in (("", 0.0), ("active_", 1.0)):
        recalls = []
        for column, receiver in enumerate(receivers):
            wanted = {s for s, r in positives if r == receiver and s in known}
            before = {s for s, r in seen if r == receiver} - wanted
            total = {
                s: scores[row, column] + weight * np.log(known[s])
                for row, s in enumerate(sorted(known))
                if s not in before
            }
            first = sorted(total, key=lambda s: -total[s])[:10]
            recalls.append(len(wanted & {*first}) / len(wanted))
        assert found[f"{name}sender_recall@10"] == pytest.approx(np.mean(recalls), abs=1e-12)
    assert found["active_sender_recall@10"] != found["sender_recall@10"]


def test_recent_links_count_more_and_the_order_of_time_alone_decides(tables):
    edges, meta = read_edges(tables, f"member__{TASK}__job"), read_meta(tables)
    without = asked_of(tables)
    np.testing.assert_array_equal(without.recent_activity, without.activity)  # Without times.
    time = np.random.default_rng(3).permutation(len(edges.sender)) ** 3
    rewrite(tables / "edges" / f"member__{TASK}__job.parquet", t=time)
    visible = np.flatnonzero(edges.split < 3)
    expected = dict.fromkeys(without.asked.sender.tolist(), 0.0)
    for row in visible:
        since = np.mean(time[visible] > time[row])
        expected[int(edges.sender[row])] += np.exp(-since / 0.1)
    found = asked_of(tables, meta=meta)
    np.testing.assert_allclose(found.recent_activity, [*expected.values()])


def test_weights_are_found_again_from_choices_that_followed_them(tables):
    asked = asked_of(tables)
    rng = np.random.default_rng(0)
    num, senders = 3000, asked.asked.sender
    scores = rng.normal(size=(len(senders), num))
    recent = rng.uniform(0.1, 3.0, len(senders))
    utility = 1.4 * scores.T + 0.3 * np.log(asked.activity) + 0.6 * np.log(recent)
    excluded = [senders[row.argsort()[-3:]] for row in utility]  # The likeliest ones.
    for row, left_out in enumerate(excluded):
        utility[row, np.isin(senders, left_out)] = -np.inf
    picked = (utility + rng.gumbel(size=utility.shape)).argmax(axis=1)
    asked = asked._replace(
        recent_activity=recent, relevant=[senders[[each]] for each in picked], excluded=excluded
    )
    found = asked.fit(scores.astype(np.float32))
    np.testing.assert_allclose(found, (1.4, 0.3, 0.6), atol=0.1)
    unaware = asked._replace(excluded=[senders[:0]] * num).fit(scores)
    assert unaware.score < 1.0


def test_a_sender_is_seen_as_the_split_begins_or_after_its_last_visible_link(tables):
    edges, meta = read_edges(tables, f"member__{TASK}__job"), read_meta(tables)
    # Members from 10 on count time from 1000, as another site would.
    base = np.where(edges.sender >= 10, 1000, 0)
    rewrite(tables / "edges" / f"member__{TASK}__job.parquet", t=base + 10 * edges.split)
    pairs = read_pairs(tables, TASK, "test")
    time = np.where(pairs.sender >= 10, 1000, 0) + 30
    rewrite(tables / "pairs" / TASK / "test.parquet", t=time)
    texts = [  # Of every member one at the time of the last visible link, and one of the split.
        (m, base + t) for m in range(90) for base in [1000 * (m >= 10)] for t in (0, 20, 30)
    ]
    columns = {
        "text_id": np.arange(len(texts), dtype=np.int32),
        "entity": np.asarray([m for m, _ in texts], np.int32),
        "t": [t for _, t in texts],
        "kind": ["resume" if t % 1000 == 20 and m == 12 else "profile" for m, t in texts],
        "text": ["said"] * len(texts),
    }
    pq.write_table(pa.table(columns), tables / "texts" / "member.parquet")
    asked = asked_of(tables, meta=meta).asked
    when = dict(zip(asked.sender.tolist(), asked.t.tolist(), strict=True))
    assert (when[2], when[10], when[11]) == (30, 1021, 1021)
    shown = dict(zip(asked.sender.tolist(), asked.sender_text.tolist(), strict=True))
    assert [texts[shown[m]] for m in (2, 10, 12)] == [(2, 20), (10, 1020), (12, 1000)]
    resumes = dict(zip(asked.sender.tolist(), asked.sender_resume.tolist(), strict=True))
    assert texts[resumes[12]] == (12, 1020)
    assert resumes[10] == -1


def test_without_times_the_first_text_counts(tables):
    asked = asked_of(tables).asked
    assert (asked.t == NO_TIME).all()
    assert asked.sender_text.tolist() == asked.sender.tolist()  # Each member has one text.


def test_of_many_receivers_some_are_asked_about_and_of_too_many_senders_none(tables):
    whole = asked_of(tables)
    num_senders, num_receivers = len(whole.asked.sender), len(whole.asked.candidates)
    some = asked_of(tables, most_pairs=5 * num_senders + 1)
    assert len(some.asked.candidates) == 5
    places = np.searchsorted(whole.asked.candidates, some.asked.candidates)
    assert places.tolist() == np.linspace(0, num_receivers - 1, 5).astype(int).tolist()
    for place, wanted, left_out in zip(places, some.relevant, some.excluded, strict=True):
        assert wanted.tolist() == whole.relevant[place].tolist()
        assert left_out.tolist() == whole.excluded[place].tolist()
    meta, pairs = read_meta(tables), read_pairs(tables, TASK, "test")
    assert sender_ranking(tables, meta, TASK, "test", pairs, num_senders - 1) is None


def test_val_knows_the_senders_of_train_alone(tables):
    edges, pairs = read_edges(tables, f"member__{TASK}__job"), read_pairs(tables, TASK, "val")
    known = set(edges.sender[edges.split == 1].tolist())
    found = asked_of(tables, "val")
    assert set(found.asked.sender.tolist()) == known
    positive = pairs.label == 1
    links = [*zip(pairs.sender[positive].tolist(), pairs.receiver[positive].tolist(), strict=True)]
    assert any(sender not in known for sender, _ in links)
    wanted = {receiver: set() for sender, receiver in links if sender in known}
    for sender, receiver in links:
        if sender in known:
            wanted[receiver].add(sender)
    assert found.asked.candidates.tolist() == sorted(wanted)
    for receiver, relevant in zip(found.asked.candidates.tolist(), found.relevant, strict=True):
        assert set(relevant.tolist()) == wanted[receiver]
