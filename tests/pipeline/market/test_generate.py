"""The tables of a market."""

import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from star_jax.pipeline.market.fields import FIELDS
from star_jax.pipeline.market.generate import generate
from star_jax.pipeline.market.places import CITIES
from star_jax.pipeline.market.size import MarketConfig
from star_jax.pipeline.market.world import TEST_FROM, VAL_FROM

# Tables 10 and 11 of the paper: millions of edges, and of the node type they are counted per.
EDGES_PER_MEMBER = {
    "edges/job__has__title": 417,
    "edges/job__at__company": 370,
    "edges/job__has__position": 358,
    "edges/job__needs__skill": 3977,
    "edges/member__has__title": 568,
    "edges/member__at__company": 462,
    "edges/member__current__position": 553,
    "edges/member__past__position": 15,
    "edges/member__has__skill": 1247,
    "edges/member__positive__recruiter": 171,
    "edges/recruiter__contact__member": 92,
    "events/inmail": 582,
}
NODES = {"member": 376, "job": 240, "position": 121, "company": 19, "hire_project": 6}


@pytest.fixture(scope="module")
def tiny():
    return generate(MarketConfig(size="tiny"))


@pytest.fixture(scope="module")
def small():
    return generate(MarketConfig(size="small"))


def _bytes(market):
    found = {}
    for name, table in market.tables.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        found[name] = sink.getvalue().to_pybytes()
    return found


def _column(table, name):
    return table[name].to_numpy(zero_copy_only=False)


def _auc(pairs, kind, scores):
    """By definition: how often a positive is above a negative."""
    label = _column(pairs, "label") == 1
    of_kind = _column(pairs, "negative") == kind
    gap = scores[label][:, None] - scores[of_kind][None, :]
    return (gap > 0).mean() + (gap == 0).mean() / 2


def test_same_seed_same_bytes(tiny):
    assert _bytes(generate(MarketConfig(size="tiny"))) == _bytes(tiny)
    assert generate(MarketConfig(size="tiny")).facts == tiny.facts


def test_another_seed_is_another_market(tiny):
    other = _bytes(generate(MarketConfig(size="tiny", seed=1)))
    same = {name for name, content in _bytes(tiny).items() if content == other[name]}
    # Names and numbering are no chance.
    assert same <= {
        f"nodes/{kind}" for kind in ("position", "hire_project", "recruiter", "skill", "title")
    }


def test_degree_ratios_are_the_papers(small):
    members = small.tables["nodes/member"].num_rows
    for name, millions in EDGES_PER_MEMBER.items():
        got = small.tables[name].num_rows / members
        assert got == pytest.approx(millions / 376, rel=0.05), name
    actions = Counter(small.tables["events/job"]["action"].to_pylist())
    for names, millions in ((["APPLY", "APPLY_CONTACTED"], 2722), (["SAVE"], 724)):
        got = sum(actions[name] for name in names) / members
        assert got == pytest.approx(millions / 376, rel=0.05), names
    for kind, millions in NODES.items():
        assert kind not in small.facts["floored"]
        got = small.tables[f"nodes/{kind}"].num_rows / members
        assert got == pytest.approx(millions / 376, rel=0.05), kind


def test_every_action_occurs(tiny):
    assert set(tiny.tables["events/job"]["action"].to_pylist()) == {
        "APPLY", "APPLY_CONTACTED", "SAVE", "SKIP", "DISMISS",
    }  # fmt: skip
    assert set(tiny.tables["events/inmail"]["action"].to_pylist()) == {
        "INMAIL_SENT", "INMAIL_REPLIED",
    }  # fmt: skip


def test_a_few_skills_are_hubs(small):
    skills = _column(small.tables["edges/job__needs__skill"], "receiver")
    degree = np.sort(np.unique(skills, return_counts=True)[1])[::-1]
    assert degree[0] > 5 * np.median(degree)
    assert degree[0] > 0.5 * small.tables["nodes/job"].num_rows


def test_the_stored_optimum_is_the_auc_of_the_true_logit(tiny):
    for task, kinds in (
        ("apply", ("uniform", "popular", "near")),
        ("contact", ("impressed",)),
        ("reply", ("impressed",)),
    ):
        pairs = tiny.tables[f"pairs/{task}_test"]
        for kind in kinds:
            got = tiny.facts["optimum"][task]["test"][f"auc_{kind}"]
            assert got == pytest.approx(_auc(pairs, kind, _column(pairs, "true_logit")), abs=1e-4)


def test_the_quickstart_is_hard_enough_and_can_be_solved(small):
    pairs = small.tables["pairs/apply_test"]
    assert small.facts["optimum"]["apply"]["test"]["auc_uniform"] >= 0.85
    events = small.tables["events/job"]
    seen = (_column(events, "time") < TEST_FROM) & np.isin(
        _column(events, "action"), ["APPLY", "APPLY_CONTACTED"]
    )
    jobs, counts = np.unique(_column(events, "receiver")[seen], return_counts=True)
    popularity = dict(zip(jobs, counts, strict=True))
    scores = np.array([popularity.get(job, 0) for job in _column(pairs, "receiver")])
    assert _auc(pairs, "uniform", scores) <= 0.55
    assert {"", "structure", "text"} == set(pairs["slice"].to_pylist())


