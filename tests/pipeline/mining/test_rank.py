"""The candidates of every positive against a loop over all receivers by the import's own rules."""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from star_jax.pipeline.known_pairs import known_positives
from star_jax.pipeline.mining.pool import (
    Pool,
    barred,
    creation_times,
    training_pool,
)
from star_jax.pipeline.mining.rank import Ranker
from star_jax.pipeline.tables.negatives import Rules
from star_jax.pipeline.tables.read import EdgeMeta, PairTable, TablesMeta, TaskMeta, Texts
from star_jax.pipeline.tables.texts import Versions, text_as_of
from star_jax.shapes import NO_TIME
from star_jax.text.bi_encoder import build_bi_encoder, init_scorer
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.scorer import ScorerConfig
from star_jax.text.tower import TowerConfig

NUM_SENDERS, NUM_RECEIVERS, NUM_POSITIVES = 6, 19, 21
TOP = 5


class World(NamedTuple):
    pairs: PairTable
    positives: np.ndarray
    texts: Texts  # Of receivers.
    created: np.ndarray
    documents: np.ndarray  # Vectors of their texts.
    requests: np.ndarray


@pytest.fixture(scope="module")
def model():
    tower = TowerConfig(base="random")
    built = build_bi_encoder(tower, ScorerConfig(hidden=(6,)), ObjectiveConfig(), None)
    return built, {"scorer": init_scorer(built, jax.random.key(1))}


