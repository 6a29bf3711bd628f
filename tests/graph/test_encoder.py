import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.graph import messages
from star_jax.graph.batches import Neighbours
from star_jax.graph.encoder import (
    GraphEncoder,
    GraphEncoderConfig,
    num_rounds,
    receiving_types,
)
from star_jax.graph.schema import parse_key
from star_jax.graph.segments import hop_blocks
from tests.graph.subgraphs import KEYS, random_subgraph

DIM, HEADS = 8, 2
CONFIG = GraphEncoderConfig(dim=DIM, multiplier=2, heads=HEADS)
ONE_LAYER = dataclasses.replace(CONFIG, layers=1, batch_norm=False, skip="none")


def features(subgraph, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=(len(nodes.node), DIM)), jnp.float32)
        for name, nodes in sorted(subgraph.nodes.items())
    }


def encoder(config, seed_type="member"):
    return GraphEncoder(config, KEYS, (seed_type,))


@functools.cache
def compiled(config, seed_type, what):
    """Compiling is the cost: tests of one config share their programs."""
    module = encoder(config, seed_type)
    if what == "init":
        return jax.jit(lambda *args: module.init(jax.random.key(0), *args, seed_type, False))

    def total(variables, subgraph, hidden, probe):
        return jnp.sum(module.apply(variables, subgraph, hidden, seed_type, False) * probe)

    if what == "gradient":
        return jax.jit(jax.value_and_grad(total))
    if what == "apply skill":
        return jax.jit(lambda *args: module.apply(*args, "skill", False))
    return jax.jit(lambda *args: module.apply(*args, seed_type, False))


def init(config, subgraph, seed_type="member"):
    """Every parameter random, so that none hides behind a zero."""
    made = compiled(config, seed_type, "init")(subgraph, features(subgraph))
    rng = np.random.default_rng(5)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), made["params"]
    )
    return {**made, "params": params}


def embed(config, variables, subgraph, seed_type="member"):
    return np.asarray(compiled(config, seed_type, "apply")(variables, subgraph, features(subgraph)))


def gradient(config, variables, subgraph):
    """Value and gradients of a random sum of the embeddings, by the running statistics."""
    num_seeds = hop_blocks(subgraph, "member")["member"][0]
    probe = np.random.default_rng(1).normal(size=(num_seeds, DIM)).astype(np.float32)
    made = compiled(config, "member", "gradient")
    return jax.tree.leaves(made(variables, subgraph, features(subgraph), probe))


def one_hop(seed_type="member"):
    subgraph = random_subgraph(seed_type)
    return subgraph._replace(hops=subgraph.hops[:1])


def by_definition(config, params, subgraph, hidden, seed_type):
    """One layer by the equations, one node and one head at a time."""
    layer = params["layer_0"]
    keys = [key for key in KEYS if parse_key(key)[2] == seed_type]
    width = DIM // HEADS
    rows = []
    for v in range(hop_blocks(subgraph, seed_type)[seed_type][0]):
        h_v = hidden[seed_type][v]
        message = np.zeros((HEADS, width))
        for head in range(HEADS):
            q = h_v @ layer["query_kernel"][0][:, head]
            logits, values = [], []
            for r, key in enumerate(keys):
                table = subgraph.hops[0][key]
                for slot in np.flatnonzero(table.mask[v]):
                    h_u = hidden[parse_key(key)[0]][table.index[v, slot]]
                    bias = layer["edge_bias"][r, :, head]
                    k = h_u @ layer["key_kernel"][r][:, head]
                    logits.append(
                        q @ k / width**0.5
                        + bias[0]
                        + bias[1] * np.log1p(table.weight[v, slot])
                        + bias[2] * table.age[v, slot]
                    )
                    values.append(h_u @ layer["value_kernel"][r][:, head])
            if config.include_receiver:
                own = len(keys)
                k = h_v @ layer["key_kernel"][own][:, head]
                logits.append(q @ k / width**0.5 + layer["edge_bias"][own, 0, head])
                values.append(h_v @ layer["value_kernel"][own][:, head])
            if logits:
                weights = np.exp(logits) / np.exp(logits).sum()
                if config.pooling == "mean":
                    weights = np.full(len(logits), 1 / len(logits))
                message[head] = weights @ np.stack(values)
        joined = np.concatenate([h_v, message.reshape(-1)])
        units = joined @ layer["hidden_kernel"][0] + layer["hidden_bias"][0]
        if config.activation == "leaky_relu":
            units = np.where(units > 0, units, 0.2 * units)
        new = units @ layer["output_kernel"][0] + layer["output_bias"][0]
        rows.append(h_v + new if config.skip == "residual" else new)
    return np.stack(rows)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"pooling": "mean", "include_receiver": False},
        {"include_receiver": False, "activation": "linear", "skip": "residual"},
    ],
)
@pytest.mark.parametrize("path", ["dense", "jraph"])
def test_one_layer_is_what_the_equations_say(change, path):
    config = dataclasses.replace(ONE_LAYER, **change)
    subgraph = one_hop()
    variables = init(config, subgraph)
    expected = by_definition(config, variables["params"], subgraph, features(subgraph), "member")
    got = embed(dataclasses.replace(config, path=path), variables, subgraph)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


