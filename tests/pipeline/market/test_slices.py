"""Who says more about the members of a slice: two readers, of texts alone and of edges alone.

The readers know what every word and every other node stands for, and use no planted logit: what
one of them cannot tell apart, no model can learn from its half of the tables.
"""

import re
from collections import defaultdict

import numpy as np
import pytest

from star_jax.pipeline.market.fields import FIELDS
from star_jax.pipeline.market.generate import generate
from star_jax.pipeline.market.places import CITIES
from star_jax.pipeline.market.size import MarketConfig
from star_jax.pipeline.market.world import NUM_CULTURES, TEST_FROM, make_world

CONFIG = MarketConfig(size="small")
ATTRIBUTES = ("has__skill", "has__title", "at__company", "current__position")


@pytest.fixture(scope="module")
def market():
    return generate(CONFIG)


@pytest.fixture(scope="module")
def world():
    return make_world(CONFIG)


def _auc(label, scores):
    """By definition: how often a positive is above a negative."""
    gap = scores[label][:, None] - scores[~label][None, :]
    return (gap > 0).mean() + (gap == 0).mean() / 2


def _slice(market, name):
    """Test pairs of the members of a slice: positives and uniform negatives."""
    pairs = market.tables["pairs/apply_test"].to_pylist()
    pairs = [p for p in pairs if p["slice"] == name and p["negative"] in ("", "uniform")]
    return pairs, np.array([p["label"] == 1 for p in pairs])


def _last_texts(market, kind):
    """Text per entity, the last one from before the test split."""
    last = {}
    for row in market.tables[f"texts/{kind}"].to_pylist():
        if row["t"] < TEST_FROM or row["entity"] not in last:
            last[row["entity"]] = row["text"]
    return last


def _words():
    fields = {
        wording.lower(): field
        for field, about in enumerate(FIELDS)
        for group in (*about.titles, *about.skills)
        for wording in group
    }
    cities = {w.lower(): city for city, (_, wordings) in enumerate(CITIES) for w in wordings}
    return fields, cities


def by_texts(market, pairs):
    """Shared fields of work among the words of both sides, and the same city."""
    fields, cities = _words()
    known = sorted({*fields, *cities}, key=len, reverse=True)
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, known)) + r")\b")

    def read(text):
        found = pattern.findall(text.lower())
        count = np.bincount([fields[w] for w in found if w in fields], minlength=len(FIELDS))
        city = next((cities[w] for w in found if w in cities), None)
        return count / max(np.linalg.norm(count), 1e-9), city

    members = {k: read(text) for k, text in _last_texts(market, "profile").items()}
    jobs = {k: read(text) for k, text in _last_texts(market, "job").items()}
    scores = []
    for pair in pairs:
        (mine, here), (asked, there) = members[pair["sender"]], jobs[pair["receiver"]]
        scores.append(mine @ asked + 0.05 * (here is not None and here == there))
    return np.array(scores)


def by_edges(market, world, pairs):
    """Shared fields and cultures of both sides' neighbours, as test may see them."""
    index = {
        kind: {name: i for i, name in enumerate(market.tables[f"nodes/{kind}"]["id"].to_pylist())}
        for kind in ("skill", "title", "position", "company", "job", "hire_project")
    }
    per_field = len(FIELDS[0].titles), len(FIELDS[0].skills)
    field, culture = (defaultdict(lambda n=n: np.zeros(n)) for n in (len(FIELDS), NUM_CULTURES))

    def meets(member, kind, name):
        i = index[kind][name]
        if kind == "skill":
            if i < per_field[1] * len(FIELDS):
                field[member][i // per_field[1]] += 1
            return
        if kind in ("job", "hire_project"):
            offer = world.jobs.offer if kind == "job" else world.hire_projects.offer
            field[member][offer.field[i]] += 1
            culture[member][offer.culture[i]] += 1
            return
        if kind in ("title", "position"):
            title = i if kind == "title" else world.positions.title[i]
            field[member][title // per_field[0]] += 1
        if kind in ("company", "position"):
            company = i if kind == "company" else world.positions.company[i]
            culture[member][world.companies.culture[company]] += 1

    for relation in ATTRIBUTES:
        for edge in market.tables[f"edges/member__{relation}"].to_pylist():
            meets(edge["sender"], relation.split("__")[1], edge["receiver"])
    for event in market.tables["events/job"].to_pylist():
        if event["time"] < TEST_FROM and event["action"] in ("APPLY", "APPLY_CONTACTED", "SAVE"):
            meets(event["sender"], "job", event["receiver"])
    for event in market.tables["events/inmail"].to_pylist():
        if event["time"] < TEST_FROM:
            meets(event["receiver"], "hire_project", event["sender"])
    scores = []
    for pair in pairs:
        job, member = index["job"][pair["receiver"]], pair["sender"]
        shares = [
            counts[member][asked] / max(counts[member].sum(), 1)
            for counts, asked in (
                (field, world.jobs.offer.field[job]),
                (culture, world.jobs.offer.culture[job]),
            )
        ]
        scores.append(6.0 * shares[0] + 4.0 * shares[1])
    return np.array(scores)


def test_texts_dominate_the_text_slice(market, world):
    pairs, label = _slice(market, "text")
    texts, edges = _auc(label, by_texts(market, pairs)), _auc(label, by_edges(market, world, pairs))
    assert texts >= 0.87
    assert edges <= 0.6
    assert texts <= market.facts["optimum"]["apply"]["test"]["auc_uniform_text_slice"]


def test_structure_dominates_the_structure_slice(market, world):
    pairs, label = _slice(market, "structure")
    texts, edges = _auc(label, by_texts(market, pairs)), _auc(label, by_edges(market, world, pairs))
    assert edges >= 0.85
    assert abs(texts - 0.5) < 0.03
    assert edges <= market.facts["optimum"]["apply"]["test"]["auc_uniform_structure_slice"]


def test_the_readers_help_each_other_elsewhere(market, world):
    pairs, label = _slice(market, "")
    texts, edges = by_texts(market, pairs), by_edges(market, world, pairs)
    assert 0.7 < _auc(label, texts) < 0.9
    assert _auc(label, edges) > 0.8
    assert _auc(label, 6.0 * texts + edges) > max(_auc(label, texts), _auc(label, edges))


def test_members_of_the_text_slice_come_once(market):
    pairs, _ = _slice(market, "text")
    late = {p["sender"] for p in pairs}
    events = [e for e in market.tables["events/job"].to_pylist() if e["sender"] in late]
    span = defaultdict(list)
    for event in events:
        span[event["sender"]].append(event["time"])
    assert all(max(times) - min(times) <= 14 * 86_400 for times in span.values())
    assert np.mean([e["time"] >= TEST_FROM for e in events]) > 0.7
    assert not late & set(market.tables["events/inmail"]["receiver"].to_pylist())
