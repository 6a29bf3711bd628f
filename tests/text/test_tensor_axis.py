"""The text tower on meshes with `tensor`: the same vectors and gradients, and what devices say."""

import dataclasses
import math
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import trees
from star_jax.config import InputError
from star_jax.parallel.mesh import TENSOR, MeshConfig, make_mesh
from star_jax.parallel.rules import batch_shardings, put, shardings
from star_jax.text.families import TokenLimits
from star_jax.text.lora import LoraConfig, adapted, init_lora
from star_jax.text.packing import Tokens
from star_jax.text.tower import TowerConfig, build_tower, init_params, load_params, tower_rules
from tests.text.fixtures import FOLDER

LORA = LoraConfig(rank=2, targets=r".*/\w+_proj", dropout=0.0)
B, L = 16, 12
ONE = MeshConfig(data=1)
COLUMNS, ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), ("o_proj", "down_proj")


@pytest.fixture(autouse=True)
def kernels_are_large(monkeypatch):
    """Else none here would be split over `fsdp`; adapters and norms are copied along it."""
    monkeypatch.setattr("star_jax.parallel.rules._SMALL", 1000)


def config_of(name, **changes):
    limits = TokenLimits(job=40, profile=40, resume=40, other=40)
    base = name if name == "random" else str(FOLDER / name)
    return TowerConfig(base=base, limits=limits, remat="full", **changes)


def texts_of():
    rng = np.random.default_rng(5)
    tokens: Any = rng.integers(3, 60, (B, L)).astype(np.int32)
    lengths: Any = rng.integers(3, L + 1, (B, 1)).astype(np.int32)
    return Tokens(tokens, lengths)


class Run:
    """Vectors of a tower with adapters, and the gradients of a function of them, on a mesh."""

    def __init__(self, config, mesh_config, *, base_trains, **shape):
        self.tower, self.mesh = build_tower(config), make_mesh(mesh_config)
        if shape:  # Another one than that of the files.
            shape = dataclasses.replace(self.tower.shape, **shape)
            self.tower = self.tower.clone(shape=shape)
            params = {"encoder": init_params(self.tower, jax.random.key(3))["encoder"]}
        else:
            params = load_params(config, self.tower, self.mesh)
        rng = np.random.default_rng(1)
        lora = jax.tree.map(
            lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32),
            jax.eval_shape(lambda: init_lora(jax.random.key(0), params, LORA)),
        )
        placed: Any = {"params": params, "lora": lora}
        self.variables: Any = put(
            placed, shardings(placed, self.mesh, tower_rules(self.tower, base=True))
        )
        texts = texts_of()
        self.texts = put(texts, batch_shardings(texts, self.mesh))
        weight = np.random.default_rng(2).normal(size=(B, self.tower.shape.width))

        def loss(trained, variables, texts):
            with adapted(LORA):
                vectors: Any = self.tower.apply({**variables, **trained}, texts)
            return jnp.sum(vectors * jnp.asarray(weight, jnp.float32)), vectors

        names = ("params", "lora") if base_trains else ("lora",)
        trained = {name: self.variables[name] for name in names}
        where = jax.tree.map(lambda leaf: leaf.sharding, trained)
        gradient = jax.jit(jax.grad(loss, has_aux=True), out_shardings=(where, None))
        with jax.set_mesh(self.mesh):
            self.compiled = gradient.lower(trained, self.variables, self.texts).compile()
            self.results = jax.device_get(self.compiled(trained, self.variables, self.texts))


def close(found, expected):
    """Relative to the largest gradient: some are zero but for rounding, as those of BERT's keys."""
    (grads, vectors), (expected_grads, expected_vectors) = found, expected
    np.testing.assert_allclose(vectors, expected_vectors, atol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_grads))
    assert largest > 0.1
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5 * largest),
        grads,
        expected_grads,
    )


def paths_split(variables):
    """Paths -> the dimensions, from the end, that lie over `tensor`."""
    found = {}
    for path, leaf in zip(trees.paths(variables), jax.tree.leaves(variables), strict=True):
        split = [d - leaf.ndim for d, axes in enumerate(leaf.sharding.spec) if axes == TENSOR]
        found |= {path: split[0]} if split else {}
    return found


