"""The streamed market: the same whoever draws it, and the truth is that of the small one."""

import dataclasses

import numpy as np
import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.table import open_vectors, read_rows
from star_jax.evaluation.auc import roc_auc
from star_jax.pipeline.market.scale import visits as visits_module
from star_jax.pipeline.market.scale.calendar import JobCalendar
from star_jax.pipeline.market.scale.draw import draw_large_market
from star_jax.pipeline.market.scale.latents import MOVES_EVERY, Latents
from star_jax.pipeline.market.scale.size import LargeMarketConfig, nodes_of
from star_jax.pipeline.market.scale.visits import Visits
from star_jax.pipeline.market.size import EDGE_MILLIONS
from star_jax.pipeline.market.truth import true_logit
from star_jax.pipeline.market.world import DAY_S, START, STRUCTURE, TEXT
from star_jax.pipeline.tables.read import read_edges, read_meta, read_pairs, read_texts

CONFIG = LargeMarketConfig(
    num_members=1500, block_nodes=600, text_size=64, num_pairs=4000, num_processes=1
)
INDEX = np.arange(CONFIG.num_members)
SHOWN = ("member__apply__job", "member__save__job", "recruiter__contact__member")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """By one process, in one go."""
    workdir = tmp_path_factory.mktemp("drawn")
    draw_large_market(CONFIG, workdir)
    return workdir


@pytest.fixture(scope="module")
def latents():
    return Latents(CONFIG.seed, nodes_of(CONFIG))


@pytest.fixture(scope="module")
def visits(latents):
    return Visits(CONFIG.seed, latents)


def digests(workdir):
    return [artefacts.digest(workdir / name) for name in ("tables", "text_embeddings")]


def test_any_number_of_processes_draws_the_same(drawn, tmp_path):
    shard = dataclasses.replace(CONFIG, num_shards=3)
    draw_large_market(dataclasses.replace(shard, shard=2), tmp_path)
    (parts,) = (tmp_path / ".market").iterdir()
    begun = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert 0 < len(begun) < 10
    assert not (tmp_path / "tables").exists()
    draw_large_market(dataclasses.replace(shard, shard=0), tmp_path)
    assert {name: (parts / name).stat().st_mtime_ns for name in begun} == begun
    draw_large_market(dataclasses.replace(CONFIG, num_processes=2), tmp_path)
    assert digests(tmp_path) == digests(drawn)
    assert not (tmp_path / ".market").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"block_nodes": 0}, "block_nodes 0, needed 1 or more"),
        ({"num_members": 999}, r"num_members 999, needed 1000 to 2\^31 - 1"),
        ({"seed": -1}, "seed -1, needed 0 or more"),
        ({"shard": 3, "num_shards": 3}, "shard 3, needed 0 to 2"),
    ],
)
def test_markets_that_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        LargeMarketConfig(**given)


def test_a_calendar_needs_jobs_for_every_day():
    with pytest.raises(InputError, match="has 500 jobs, needed 538, two for every day"):
        JobCalendar(500)


def test_an_entity_is_what_it_is_whoever_else_is_drawn(latents):
    few = np.array([7, 1499, 20])
    for every, some in (
        (latents.members(INDEX), latents.members(few)),
        (latents.offers("job", np.arange(900)), latents.offers("job", few % 900)),
    ):
        rows = few if len(every.field) == len(INDEX) else few % 900
        for column, same in zip(every, some, strict=True):
            np.testing.assert_array_equal(column[rows], same)
    other = Latents(CONFIG.seed + 1, nodes_of(CONFIG)).members(INDEX)
    assert (other.field != latents.members(INDEX).field).mean() > 0.5


def test_open_jobs_are_drawn_evenly():
    calendar = JobCalendar(269 * 7)
    first, last = calendar.days(np.arange(269 * 7))
    assert (first[0], first[-1]) == (-30, 238)
    u = np.random.default_rng(0).random((2, 400_000))
    for day in (0, 100, 239):
        drawn = calendar.open_on(np.full(u.shape[1], day), *u)
        is_open = (first <= day) & (day <= last)
        assert is_open[drawn].all()
        counts = np.bincount(drawn, minlength=len(first))[is_open]
        assert counts.min() > 0
        age = np.minimum(day - first[is_open], 60)  # Their sizes are whole: even on the whole.
        by_age = np.bincount(age, counts) / np.maximum(np.bincount(age), 1)
        np.testing.assert_allclose(by_age[np.bincount(age) > 4].mean(), counts.mean(), rtol=0.1)


