"""What maps miss of older vectors, against its definition seed by seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.graph.batches import OldVectors, PairBatch
from star_jax.graph.compatible import Alignment, CompatibleMap, CompatibleMaps
from tests.graph.subgraphs import random_pairs

WIDTH, SEEDS, PADDED = 5, {"sender": 4, "receiver": 7}, 8
MAPS = (
    CompatibleMap(node_type="member", role="sender", table="member", name="member", width=WIDTH),
    CompatibleMap(node_type="job", role="receiver", table="job", name="job", width=WIDTH),
    CompatibleMap(
        node_type="member", role="receiver", table="member.receiver", name="job", width=WIDTH
    ),
)
TASKS = {"apply": ("member", "job"), "contact": ("recruiter", "member.receiver")}
OLDER = {  # Jobs were mapped twice, members once, as receivers never.
    "job": ((WIDTH, 3), (WIDTH, 4)),
    "member": ((WIDTH, 2),),
    "member.receiver": (),
}


def world(shards=2):
    """Mapped vectors, and pairs with older ones; what does not count is loud."""
    rng = np.random.default_rng(0)
    mapped, tasks = {}, {}
    for number, (task, tables) in enumerate(TASKS.items()):
        pairs = [random_pairs(10 * number + shard) for shard in range(shards)]
        stacked = jax.tree.map(lambda *parts: np.stack(parts), *pairs)
        mapped[task], old = {}, {}
        for table, (role, seeds) in zip(tables, SEEDS.items(), strict=True):
            if table == "recruiter":  # The older version has none.
                continue
            vectors = rng.normal(size=(shards, seeds, WIDTH)).astype(np.float32)
            known = rng.random((shards, seeds)) < 0.7
            known[:, -1] = role == "sender"
            ours = rng.normal(size=(shards, PADDED, WIDTH)).astype(np.float32)
            ours[:, seeds:] = 1e6
            ours[:, :seeds][~known] = -1e6
            mapped[task][table] = jnp.asarray(ours)
            old[table] = OldVectors(np.where(known[..., None], vectors, 0.0), known)
        tasks[task] = stacked._replace(old=old)
    return mapped, tasks


def alignment(older):
    rng = np.random.default_rng(1)
    matrices = {
        table: tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)
        for table, shapes in older.items()
    }
    return Alignment(weight=16.0, maps=MAPS, older=matrices)


def by_definition(mapped, tasks, matrices):
    """Seed by seed, in float64."""
    errors, lengths = {"sender": [], "receiver": [], "negatives": []}, []
    for task, tables in mapped.items():
        pairs: PairBatch = tasks[task]
        assert pairs.old is not None
        for table, ours in tables.items():
            vectors, known = pairs.old[table]
            for shard, seed in zip(*np.nonzero(known), strict=True):
                d = np.asarray(ours, np.float64)[shard, seed] - vectors[shard, seed]
                levels = [d] + [d @ matrix for matrix in matrices.get(table, ())]
                group = "sender"
                if table in ("job", "member.receiver"):
                    group = "receiver" if pairs.label[shard, seed] == 1 else "negatives"
                errors[group].append(np.mean([np.mean(level**2) for level in levels]))
                lengths.append(np.sqrt((d**2).sum()))
    return sum(np.mean(group) for group in errors.values()), np.mean(lengths)


@pytest.mark.parametrize("older", [{}, OLDER], ids=["joint", "joint_multi"])
def test_the_loss_is_its_definition(older):
    mapped, tasks = world()
    loss = alignment(older)
    value, metrics = jax.jit(loss)(mapped, tasks)
    expected, length = by_definition(mapped, tasks, loss.older)
    assert value == pytest.approx(expected, rel=1e-5)
    assert metrics["loss_alignment"] == value
    assert metrics["alignment"] == pytest.approx(length, rel=1e-5)


def test_seeds_without_an_older_vector_get_no_gradient():
    mapped, tasks = world()
    gradients = jax.jit(jax.grad(lambda mapped: alignment(OLDER)(mapped, tasks)[0]))(mapped)
    for task, tables in gradients.items():
        for table, gradient in tables.items():
            known = tasks[task].old[table].known
            moved = np.abs(gradient).max(axis=2) > 0
            np.testing.assert_array_equal(moved[:, : known.shape[1]], known)
            assert not moved[:, known.shape[1] :].any()


def test_a_batch_of_which_the_older_version_knows_nothing_adds_nothing():
    mapped, tasks = world()
    unknown = {
        name: pairs._replace(
            old={t: old._replace(known=np.zeros_like(old.known)) for t, old in pairs.old.items()}
        )
        for name, pairs in tasks.items()
    }
    value, metrics = jax.jit(alignment(OLDER))(mapped, unknown)
    assert (value, metrics["alignment"]) == (0.0, 0.0)


def test_maps_of_one_name_are_one_matrix_without_a_bias():
    maps = CompatibleMaps(MAPS)
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32))

    def both(module):
        return [module(each.name, rows) for each in MAPS]

    results, variables = jax.jit(lambda key: maps.init_with_output(key, method=both))(
        jax.random.key(0)
    )
    params = variables["params"]
    assert jax.tree.map(jnp.shape, params) == {"member": (3, WIDTH), "job": (3, WIDTH)}
    for each, found in zip(MAPS, results, strict=True):
        np.testing.assert_allclose(found, rows @ params[each.name], rtol=1e-5)
    assert not np.allclose(results[0], results[1])