def narrowed(subgraph):
    """Some relations bring one neighbour at most."""
    narrow = ("job__rev_apply__member", "skill__rev_has__job", "member__has__skill")

    def table(key, each):
        return Neighbours(*(part[:, :1] for part in each)) if key in narrow else each

    hops = tuple({key: table(key, each) for key, each in hop.items()} for hop in subgraph.hops)
    return subgraph._replace(hops=hops)


def check_both_paths(config, subgraph, seed_type):
    """Values and gradients of the tables are those of the segments."""
    variables, hidden = init(config, subgraph, seed_type), features(subgraph)
    probe = np.random.default_rng(1).normal(
        size=(hop_blocks(subgraph, seed_type)[seed_type][0], DIM)
    )

    def loss(params, hidden, path):
        module = encoder(dataclasses.replace(config, path=path), seed_type)
        found, _ = module.apply(
            {**variables, "params": params},
            subgraph,
            hidden,
            seed_type,
            True,
            mutable=["batch_stats"],
        )
        return jnp.sum(found * probe.astype(np.float32))

    of_both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
    dense, reference = (of_both(variables["params"], hidden, path) for path in ("dense", "jraph"))
    for got, expected in zip(jax.tree.leaves(dense), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "seed_type", "num_hops"),
    [
        ({}, "member", 2),
        ({}, "member", 1),  # Neighbours have only themselves, as around receivers.
        ({"pooling": "mean", "skip": "jumping_knowledge", "unit_norm": True}, "member", 2),
        ({"include_receiver": False}, "job", 2),
    ],
)
def test_both_paths_agree_in_values_and_gradients(change, seed_type, num_hops):
    config = dataclasses.replace(CONFIG, **change)
    subgraph = random_subgraph(seed_type, seed=3)
    hops = tuple(hop if i < num_hops else {} for i, hop in enumerate(subgraph.hops))
    check_both_paths(config, subgraph._replace(hops=hops), seed_type)


@pytest.mark.parametrize("change", [{}, {"pooling": "mean", "include_receiver": False}])
def test_relations_of_one_neighbour_are_projected_one_by_one(change):
    config = dataclasses.replace(CONFIG, **change)
    check_both_paths(config, narrowed(random_subgraph("member", seed=3)), "member")


@pytest.mark.parametrize("change", [{}, {"pooling": "mean", "include_receiver": False}])
def test_relations_of_few_senders_are_projected_before_they_are_looked_up(change, monkeypatch):
    monkeypatch.setattr(messages, "_FEWER", 0)  # All are few.
    config = dataclasses.replace(CONFIG, **change)
    check_both_paths(config, narrowed(random_subgraph("member", seed=3)), "member")


@pytest.mark.parametrize(("path", "pooling"), [("dense", "self_attention"), ("jraph", "mean")])
def test_a_graph_of_padding_alone_gives_finite_values_and_gradients(path, pooling):
    config = dataclasses.replace(CONFIG, path=path, pooling=pooling, include_receiver=False)
    subgraph = random_subgraph("member", fill=-1.0)
    assert not any(table.mask.any() for hop in subgraph.hops for table in hop.values())
    value, *gradients = gradient(config, init(config, subgraph), subgraph)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in gradients)


def test_without_neighbours_the_message_is_zero():
    config = dataclasses.replace(ONE_LAYER, include_receiver=False)
    subgraph = one_hop()
    variables = init(config, subgraph)
    layer, h = variables["params"]["layer_0"], features(subgraph)["member"][1]  # Row 1 has none.
    units = h @ layer["hidden_kernel"][0][:DIM] + layer["hidden_bias"][0]
    alone = np.where(units > 0, units, 0.2 * units) @ layer["output_kernel"][0]
    np.testing.assert_allclose(
        embed(config, variables, subgraph)[1], alone + layer["output_bias"][0], rtol=2e-5, atol=1e-5
    )


def loud(subgraph):
    """What padding holds is changed to large values everywhere."""

    def shout(table):
        noise = np.where(table.mask, 0.0, -0.9e3).astype(np.float32)
        return table._replace(
            index=np.where(table.mask, table.index, 2).astype(np.int32),
            weight=table.weight + noise,
            age=table.age - 7 * noise,
        )

    hops = tuple({key: shout(table) for key, table in hop.items()} for hop in subgraph.hops)
    return subgraph._replace(hops=hops)


