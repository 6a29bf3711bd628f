"""Older vectors of a graph's nodes, the maps to them, and what leads on from there."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.registry.registry import Registry
from star_jax.embeddings.transforms.files import read_transform, write_transform
from star_jax.embeddings.transforms.maps import Residual, linear
from star_jax.embeddings.transforms.transform import Step, Transform
from star_jax.graph.engines.host import HostEngine
from star_jax.graph.model import LinkTask
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import shardings
from star_jax.pipeline.graph_compatible import (
    CompatibleConfig,
    alignment_of,
    compatible_inputs,
    describe_compatible,
    write_maps,
)
from star_jax.pipeline.graph_data import GraphData
from star_jax.pipeline.graph_model import open_training_store
from star_jax.pipeline.graph_training import describe, graph_rules, make_graph_optimizer
from star_jax.pipeline.tables.read import read_meta
from tests.jobs import tiny_graph
from tests.pipeline import graph_market, older_version

TASKS = (LinkTask("apply", "member", "job"), LinkTask("contact", "recruiter", "member"))
TABLES = ("member", "job", "recruiter", "member.receiver")


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    return graph_market.write(tmp_path_factory.mktemp("market"))


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    return older_version.write(tmp_path_factory.mktemp("older") / "embeddings")


@pytest.fixture
def chain(older, tmp_path):
    return older_version.write_chain(tmp_path, older)


def described(older, **fields):
    config = CompatibleConfig(old=str(older), **fields)
    return config, describe_compatible(config, TASKS, "this graph")


def test_every_table_has_a_map_or_all_have_one(older):
    for shared in (False, True):
        _, compatible = described(older, shared=shared)
        assert [each.table for each in compatible.maps] == list(TABLES)
        assert [each.role for each in compatible.maps] == list(older_version.ROLES.values())
        assert {each.width for each in compatible.maps} == {older_version.WIDTH}
        assert len({each.name for each in compatible.maps}) == (1 if shared else 4)
        assert (compatible.old, compatible.unit_norm) == (artefacts.digest(older), False)


def opened(older, market):
    config = tiny_graph.config(compatible=CompatibleConfig(old=str(older)))
    store = open_training_store(market, config.model.features, None)
    meta = read_meta(market / "tables")
    return config, store, meta, describe(config, market, store, meta)


def test_maps_are_copied_to_all_devices_and_do_not_decay(older, market):
    config, _, _, file = opened(older, market)
    params = {
        "compatible": {"job": jnp.ones((256, 256))},
        "encoder": {"kernel": jnp.ones((256, 256))},
    }
    mesh = make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])
    where = shardings(params, mesh, graph_rules(config))
    assert where["compatible"]["job"].is_fully_replicated
    assert not where["encoder"]["kernel"].is_fully_replicated
    optimizer: Any = make_graph_optimizer(config, file.build())
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert jax.tree.map(lambda update: bool((update != 0).any()), updates) == {
        "compatible": {"job": False},
        "encoder": {"kernel": True},
    }


def test_batches_have_the_older_vectors_of_their_seeds(older, market, caplog):
    """A node is known by its id; the batch's own subgraphs say which nodes its seeds are."""
    caplog.set_level(logging.INFO)
    config, store, meta, file = opened(older, market)
    data = GraphData(config, market, file, store, meta, 2, HostEngine(store))
    found = {table: set() for table in TABLES}
    batches = data.batches(6)
    for _ in range(8):
        batch = next(batches)
        for task in TASKS:
            pairs = batch.tasks[task.name]
            for role in ("sender", "receiver"):
                name = getattr(task, role)
                table = "member.receiver" if (name, role) == ("member", "receiver") else name
                theirs = older_version.by_id(older, table)
                nodes = getattr(pairs, role).nodes[name]
                vectors, known = pairs.old[table]
                assert len(vectors) == 2
                for shard, row in np.ndindex(known.shape):
                    node = f"{name}-{nodes.node[shard, row]}"
                    real = nodes.mask[shard, row]
                    assert known[shard, row] == (real and node in theirs)
                    expected = theirs[node] if known[shard, row] else np.zeros(older_version.WIDTH)
                    np.testing.assert_array_equal(vectors[shard, row], expected)
                    found[table].add(node if real else "padding")
    assert {f"{t.split('.')[0]}-{n}" for t, n in older_version.MISSING.items()} <= set().union(
        *found.values()
    )
    assert "older vectors: 39 of 40 rows of member\n" in caplog.text
    assert "older vectors: 59 of 60 rows of job\n" in caplog.text


def test_the_maps_of_older_versions_are_composed(older, chain):
    config, compatible = described(older, mode="joint_multi", chain=tuple(map(str, chain)))
    older_maps = alignment_of(config, compatible).older
    first, second = map(read_transform, chain)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, older_version.WIDTH)).astype(np.float32)
    for table in ("member", "job"):
        one, two = older_maps[table]
        ((bare, _),) = first.of(table)
        moved = bare.apply(a) - bare.apply(b)  # The bias cancels out.
        np.testing.assert_allclose((a - b) @ one, moved, rtol=1e-4, atol=1e-5)
        further = second.apply(table, moved)
        np.testing.assert_allclose((a - b) @ two, further, rtol=1e-4, atol=1e-5)
    assert older_maps["recruiter"] == older_maps["member.receiver"] == ()


