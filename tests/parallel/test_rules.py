import numpy as np
import pytest
from jax.sharding import PartitionSpec

from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import FSDP_RULES, Rule, batch_shardings, put, shardings, with_tables

TREE = {
    "wide": np.zeros((4, 64, 256)),
    "odd": np.zeros((255, 255)),
    "small": np.zeros((16,)),
}


def specs(rules, **config):
    placed = shardings(TREE, make_mesh(MeshConfig(**config)), rules)
    return {name: sharding.spec for name, sharding in placed.items()}


def test_large_parameters_split_their_largest_dimension():
    assert specs(FSDP_RULES, fsdp=4) == {
        "wide": PartitionSpec(None, None, "fsdp"),
        "odd": PartitionSpec(),  # 4 divides neither side.
        "small": PartitionSpec(),
    }


def test_one_device_splits_nothing():
    assert set(specs(FSDP_RULES, fsdp=1).values()) == {PartitionSpec()}


def test_the_first_match_decides():
    rules = (Rule("w.*", PartitionSpec("fsdp")), Rule("wide", PartitionSpec()), Rule(".*", None))
    assert specs(rules, fsdp=4)["wide"] == PartitionSpec("fsdp")


def test_tables_are_split_by_rows_however_small():
    rules = with_tables(FSDP_RULES, "small|w.*")
    assert specs(rules, fsdp=4) == {
        "wide": PartitionSpec("fsdp"),
        "odd": PartitionSpec(),
        "small": PartitionSpec("fsdp"),
    }


def test_every_parameter_needs_a_rule():
    with pytest.raises(ValueError, match="no sharding rule matches parameter odd"):
        specs((Rule("wide|small", None),), fsdp=4)


def test_rows_are_split_over_all_devices():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    batch = {"x": np.arange(32.0).reshape(2, 16)}
    placed = put(batch, batch_shardings(batch, mesh, axis=1))["x"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(placed, batch["x"])
    with pytest.raises(ValueError, match="x has 2 rows, needed a multiple of the 8 devices"):
        batch_shardings(batch, mesh)