@pytest.fixture(scope="module")
def world(model):
    rng = np.random.default_rng(2)
    entity = np.sort(rng.integers(0, NUM_RECEIVERS, 40)).astype(np.int32)
    t = rng.permutation(40).astype(np.int64)
    t[::5] = NO_TIME
    by_time = np.argsort(t, kind="stable")  # Texts are numbered by time.
    texts = Texts(
        np.arange(40, dtype=np.int32),
        entity[by_time],
        t[by_time],
        ["resume" if i % 11 == 0 else "job" for i in range(40)],
        ["a"] * 40,
    )
    created = np.where(rng.random(NUM_RECEIVERS) < 0.4, rng.integers(0, 30, NUM_RECEIVERS), NO_TIME)
    width = model[0].tower.embedding_size
    vectors = rng.standard_normal((60, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[20:24] = vectors[3]  # Equal texts.
    return World(*_pairs(rng, texts), texts, created, vectors[:40], vectors[40:])


def _pairs(rng, texts):
    rows = []
    for group in range(NUM_POSITIVES):
        sender, t = int(rng.integers(NUM_SENDERS)), int(rng.integers(5, 45))
        if group % 6 == 0:
            t = NO_TIME
        ends = rng.choice(NUM_RECEIVERS - 4, 3, replace=False)  # The last four are in no pair.
        rows += [(sender, int(r), int(i == 0), t, group) for i, r in enumerate(ends)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    sender, receiver, label, t, group = (np.array(c) for c in zip(*rows, strict=True))
    n = len(rows)
    profile = np.where(sender % 3 == 0, -1, sender).astype(np.int32)
    pairs = PairTable(
        sender=sender.astype(np.int32),
        receiver=receiver.astype(np.int32),
        label=label.astype(np.int8),
        negative=np.where(label, "", "uniform"),
        t=t,
        group=group.astype(np.int32),
        sender_text=profile,
        sender_resume=np.where((profile < 0) | (sender == 1), sender + 8, -1).astype(np.int32),
        receiver_text=rng.integers(0, 40, n).astype(np.int32),
        warm_sender=np.ones(n, bool),
        warm_receiver=np.ones(n, bool),
        true_logit=np.full(n, np.nan, np.float32),
        slice=np.full(n, "", "U1"),
    )
    return pairs, np.flatnonzero(label == 1)


def known_of(world):
    """Positives of the pairs, and two applications that only an edge tells of."""
    positive = world.positives
    own = np.stack([world.pairs.sender[positive], world.pairs.receiver[positive]], axis=1)
    return np.unique(np.concatenate([own, [[0, 2], [1, 5]]]).astype(np.int64), axis=0)


def score_of(world, model, by, row):
    """Text of a receiver -> its score for the request of a pair, in numpy."""
    p, r = (
        world.requests[i] if i >= 0 else np.zeros(world.requests.shape[1], np.float32)
        for i in (world.pairs.sender_text[row], world.pairs.sender_resume[row])
    )
    has = [world.pairs.sender_text[row] >= 0, world.pairs.sender_resume[row] >= 0]
    head = jax.tree.map(np.asarray, model[1]["scorer"])

    def score(text):
        d = world.documents[text]
        if by == "cosine":
            return d @ (p + r) / np.linalg.norm(p + r)
        x = np.concatenate([np.concatenate([d * p, d * r]) * len(d) ** 0.5, has])
        x = x @ head["hidden_0"]["kernel"] + head["hidden_0"]["bias"]
        x = np.where(x > 0, x, 0.01 * x)
        return x @ head["logit"]["kernel"][:, 0] + head["logit"]["bias"][0]

    return score


def by_definition(world, model, by, row):
    """(score, receiver, text) of the best for one positive."""
    pairs, texts = world.pairs, world.texts
    order = np.lexsort((texts.text_id, texts.t, texts.entity))
    order = order[[texts.kind[i] == "job" for i in order]]
    versions = Versions(texts.entity[order].astype(np.int64), texts.t[order], texts.text_id[order])
    known = known_of(world)
    rules = Rules(np.unique(known[:, 0] * NUM_RECEIVERS + known[:, 1]), world.created)
    pool = np.unique(pairs.receiver[world.positives])
    same = lambda value: np.full(len(pool), value, np.int64)  # noqa: E731 - three columns alike.
    t = same(pairs.t[row])
    text = text_as_of(versions, pool, t)
    allowed = ~rules.forbid(same(pairs.sender[row]), pool, t) & (text >= 0)
    allowed &= ~np.isin(pool, pairs.receiver[pairs.group == pairs.group[row]])
    score = score_of(world, model, by, row)
    found = [(score(x), r, x) for r, x in zip(pool[allowed], text[allowed], strict=True)]
    return sorted(found, key=lambda one: (-round(float(one[0]), 5), one[1]))[:TOP]


@pytest.mark.parametrize("by", ["cosine", "scorer"])
def test_the_best_of_all_that_the_rules_allow(world, model, by):
    pool = training_pool(world.texts, world.created, world.pairs.receiver[world.positives])
    ranker = Ranker(
        pool,
        world.documents,
        world.requests,
        by=by,
        scorer=model,
        top=TOP,
        block_requests=8,
        block_documents=8,
    )
    closed = barred(known_of(world), world.pairs, world.positives)
    lengths = []
    for found in ranker(world.pairs, world.positives, closed):
        for i, place in enumerate(found.rows):
            row = world.positives[place]
            expected = by_definition(world, model, by, row)
            column = found.column[i][: len(expected)]
            assert pool.receiver[column].tolist() == [r for _, r, _ in expected]
            assert pool.text[column].tolist() == [x for _, _, x in expected]
            scores = [score for score, _, _ in expected]
            np.testing.assert_allclose(found.score[i][: len(expected)], scores, atol=1e-5)
            assert (found.score[i][len(expected) :] == -np.inf).all()
            assert (found.column[i][len(expected) :] >= -1).all()
            own = score_of(world, model, by, row)(world.pairs.receiver_text[row])
            np.testing.assert_allclose(found.positive[i], own, atol=1e-5)
            lengths.append(len(expected))
    assert len(lengths) == NUM_POSITIVES
    assert min(lengths) < TOP == max(lengths)


def test_known_positives_are_those_of_the_training_time_alone(tmp_path, world):
    edge = EdgeMeta(
        sender="member",
        relation="apply",
        receiver="job",
        kind="interaction",
        count=4,
        has_time=False,
        has_split=True,
    )
    back = replace(edge, sender="job", relation="hired", receiver="member")
    viewed = replace(edge, relation="view")
    for meta, ends in ((edge, (0, 2)), (back, (5, 1)), (viewed, (3, 9))):
        columns = {
            "sender": np.full(4, ends[0], np.int32),
            "receiver": ends[1] + np.array([0, 0, 9, 10], np.int32),
            "t": pa.nulls(4, pa.int64()),
            "removed_t": pa.nulls(4, pa.int64()),
            "weight": np.ones(4, np.float32),
            "split": np.array([0, 1, 2, 3], np.int8),
        }
        (tmp_path / "edges").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "edges" / f"{meta.name}.parquet")
    task = TaskMeta(
        sender="member",
        receiver="job",
        edge_types=[edge.name, back.name],
        negatives=[],
        counts={},
        class_weights=(1.0, 1.0),
    )
    tables = TablesMeta(
        dataset="",
        time_unit="ordinal",
        node_types={},
        edge_types=[edge, back, viewed],
        tasks={"apply": task},
        cohorts=[],
        reference=None,
        import_report={},
    )
    found = known_positives(tmp_path, tables, task, world.pairs)
    np.testing.assert_array_equal(found, known_of(world))


def test_creation_times_and_a_pool_without_texts(tmp_path):
    (tmp_path / "nodes").mkdir()
    table = pa.table({"t": pa.array([4, None, 2], pa.int64())})
    pq.write_table(table, tmp_path / "nodes" / "job.parquet")
    np.testing.assert_array_equal(creation_times(tmp_path, "job"), [4, NO_TIME, 2])
    none = np.zeros(0, np.int32)
    texts = Texts(none, none, np.zeros(0, np.int64), [], [])
    pool = training_pool(texts, np.zeros(3, np.int64), np.array([0, 2]))
    assert isinstance(pool, Pool)
    assert not len(pool.receiver)