def test_the_planted_logit_decides_who_applies(latents, visits):
    members = latents.members(INDEX)
    shown = [visits_module._Shown(*each) for each in visits._shown(INDEX, members)]
    row, job, time, draw = (np.concatenate([part[i] for part in shown]) for i in range(4))
    logit = true_logit(visits.apply, members, row, time, latents.job_offers, job)
    probability = 1 / (1 + np.exp(-logit))
    applications, _ = visits.act(INDEX, members)
    pair = row * 10**6 + job  # Of those shown twice the first application is kept.
    found = applications.member * 10**6 + applications.job
    earliest = {}
    for at in np.flatnonzero(draw < probability).tolist():
        earliest[pair[at]] = min(time[at], earliest.get(pair[at], time[at]))
    assert earliest == dict(zip(found, applications.time - 10, strict=True))
    applied = np.isin(pair, found)
    _, place, times = np.unique(pair, return_inverse=True, return_counts=True)
    once = np.flatnonzero(times[place] == 1)
    order = once[np.argsort(probability[once])]
    for part in np.array_split(order, 10):
        expected, variance = probability[part].sum(), (probability * (1 - probability))[part].sum()
        assert abs(applied[part].sum() - expected) < 4 * variance**0.5 + 1
    first, last = latents.calendar.days(applications.job)
    day = (applications.time - START) // DAY_S
    assert ((first <= day) & (day <= last)).all()
    at = applications.row
    assert ((members.first_day[at] <= day) & (day < members.last_day[at])).all()
    np.testing.assert_allclose(
        applications.logit,
        true_logit(
            visits.apply, members, at, applications.time, latents.job_offers, applications.job
        ),
    )


def test_counts_are_those_of_the_paper(drawn):
    meta = read_meta(drawn / "tables")
    for edge in meta.edge_types:
        wanted = EDGE_MILLIONS[edge.name] * CONFIG.num_members / 376
        noise = wanted**-0.5
        # In a market as small as this one many who are shown a job have seen it before.
        least = -0.25 if edge.name in SHOWN else -0.07 - noise
        assert least < edge.count / wanted - 1 < 0.05 + 3 * noise, edge.name
        edges = read_edges(drawn / "tables", edge.name)
        assert len(edges.sender) == edge.count
        for ends, node_type in ((edges.sender, edge.sender), (edges.receiver, edge.receiver)):
            assert ends.min() >= 0
            assert ends.max() < meta.node_types[node_type].count
        assert (edges.split > 0).all() == edge.has_split
        pairs = np.stack([edges.sender, edges.receiver], 1)
        if edge.name != "member__positive__recruiter" and edge.kind == "attribute":
            assert len(np.unique(pairs, axis=0)) == len(pairs), edge.name


def test_pairs_are_what_scoring_expects(drawn, latents, visits):
    tables, members = drawn / "tables", latents.members(INDEX)
    edges = read_edges(tables, "member__apply__job")
    applied = set(zip(edges.sender.tolist(), edges.receiver.tolist(), strict=True))
    texts = read_texts(tables, "member")
    for split, code in (("train", 1), ("val", 2), ("test", 3)):
        pairs = read_pairs(tables, "apply", split)
        assert (np.diff(pairs.t[::2]) >= 0).all()
        np.testing.assert_array_equal(pairs.group, np.repeat(np.arange(len(pairs.t) // 2), 2))
        met = [(s, r) in applied for s, r in zip(pairs.sender, pairs.receiver, strict=True)]
        np.testing.assert_array_equal(met, pairs.label == 1)
        known = (edges.split >= 1) & (edges.split < max(code, 2))
        for warm, end, ends in (
            (pairs.warm_sender, pairs.sender, edges.sender[known]),
            (pairs.warm_receiver, pairs.receiver, edges.receiver[known]),
        ):
            np.testing.assert_array_equal(warm, np.isin(end, ends))
        when = edges.t[edges.split == code]
        assert when.min() <= pairs.t.min() <= pairs.t.max() <= when.max()
        np.testing.assert_array_equal(texts.entity[pairs.sender_text], pairs.sender)
        assert (pairs.sender_text >= CONFIG.num_members).any()
        assert (texts.t[pairs.sender_text] < pairs.t).all()
        logit = true_logit(
            visits.apply, members, pairs.sender, pairs.t, latents.job_offers, pairs.receiver
        )
        np.testing.assert_allclose(pairs.true_logit, logit, rtol=1e-5)
        # That of the market in memory, whose optimum data/star_market/README.md has.
        assert abs(roc_auc(pairs.label == 1, pairs.true_logit) - 0.94) < 0.03


def test_text_vectors_tell_what_texts_would(drawn, latents):
    texts = read_texts(drawn / "tables", "member")
    rows = read_rows(drawn / "text_embeddings", "member")
    vectors = open_vectors(drawn / "text_embeddings", "member")
    np.testing.assert_array_equal(rows.entity, texts.entity)
    np.testing.assert_array_equal(rows.t, texts.t)
    found, members = vectors[np.arange(len(rows.entity))], latents.members(INDEX)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=0.05)
    assert len(found) == len(INDEX) + (INDEX % MOVES_EVERY == 0).sum()
    own = found[: len(INDEX)]
    for told, known in ((members.field, True), (members.culture, False)):
        plain = (members.speaks != STRUCTURE) & (INDEX < 1000)
        kinds = np.unique(told)
        means = np.stack([own[plain & (told == kind)].mean(0) for kind in kinds])
        asked = INDEX >= 1000
        right = kinds[np.argmax(own[asked] @ means.T, axis=1)] == told[asked]
        speaks = members.speaks[asked]
        if known:
            assert right[speaks == TEXT].mean() > 0.8
            assert right[speaks == STRUCTURE].mean() < 0.3
        else:
            assert right.mean() < 0.5
    late = latents.nodes["member"] + np.arange(len(found) - len(INDEX))
    assert (rows.t[late] > members.joined[rows.entity[late]]).all()