def test_the_registry_knows_the_way_back(older, tmp_path):
    oldest = older_version.write(tmp_path / "oldest", unit_norm=True)
    versions = [artefacts.digest(folder) for folder in (older, oldest)]
    steps = {"job": (Step(linear(np.eye(older_version.WIDTH)), renormalise=True),)}
    write_transform(tmp_path / "back", Transform("ridge", versions[0], versions[1], steps), {})
    registry = str(tmp_path / "registry")
    for folder, name in ((oldest, "vectors"), (older, "vectors"), (tmp_path / "back", "maps")):
        Registry(registry).add(folder, name)
    config = CompatibleConfig(
        old="vectors@2", registry=registry, mode="joint_multi", oldest="vectors@1"
    )
    assert compatible_inputs(config) == {
        "compatible.old": versions[0],
        "compatible.chain.0": artefacts.digest(tmp_path / "back"),
    }
    compatible = describe_compatible(config, TASKS, "this graph")
    assert compatible.old == versions[0]
    (matrix,) = alignment_of(config, compatible).older["job"]
    np.testing.assert_array_equal(matrix, np.eye(older_version.WIDTH))


def test_a_transform_says_what_the_older_version_was(older, tmp_path):
    for unit_norm in (False, True):
        folder = older_version.write(tmp_path / f"older{unit_norm}", unit_norm=unit_norm)
        _, compatible = described(folder, shared=True)
        assert compatible.unit_norm == unit_norm
        matrix = np.random.default_rng(0).normal(size=(12, older_version.WIDTH))
        params = {"compatible": {"_shared": matrix.astype(np.float32)}}
        write_maps(tmp_path / "transform", compatible, params, "c" * 64)
        transform = read_transform(tmp_path / "transform")
        assert (transform.mode, transform.new) == ("joint", "c" * 64)
        assert transform.old == artefacts.digest(folder)
        rows = np.random.default_rng(1).normal(size=(5, 12)).astype(np.float32)
        expected = rows @ matrix
        if unit_norm:
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(transform.apply("job", rows), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": 0.0}, r"weight 0\.0 must be > 0"),
        ({"settled": 1.5}, r"settled 1\.5 must be in \[0, 1\]"),
        ({"chain": ("t",)}, "with mode joint, needed neither"),
        ({"mode": "joint_multi"}, "with mode joint_multi, needed one of them"),
        (
            {"mode": "joint_multi", "chain": ("t",), "oldest": "v@1", "registry": "r"},
            "with mode joint_multi, needed one of them",
        ),
        ({"mode": "joint_multi", "oldest": "v@1"}, "oldest v@1 without registry"),
    ],
)
def test_wrong_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CompatibleConfig(old="old", **fields)


def test_what_is_not_there_or_of_another_role_is_refused_or_said(older, tmp_path, caplog):
    with pytest.raises(InputError, match="nowhere is no folder of an artefact"):
        described(tmp_path / "nowhere")
    swapped = older_version.write(tmp_path / "swapped", roles={"member": "receiver"})
    with pytest.raises(InputError, match="table member is of the receivers' encoder, needed the"):
        described(swapped)
    other = older_version.write(tmp_path / "other", roles={"skill": "sender"})
    with pytest.raises(InputError, match="has tables skill, needed one of member, job, recruiter"):
        described(other)
    later: dict[str, Any] = {"roles": {"job": "receiver"}, "visible": "val"}
    described(older_version.write(tmp_path / "far", **later))  # Of another graph.
    assert "validation may look too good" not in caplog.text
    few = older_version.write(tmp_path / "few", **later, graph="this graph")
    _, compatible = described(few)
    assert [each.table for each in compatible.maps] == ["job"]
    assert "has no table member: its vectors have no map" in caplog.text
    assert "this graph with visible=val: validation may look too good" in caplog.text


def test_a_chain_that_does_not_lead_on_is_refused(older, chain, tmp_path):
    def composed(*folders):
        fields = {"mode": "joint_multi", "chain": tuple(map(str, folders))}
        return alignment_of(*described(older, **fields))

    with pytest.raises(InputError, match=r"maps vectors of aaaaaaaaaaaa, needed those of"):
        composed(chain[1], chain[0])
    rng = np.random.default_rng(0)
    at = artefacts.digest(older)
    bent = Residual(
        linear(rng.normal(size=(8, 3))), *(np.ones(s, np.float32) for s in ((8, 2), 2, (2, 3)))
    )
    write_transform(tmp_path / "bent", Transform("mlp", at, "d", {"job": (Step(bent, False),)}), {})
    with pytest.raises(InputError, match="has a network for job, needed linear maps"):
        composed(tmp_path / "bent")
    narrow = Transform("ridge", at, "d", {"job": (Step(linear(rng.normal(size=(7, 3))), False),)})
    write_transform(tmp_path / "narrow", narrow, {})
    with pytest.raises(InputError, match="maps job vectors of 7 dimensions, needed 8"):
        composed(tmp_path / "narrow")
