"""How often a batch holds each receiver."""

import numpy as np
import pytest

from star_jax.graph.engines.host import HostEngine
from star_jax.graph.samplers.fanouts import FanoutConfig, resolve
from star_jax.graph.store import GraphStore
from star_jax.pipeline.graph_loader import Groups, Sampling
from star_jax.pipeline.graph_model import GraphModelFile, link_tasks
from star_jax.pipeline.graph_streams import make_streams
from star_jax.pipeline.hard_negatives import HARD, beside_tables
from star_jax.pipeline.tables.read import PairTable, read_meta, read_pairs
from tests.jobs import tiny_graph
from tests.pipeline import graph_market


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return graph_market.write(tmp_path_factory.mktemp("market"))


def _pairs(workdir, hard_negatives):
    """The training pairs; as if the first receivers had been mined, for all positives."""
    pairs = read_pairs(workdir / "tables", "apply", "train")
    rows = np.flatnonzero(pairs.label == 1)
    mined = PairTable(*(column[rows] for column in pairs))._replace(
        receiver=(np.arange(len(rows)) % 7).astype(np.int32),
        label=np.zeros(len(rows), np.int8),
        negative=np.full(len(rows), HARD),
    )
    return beside_tables(pairs, mined, hard_negatives)


@pytest.mark.parametrize(
    ("num_negatives", "hard_negatives"), [(None, 0), (2, 0), (None, 1), (2, 1)]
)
def test_the_share_of_a_receiver_is_that_of_many_batches(workdir, num_negatives, hard_negatives):
    store = GraphStore.open(workdir / "graph", None)
    meta = read_meta(workdir / "tables")
    file = GraphModelFile(
        model=tiny_graph.config().model,
        features=(),
        keys=(),
        tasks=link_tasks(meta)[:1],
        sampling=Sampling(fanouts=dict(resolve(FanoutConfig(total=(1,)), store.meta))),
        inputs={},
    )
    stream = make_streams(
        file,
        {"apply": Groups(_pairs(workdir, hard_negatives))},
        store,
        hides={name: tuple(task.edge_types) for name, task in meta.tasks.items()},
        num_negatives=num_negatives,
        know_links=False,
        correct=True,
        batch_size=48.0,
        size_power=0.5,
        seed=0,
        engine=HostEngine(store),
    )["apply"]
    budgets = stream.budgets()
    met, claimed = np.zeros(60), np.zeros(60)
    for step in range(1500):
        pairs, _ = stream.pairs(step)
        met += np.bincount(pairs.receiver, minlength=60)
        if step < 20:
            batch, _ = stream.batch(step, budgets)
            assert batch.log_q is not None
            claimed[pairs.receiver] = np.asarray(batch.log_q)[: len(pairs.receiver)]
    seen = claimed != 0
    assert seen.sum() > 40
    share = met / met.sum()
    np.testing.assert_allclose(np.exp(claimed[seen]), share[seen], rtol=0.12, atol=1e-3)