@pytest.mark.parametrize("path", ["dense", "jraph"])
def test_what_padding_holds_never_matters(path):
    config = dataclasses.replace(CONFIG, path=path)
    subgraph = random_subgraph("member")
    variables = init(config, subgraph)
    quiet, noisy = (gradient(config, variables, each) for each in (subgraph, loud(subgraph)))
    for got, expected in zip(noisy, quiet, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_order_of_neighbours_does_not_matter():
    subgraph = random_subgraph("member")
    variables = init(CONFIG, subgraph)
    rng = np.random.default_rng(4)

    def shuffle(table):
        order = rng.permuted(np.tile(np.arange(table.mask.shape[1]), (len(table.mask), 1)), axis=1)
        return type(table)(*(np.take_along_axis(part, order, axis=1) for part in table))

    hops = tuple({key: shuffle(table) for key, table in hop.items()} for hop in subgraph.hops)
    np.testing.assert_allclose(
        embed(CONFIG, variables, subgraph._replace(hops=hops)),
        embed(CONFIG, variables, subgraph),
        rtol=1e-5,
        atol=1e-6,
    )


def test_weight_and_age_move_the_attention():
    subgraph = random_subgraph("member")
    variables = init(CONFIG, subgraph)
    before = embed(CONFIG, variables, subgraph)
    for part in ("weight", "age"):
        tables = {
            key: table._replace(**{part: getattr(table, part) * 5})
            for key, table in subgraph.hops[0].items()
        }
        after = embed(CONFIG, variables, subgraph._replace(hops=(tables, subgraph.hops[1])))
        assert np.abs(after - before).max() > 1e-4


def test_edges_into_hidden_hops_reach_the_seeds():
    subgraph = random_subgraph("member")
    variables = init(CONFIG, subgraph)
    tables = {key: t._replace(mask=np.zeros_like(t.mask)) for key, t in subgraph.hops[1].items()}
    without = embed(CONFIG, variables, subgraph._replace(hops=(subgraph.hops[0], tables)))
    assert np.abs(without - embed(CONFIG, variables, subgraph)).max() > 1e-3


def test_parameters_exist_for_what_can_reach_a_seed():
    assert receiving_types(KEYS, ("member",), 2) == (("job", "member", "skill"), ("member",))
    params = init(CONFIG, random_subgraph("member"))["params"]
    into_member = sum(parse_key(key)[2] == "member" for key in KEYS)
    assert params["layer_0"]["key_kernel"].shape == (len(KEYS) + 3, DIM, HEADS, DIM // HEADS)
    assert params["layer_1"]["key_kernel"].shape[0] == into_member + 1
    assert params["layer_0"]["hidden_kernel"].shape == (3, 2 * DIM, 2 * DIM)  # The multiplier.
    assert params["layer_0"]["output_kernel"].shape == (3, 2 * DIM, DIM)


def test_a_subgraph_of_another_depth_is_refused():
    with pytest.raises(ValueError, match="subgraph has 1 hops, needed 2, one per layer"):
        init(CONFIG, one_hop())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 9}, "dim 9 is not a multiple of heads 2"),
        ({"layers": 0}, "layers is 0, needed at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0, needed 0 <= dropout < 1"),
    ],
)
def test_wrong_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_dropped_relations_are_dropped_for_whole_rows_and_only_in_training():
    config = dataclasses.replace(ONE_LAYER, edge_dropout=0.5, include_receiver=False)
    subgraph = random_subgraph("member", fill=2.0)
    subgraph = subgraph._replace(hops=subgraph.hops[:1])
    variables, hidden = init(config, subgraph), features(subgraph)
    module = encoder(config)

    def train(key):
        return module.apply(variables, subgraph, hidden, "member", True, rngs={"dropout": key})

    found = np.asarray(jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 30)))
    still = embed(config, variables, subgraph)
    # A row has two relations: four outcomes, one of them nothing dropped, one all.
    outcomes = {tuple(np.round(row, 4)) for row in found[:, 0]}
    assert len(outcomes) == 4
    assert tuple(np.round(still[0], 4)) in outcomes


def test_another_type_comes_out_as_the_next_layer_reads_it_of_a_neighbour():
    """In two layers a member reads a skill after one; the skills are rows 0 to 5 at hop 1."""
    subgraph = random_subgraph("member")
    hidden, variables = features(subgraph), init(CONFIG, subgraph)
    module = encoder(CONFIG)
    assert num_rounds(KEYS, ("member",), 2, "member") == 2
    assert num_rounds(KEYS, ("member",), 2, "skill") == 1
    assert num_rounds(KEYS, ("member",), 1, "skill") == 0

    @jax.jit
    def inner(variables):
        _, seen = module.apply(
            variables, subgraph, hidden, "member", False, capture_intermediates=True, mutable=True
        )
        return seen["intermediates"]["layer_0"]["__call__"][0]["skill"]

    into = {key: t for key, t in subgraph.hops[1].items() if parse_key(key)[2] == "skill"}
    around = subgraph._replace(hops=(into,))
    assert {len(table.mask) for table in into.values()} == {6}
    got = compiled(CONFIG, "member", "apply skill")(variables, around, hidden)
    np.testing.assert_allclose(got, inner(variables)[:6], rtol=1e-5, atol=1e-6)
    assert not np.allclose(got, hidden["skill"][:6], atol=0.1)
