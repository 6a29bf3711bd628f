import numpy as np
import pytest
from jax.sharding import PartitionSpec

from star_jax.config import InputError
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import (
    FSDP_RULES,
    Rule,
    Rules,
    Split,
    batch_shardings,
    put,
    shardings,
    text_rules,
    with_tables,
)

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
    with pytest.raises(ValueError, match="x has 2 rows, needed a multiple of the 8 parts"):
        batch_shardings(batch, mesh)


def test_rows_are_copied_along_tensor():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    batch = {"x": np.arange(8.0)}
    placed = put(batch, batch_shardings(batch, mesh))["x"]
    assert sorted(shard.index[0].start for shard in placed.addressable_shards) == [
        *(0, 0, 2, 2, 4, 4, 6, 6)
    ]
    np.testing.assert_array_equal(placed, batch["x"])


def test_a_rule_that_matches_nothing_is_an_error():
    rules: Rules = (Rule("wyde", PartitionSpec("fsdp")), *FSDP_RULES)
    with pytest.raises(ValueError, match="sharding rule 'wyde' matches no parameter, needed one"):
        specs(rules, fsdp=4)
    specs((rules[0]._replace(optional=True), *FSDP_RULES), fsdp=4)
    assert shardings({}, make_mesh(MeshConfig()), rules) == {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (PartitionSpec(None, "fsdp"), r"mesh axis fsdp of 2 does not divide dimension 1"),
        (PartitionSpec(("fsdp", "tensor")), r"fsdp x tensor of 8 does not divide dimension 0"),
        (PartitionSpec(None, None, "fsdp"), r"mesh axis fsdp of 2 does not divide dimension 2"),
        (Split(-1, None), r"mesh axis tensor of 4 does not divide dimension 1"),
        (Split(-2, -1, 85), r"axis tensor of 4 does not .* dimension 0, needed .* 4 parts of 85"),
    ],
)
def test_what_an_axis_does_not_divide_is_an_error(spec, message):
    with pytest.raises(InputError, match=rf"parameter odd of shape \(255, 255\): .*{message}"):
        specs((Rule("odd", spec), *FSDP_RULES), fsdp=2, tensor=4)


def test_a_split_has_tensor_on_one_dimension_and_fsdp_on_the_other():
    rules: Rules = (Rule("wide", Split(-1, -2, 8)), Rule("small", Split(-1, None)), *FSDP_RULES)
    assert specs(rules, fsdp=2, tensor=4) == {
        "wide": PartitionSpec(None, "fsdp", "tensor"),
        "odd": PartitionSpec(),
        "small": PartitionSpec("tensor"),  # However small: what it is added to is split.
    }
    assert specs((Rule("wide", Split(-2, -1)), *FSDP_RULES), fsdp=2, tensor=4)["wide"] == (
        PartitionSpec(None, "tensor", "fsdp")
    )
    assert specs(rules, fsdp=4) == specs(FSDP_RULES, fsdp=4)  # Without `tensor`.


def test_heads_are_not_cut():
    """Eight heads of width four, of which four devices get two each; two heads are too few."""
    tree = {"encoder": {"k_proj": {"kernel": np.zeros((2, 16, 32)), "b": np.zeros((2, 4, 32))}}}
    mesh = make_mesh(MeshConfig(tensor=4))
    placed = shardings(tree, mesh, text_rules(4, base=False))["encoder"]["k_proj"]
    assert placed["kernel"].spec == PartitionSpec(None, None, "tensor")
    assert placed["b"].spec == PartitionSpec(None, None, "tensor")
    message = (
        r"parameter encoder/k_proj/b of shape \(2, 4, 32\): mesh axis tensor of 4 does not divide "
        "dimension 2, needed a multiple of 4 parts of 16, a head's width"
    )
    with pytest.raises(InputError, match=message):
        shardings(tree, mesh, text_rules(16, base=False))
    with pytest.raises(ValueError, match=r"rule '.*q_proj.*' matches no parameter"):
        shardings({"scorer": np.zeros(3)}, mesh, text_rules(4, base=True))