@pytest.mark.parametrize(
    ("name", "shape"), [("tiny_mistral", {}), ("tiny_bert", {}), ("tiny_t5", {"num_heads": 4})]
)
def test_all_families_compute_the_same_with_split_heads(name, shape):
    config = config_of(name)
    one = Run(config, ONE, base_trains=True, **shape)
    many = Run(config, MeshConfig(data=2, fsdp=2, tensor=2), base_trains=True, **shape)
    close(many.results, one.results)
    split = paths_split(many.variables)
    maps = {path for path in trees.paths(many.variables) if "_proj/" in path}
    for path in maps:
        *_, map_name, leaf = path.split("/")
        column = map_name in COLUMNS and leaf in ("kernel", "b", "bias")
        row = map_name in ROWS and leaf in ("kernel", "a")
        assert split.pop(path, None) == (-1 if column else -2 if row else None), path
    assert split == {"params/encoder/embed/embedding": -1}
    kernel = many.variables["params"]["encoder"]["layers"]["mlp_out"]["down_proj"]["kernel"]
    assert kernel.sharding.spec == jax.P(None, "tensor", "fsdp")


@pytest.mark.extra("qwix")
def test_int8_kernels_are_split_with_their_scales():
    config = config_of("tiny_bert", base_quantisation="int8")
    one = Run(config, ONE, base_trains=False)
    many = Run(config, MeshConfig(fsdp=2, tensor=2), base_trains=False)
    close(many.results, one.results)
    split = paths_split(many.variables["params"])
    names = [path.removeprefix("encoder/layers/") for path in split]
    assert {name for name in names if name.endswith("scale")} == {
        "attention_in/q_proj/kernel_scale",
        "attention_in/k_proj/kernel_scale",
        "attention_in/v_proj/kernel_scale",
        "mlp_in/up_proj/kernel_scale",
    }
    assert split["encoder/layers/attention_out/o_proj/kernel"] == -2


def test_heads_that_tensor_does_not_divide_are_named():
    config = config_of("random")
    mesh = make_mesh(MeshConfig(tensor=4))
    message = (
        r"parameter encoder/layers/attention_in/k_proj/kernel of shape \(2, 32, 16\): mesh axis "
        "tensor of 4 does not divide dimension 2, needed a multiple of 4 parts of 8, a head's width"
    )
    with pytest.raises(InputError, match=message):
        load_params(config, build_tower(config), mesh)


def collectives(program):
    """(kind, devices that take part in one) -> how many, each part of a combined one for itself."""
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found: Counter = Counter()
    for result, kind, rest in re.findall(rf"= (.*?) ({kinds})(?:-start)?\((.*)", program):
        listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
        counted = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
        named = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest)
        if listed:
            size = len(listed[1].split(","))
        elif counted:
            size = int(counted[1])
        elif named:
            sizes = dict(each.split("=") for each in named[1].split(","))
            size = math.prod(int(sizes[axis]) for axis in named[2].split(","))
        else:
            size = 0
        found[kind, size] += len(re.findall(r"\w+\[[\d,]*\]", result))
    return found


def test_weights_are_gathered_along_fsdp_and_states_added_up_along_tensor(capfd):
    """Four devices along `fsdp` and two along `tensor`: so many take part in a collective."""
    run = Run(config_of("random"), MeshConfig(fsdp=4, tensor=2), base_trains=False)
    assert "rematerialization" not in capfd.readouterr().err
    found = collectives(run.compiled.as_text())
    assert set(found) == {
        *(("all-gather", 4), ("all-gather", 2)),  # Along fsdp, along tensor.
        *(("all-reduce", 4), ("all-reduce", 2)),
    }
    assert found["all-gather", 4] == 2 * len(COLUMNS + ROWS)  # Kernels of a block, in each pass.
    assert found["all-gather", 2] == 1  # Token embeddings.
