"""Long work speaks of its rate and of the time that is left; short work is silent."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.graph.decoders import SeedVectors
from star_jax.graph.model import GraphModel, LinkTask
from star_jax.graph.samplers.fanouts import FanoutConfig, resolve
from star_jax.jobs.import_tables import ImportConfig, run
from star_jax.pipeline import graph_scoring, text_scoring
from star_jax.pipeline.graph_loader import TRAIN_SPLITS, Groups, PairSampler, Sampling
from star_jax.pipeline.graph_model import open_store
from star_jax.pipeline.progress import Work
from star_jax.pipeline.reference_methods import Chance
from star_jax.pipeline.scored import Questions, ask, scored
from star_jax.pipeline.tables.read import TaskMeta, read_pairs, read_ranking
from star_jax.pipeline.tables.schema_file import schema_json
from star_jax.train import reporter as reporting
from tests.pipeline import graph_market
from tests.pipeline.layered_world import ONE
from tests.pipeline.tables import mini


@pytest.fixture
def spoken(monkeypatch, caplog):
    """Lines with a rate and an ETA, where every moment is longer than the speaking interval."""
    monkeypatch.setattr(reporting, "_SPEAK_EVERY_S", 0.0)
    caplog.set_level("INFO")

    def lines(name, unit):
        pattern = rf"{name} \d+ %, [\d,]+ {unit}/s, ETA (-|\d+:\d\d:\d\d)"
        return [line for line in caplog.messages if re.fullmatch(pattern, line)]

    return lines


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    return graph_market.write(tmp_path_factory.mktemp("market"))


def test_work_speaks_at_intervals_and_leaves_its_end_to_the_caller(monkeypatch, caplog):
    now = [100.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])
    caplog.set_level("INFO")
    work = Work("copying", 30, "rows")
    for _ in range(30):
        now[0] += 1.0
        work.advance(1)
    assert caplog.messages == [
        "copying 33 %, 1 rows/s, ETA 0:00:20",
        "copying 67 %, 1 rows/s, ETA 0:00:10",
    ]


def test_short_work_is_silent(caplog):
    caplog.set_level("INFO")
    work = Work("copying", 30, "rows")
    for _ in range(30):
        work.advance(1)
    assert caplog.messages == []


def test_import_speaks_per_table(tmp_path, spoken):
    data = mini.write(tmp_path / "data", mini.tables())
    (data / "schema.json").write_text(schema_json(mini.schema()), encoding="utf-8")
    run(ImportConfig(source=data), tmp_path / "run")
    lines = spoken("import", "tables")
    schema = mini.schema()
    sources = (schema.nodes, schema.texts, schema.events, schema.edges, schema.tasks)
    assert len(lines) > sum(map(len, sources))
    shares = [int(line.split()[1]) for line in lines]
    assert shares == sorted(shares)
    assert 90 <= shares[-1] < 100  # What follows the last line is one table.


def test_build_graph_speaks_per_relation(tmp_path, spoken):
    graph_market.write(tmp_path)
    assert len(spoken("build-graph", "edges")) >= 2


def test_evaluate_speaks_per_method(market, spoken):
    methods = {f"chance {seed}": Chance(seed) for seed in range(3)}
    task = TaskMeta(
        sender="member",
        receiver="job",
        edge_types=[],
        negatives=["uniform"],
        counts={},
        class_weights=(1.0, 1.0),
    )
    pairs = read_pairs(market / "tables", "apply", "test")
    ranking = read_ranking(market / "tables", "apply", "test")
    questions = Questions(pairs, ranking)
    scored(questions, ask(methods, questions), task)
    assert len(spoken("scoring", "methods")) == 2


def test_evaluate_speaks_while_a_model_scores(spoken, monkeypatch):
    monkeypatch.setattr(text_scoring, "_BLOCK_PAIRS", 4)
    monkeypatch.setattr(graph_scoring, "_BLOCK_PAIRS", 8)
    rows = np.arange(20, dtype=np.int32) % 3
    vectors = np.ones((3, 2), np.float32)
    by_text = object.__new__(text_scoring.PairLogits)
    monkeypatch.setattr(by_text, "_logits", lambda variables, *vectors: jnp.zeros(4), raising=False)
    by_text({}, vectors, vectors, text_scoring.PairRows(rows, rows, rows))
    assert len(spoken("scoring by text", "pairs")) == 4
    task = LinkTask("apply", "member", "job")
    by_graph = graph_scoring.PairDecoder(object.__new__(GraphModel), task, ONE)
    monkeypatch.setattr(ONE, "run", lambda *arguments, task: np.zeros((1, 8), np.float32))
    sides = SeedVectors(*(vectors for _ in SeedVectors._fields))
    by_graph({}, sides, sides, rows, rows)
    assert len(spoken("scoring by graph", "pairs")) == 2
    monkeypatch.setattr(ONE, "run", lambda *arguments, task: np.zeros((1, 2, 3), np.float32))
    by_graph.grid({}, sides, sides)
    assert len(spoken("ranking by graph", "queries")) == 1


def test_calibration_speaks_per_batch(market, spoken):
    store = open_store(market, "vectors")
    sampling = Sampling(fanouts=dict(resolve(FanoutConfig(total=(8,)), store.meta)))
    task = LinkTask("apply", "member", "job")
    sampler = PairSampler(store, task, (graph_market.APPLY,), sampling, visible_splits=TRAIN_SPLITS)
    groups = Groups(read_pairs(market / "tables", "apply", "train"))
    sampler.budgets(
        lambda number: groups.take(np.array([number])), num_groups=1, num_pairs=3, num_batches=4
    )
    assert len(spoken("measuring samples of apply", "batches")) == 7
