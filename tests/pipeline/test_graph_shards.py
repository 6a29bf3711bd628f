"""One global batch on any number of devices: the same pairs, neighbours, loss and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from star_jax import trees
from star_jax.graph.identities import TABLES
from star_jax.graph.model import LinkTask, init_model
from star_jax.graph.objective import make_loss
from star_jax.graph.samplers.fanouts import FanoutConfig, resolve
from star_jax.graph.schema import parse_key
from star_jax.parallel import rules
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline.graph_loader import TRAIN_SPLITS, Groups, PairSampler, Sampling
from star_jax.pipeline.graph_model import GraphModelFile, node_features, open_store
from star_jax.pipeline.graph_negatives import UniformNegatives
from star_jax.pipeline.graph_streams import BatchMaker, TaskStream
from star_jax.pipeline.graph_training import graph_rules, make_graph_optimizer
from star_jax.pipeline.tables.read import read_pairs
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.state import create_state
from star_jax.train.step import make_step
from tests.jobs import tiny_graph
from tests.pipeline import graph_market
from tests.pipeline.graph_market import APPLY

TASK = LinkTask("apply", "member", "job")
NUM_GROUPS, GROUP_SIZE = 24, 3  # Of all devices together.
STEP = 3


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    return graph_market.write(tmp_path_factory.mktemp("market"))


@pytest.fixture(scope="module")
def store(market):
    return open_store(market, "vectors")


def stream_of(market, store, shards, *, total, fresh=False):
    sampling = Sampling(fanouts=dict(resolve(FanoutConfig(total=total), store.meta)))
    groups = Groups(read_pairs(market / "tables", "apply", "train"))
    return TaskStream(
        groups,
        PairSampler(store, TASK, (APPLY,), sampling, visible_splits=TRAIN_SPLITS),
        UniformNegatives(groups, store, TASK, GROUP_SIZE - 1) if fresh else None,
        num_groups=NUM_GROUPS // shards,
        num_pairs=GROUP_SIZE * NUM_GROUPS // shards,
        seed=7,
    )


def around(subgraph, budget, node_type, row, hop=0):
    """What was drawn for a row, in the order of the slots, and around each of its neighbours."""
    start, num_rows = budget.block(node_type, hop) if hop < budget.num_hops else (0, 0)
    if not start <= row < start + num_rows:
        return ()  # Met before, or beyond the last hop.
    found = []
    for key, table in sorted(subgraph.hops[hop].items()):
        sender, _, receiver = parse_key(key)
        if receiver != node_type:
            continue
        for slot in np.flatnonzero(table.mask[row - start]):
            index = int(table.index[row - start, slot])
            node = int(subgraph.nodes[sender].node[index])
            age = float(table.age[row - start, slot])
            found.append((key, node, age, around(subgraph, budget, sender, index, hop + 1)))
    return tuple(found)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_step_draws_the_same_neighbours_on_any_number_of_devices(market, store, fresh):
    seen = {}
    for shards in (1, 2, 4):
        stream = stream_of(market, store, shards, total=(6, 3), fresh=fresh)
        budgets = stream.budgets()
        rows = []
        for shard in range(shards):
            batch, num_cut = stream.batch(STEP, budgets, shard, shards)
            assert num_cut == 0
            for pair in np.flatnonzero(batch.mask):
                for role, budget in zip(("sender", "receiver"), budgets, strict=True):
                    subgraph, node_type = getattr(batch, role), getattr(TASK, role)
                    row = int(getattr(batch, f"{role}_row")[pair])
                    node = int(subgraph.nodes[node_type].node[row])
                    rows.append((role, node, around(subgraph, budget, node_type, row)))
        seen[shards] = rows
    assert len(seen[1]) == 2 * GROUP_SIZE * NUM_GROUPS
    assert any(inner for _, _, outer in seen[1] for *_, inner in outer)
    assert seen[2] == seen[1]
    assert seen[4] == seen[1]


def test_another_step_draws_others(market, store):
    stream = stream_of(market, store, 1, total=(4,))
    assert stream.pairs(STEP)[1] != stream.pairs(STEP + 1)[1]
    assert stream.pairs(STEP)[1] == stream.pairs(STEP, 1, 2)[1]


def model_of(config, store):
    file = GraphModelFile(
        model=config,
        features=node_features(config.features, store, (TASK,)),
        keys=tuple(sorted(store.meta.num_edges)),
        tasks=(TASK,),
        sampling=Sampling(fanouts={}),
        inputs={},
    )
    return file.build()


def without_dropout(config):
    return dataclasses.replace(
        config,
        encoder=dataclasses.replace(config.encoder, dropout=0.0),
        decoder=dataclasses.replace(config.decoder, dropout=0.0),
    )


def loss_of(model):
    return make_loss(model, task_weights={"apply": 1.0}, positive_weight={"apply": 2.0})


def gradient_of(model):
    return jax.jit(jax.value_and_grad(loss_of(model), has_aux=True))


def test_the_graph_alone_is_trained_by_the_program_of_the_model_with_texts(market):
    config = tiny_graph.config().model
    programs = {}
    for text in ("vectors", "zeros", "off"):
        store = open_store(market, text)
        features = dataclasses.replace(config.features, text=text)
        model = model_of(dataclasses.replace(config, features=features), store)
        stream = stream_of(market, store, 1, total=(6,))
        batch = BatchMaker({"apply": stream}, {"apply": stream.budgets()}, 1)(STEP)
        texts = batch.tasks["apply"].sender.nodes["member"].texts
        assert texts.any() == (text == "vectors")
        arguments = (*init_model(model, 0), {}, batch, jax.random.key(0))
        programs[text] = gradient_of(model).lower(*arguments).as_text()
    assert programs["zeros"] == programs["vectors"]
    assert programs["off"] != programs["vectors"]


@pytest.mark.slow
def test_loss_and_gradients_do_not_depend_on_the_mesh(market, store, monkeypatch):
    monkeypatch.setattr(rules, "_SMALL", 1)  # Else every array here would be copied.
    model = model_of(without_dropout(tiny_graph.config().model), store)
    params, statistics = init_model(model, 0)
    gradient = gradient_of(model)
    results = []
    for data, fsdp in ((1, 1), (2, 1), (4, 2)):
        shards = data * fsdp
        mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp), jax.devices()[:shards])
        stream = stream_of(market, store, shards, total=(6,))
        batch = BatchMaker({"apply": stream}, {"apply": stream.budgets()}, shards)(STEP)
        assert batch.mask.sum() == GROUP_SIZE * NUM_GROUPS
        placed = rules.put(params, rules.shardings(params, mesh, rules.FSDP_RULES))
        split = [leaf for leaf in jax.tree.leaves(placed) if not leaf.sharding.is_fully_replicated]
        assert (len(split) > 10) == (fsdp > 1)
        (value, (_, moved)), grads = gradient(
            placed,
            rules.put(statistics, rules.replicated(mesh)),
            {},
            rules.put(batch, rules.batch_shardings(batch, mesh)),
            rules.put(jax.random.key(0), rules.replicated(mesh)),
        )
        results.append(jax.tree.map(np.asarray, (value, moved, grads)))
    for other in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), other, results[0]
        )
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(results[0][2]))
    assert largest > 1e-2  # The bound is far below the gradients.


def by_rows(store, mesh, num_rows=None):
    """State and step of a model whose identity tables are updated by rows; nothing else moves."""
    config = without_dropout(tiny_graph.config().model)
    features = dataclasses.replace(config.features, identity_update="adagrad", identity_rate=2.0)
    config = tiny_graph.config(
        model=dataclasses.replace(config, features=features),
        optimizer=OptimizerConfig(rate_multipliers=((".*", 0.0),)),
    )
    model = model_of(config.model, store)
    if num_rows is not None:  # As if there were as many nodes.
        model = model.clone(
            features=tuple(
                dataclasses.replace(each, num_identities=num_rows) if each.num_identities else each
                for each in model.features
            )
        )
    rng = np.random.default_rng(0)
    params, statistics = jax.tree.map(
        lambda leaf: rng.uniform(0.1, 0.5, leaf.shape).astype(leaf.dtype),
        jax.eval_shape(lambda: init_model(model, 0)),
    )
    optimizer = make_graph_optimizer(config, model)
    state = create_state(
        params, optimizer, seed=0, mesh=mesh, rules=graph_rules(config), statistics=statistics
    )
    return state, make_step(loss_of(model), optimizer, state=state, mesh=mesh, stateful=True)


def batch_on(market, store, shards):
    stream = stream_of(market, store, shards, total=(6,))
    return BatchMaker({"apply": stream}, {"apply": stream.budgets()}, shards)


@pytest.mark.slow
def test_updates_by_rows_do_not_depend_on_the_mesh(market, store):
    results = []
    for data, fsdp in ((1, 1), (4, 2)):
        mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp), jax.devices()[: data * fsdp])
        state, step = by_rows(store, mesh)
        before = jax.tree.map(np.asarray, state.trainable)
        batches, metrics = batch_on(market, store, data * fsdp), {}
        for number in range(3):
            state, metrics = step(state, {}, step.place(batches(number)), 0.1)
        tables = trees.select(state.trainable, TABLES)
        assert len(trees.paths(tables)) == 4
        for leaf in jax.tree.leaves((tables, state.opt_state.slots)):
            assert leaf.sharding.spec == PartitionSpec("fsdp")
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, state.trainable)
        moved, still = (jax.tree.leaves(part) for part in trees.split(moved, TABLES))
        assert all(moved)
        assert not any(still)
        results.append(jax.tree.map(np.asarray, (tables, state.opt_state.slots, metrics)))
    one, many = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, many)


def test_a_step_by_rows_costs_the_same_however_many_rows_there_are(market, store):
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    batch = batch_on(market, store, 1)(0)
    flops = []
    for num_rows in (1 << 12, 1 << 16):
        state, step = by_rows(store, mesh, num_rows)
        with jax.set_mesh(mesh):
            lowered = step._update.lower(
                state=state, frozen={}, batch=step.place(batch), rate=jnp.float32(0.1)
            )
        cost = lowered.cost_analysis()
        assert cost is not None
        flops.append(cost["flops"])
    assert flops[0] == flops[1] > 0