def test_opted_out_members_exist_and_have_no_pairs(tiny):
    out = {m["id"] for m in tiny.tables["nodes/member"].to_pylist() if not m["consent"]}
    assert len(out) == 6
    assert all(len(member) == 32 for member in out)
    for name in ("events/job", "texts/profile", "edges/member__has__skill"):
        key = "entity" if name.startswith("texts") else "sender"
        assert out & set(tiny.tables[name][key].to_pylist()), name
    for name, table in tiny.tables.items():
        if name.startswith(("pairs/", "rank/")):
            for end in {"sender", "receiver"} & set(table.column_names):
                assert not out & set(table[end].to_pylist()), name


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_negatives_could_have_been_positives(tiny, split):
    pairs, jobs = tiny.tables[f"pairs/apply_{split}"].to_pylist(), tiny.tables["nodes/job"]
    posted = dict(zip(jobs["id"].to_pylist(), jobs["t"].to_pylist(), strict=True))
    events = tiny.tables["events/job"].to_pylist()
    applied = {(e["sender"], e["receiver"]) for e in events if e["action"].startswith("APPLY")}
    first_seen = {}
    for event in events:
        first_seen.setdefault((event["sender"], event["receiver"]), event["time"])
    pool = {pair["receiver"] for pair in pairs if pair["label"]}
    low, high = {"train": (0, VAL_FROM), "val": (VAL_FROM, TEST_FROM), "test": (TEST_FROM, 2**62)}[
        split
    ]
    positive = {}
    for pair in pairs:
        ends = pair["sender"], pair["receiver"]
        assert low <= pair["time"] < high
        assert posted[pair["receiver"]] < pair["time"]
        if pair["label"]:
            positive = pair
            assert ends in applied
            continue
        assert (pair["sender"], pair["time"]) == (positive["sender"], positive["time"])
        assert ends not in applied
        assert pair["receiver"] in pool
        assert first_seen.get(ends, pair["time"] + 1) > pair["time"]


def test_queries_ask_for_jobs_of_members_who_applied_before(tiny):
    events = [e for e in tiny.tables["events/job"].to_pylist() if e["action"].startswith("APPLY")]
    earlier = {e["sender"] for e in events if e["time"] < TEST_FROM}
    later = {(e["sender"], e["receiver"]) for e in events if e["time"] >= TEST_FROM}
    candidates = set(tiny.tables["rank/candidates_test"]["receiver"].to_pylist())
    queries = tiny.tables["rank/test"].to_pylist()
    assert queries
    for query in queries:
        assert query["sender"] in earlier
        assert (query["sender"], query["receiver"]) in later
        assert query["receiver"] in candidates


def test_careers_are_in_order(small):
    joined = {row["id"]: row["t"] for row in small.tables["nodes/member"].to_pylist()}
    current = small.tables["edges/member__current__position"].to_pylist()
    ended = {(e["sender"], e["receiver"]): e["removed_t"] for e in current if e["removed_t"]}
    past = small.tables["edges/member__past__position"].to_pylist()
    assert {(e["sender"], e["receiver"]): e["t"] for e in past} == ended
    assert all(e["t"] >= joined[e["sender"]] for e in current)
    assert all(end > joined[member] for (member, _), end in ended.items())
    movers = {member for member, _ in ended}
    began = {(e["sender"], e["t"]) for e in current}
    assert all((e["sender"], e["t"]) in began for e in past)  # A new one began that day.
    assert movers


def test_future_edits_do_not_change_earlier_texts(tiny):
    never = generate(MarketConfig(size="tiny", edit_share=0.0))
    often = generate(MarketConfig(size="tiny", edit_share=0.9))
    for kind in ("profile", "resume", "job"):
        first = never.tables[f"texts/{kind}"].to_pylist()
        edited = often.tables[f"texts/{kind}"].to_pylist()
        assert len(edited) > 1.1 * len(first)
        assert [row for row in edited if row in first] == first
        known = {row["entity"]: row["t"] for row in first}
        assert all(row["t"] > known[row["entity"]] for row in edited if row not in first)


@pytest.mark.parametrize("words", [20, 45, 300])
def test_texts_have_the_asked_length(words):
    market = generate(MarketConfig(size=100, text_words=words))
    for kind in ("profile", "resume", "job"):
        length = [len(text.split()) for text in market.tables[f"texts/{kind}"]["text"].to_pylist()]
        assert max(length) <= words
        assert min(length) > words - 15


def test_texts_speak_of_work_and_never_of_companies(small):
    companies = set(small.tables["nodes/company"]["name"].to_pylist())
    wordings = {w for field in FIELDS for group in field.titles for w in group}
    titles = re.compile("|".join(wordings), re.IGNORECASE)
    for kind in ("profile", "resume", "job"):
        texts = small.tables[f"texts/{kind}"]["text"].to_pylist()
        assert not any(company in " ".join(texts) for company in companies)
        says = np.mean([titles.search(text) is not None for text in texts])
        # Members whose texts say nothing are 12 of 100.
        expected = 1.0 if kind == "job" else 0.88
        assert says == pytest.approx(expected, abs=0.03)


def test_text_slice_members_have_no_attributes_and_structure_members_do(small):
    places = re.compile("|".join(w for _, wordings in CITIES for w in wordings), re.IGNORECASE)
    pairs = small.tables["pairs/apply_test"].to_pylist()
    for name, has_edges in (("structure", True), ("text", False)):
        members = {pair["sender"] for pair in pairs if pair["slice"] == name}
        assert members
        for table in ("has__skill", "has__title", "at__company", "current__position"):
            senders = set(small.tables[f"edges/member__{table}"]["sender"].to_pylist())
            assert (members <= senders) if has_edges else not (members & senders)
        profiles = small.tables["texts/profile"].to_pylist()
        mine = [row["text"] for row in profiles if row["entity"] in members]
        assert {places.search(text) is not None for text in mine} == {name == "text"}
