import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.parallel import pieces
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import REPLICATED_RULES, Rule
from star_jax.train import checkpoints
from star_jax.train.checkpoints import (
    Best,
    Checkpointer,
    TrainedParameters,
    load_trained,
    tree_digest,
)
from star_jax.train.optimizers import OptimizerConfig, make_optimizer
from star_jax.train.state import create_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    rank: int = 8


def state_at(step, mesh=None, rules=REPLICATED_RULES):
    mesh = mesh or make_mesh(MeshConfig(data=1), jax.devices()[:1])
    params = {"kernel": jnp.arange(8.0) + step}
    state = create_state(params, make_optimizer(OptimizerConfig()), seed=3, mesh=mesh, rules=rules)
    return state._replace(step=jnp.int32(step))


def checkpointer(folder, config=None, frozen="f", **options):
    return Checkpointer(folder, config=config or Job(), frozen_digest=frozen, **options)


def equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


def test_restores_all_of_the_state(tmp_path):
    saved = state_at(5)
    checkpointer(tmp_path).save(saved, {"next_index": 7}, Best(5, 0.7))
    restored = checkpointer(tmp_path).restore_last(state_at(0))
    assert restored is not None
    equal(restored.state, saved)
    assert restored.position == {"next_index": 7}
    assert restored.best == Best(5, 0.7)


def test_nothing_to_restore(tmp_path):
    assert checkpointer(tmp_path).restore_last(state_at(0)) is None


def test_restores_onto_another_mesh(tmp_path):
    saved = state_at(5)
    checkpointer(tmp_path).save(saved, {}, None)
    rules = (Rule("kernel", PartitionSpec("fsdp")),)
    like = state_at(0, make_mesh(MeshConfig(data=2, fsdp=4)), rules)
    restored = checkpointer(tmp_path).restore_last(like)
    assert restored is not None
    assert restored.state.trainable["kernel"].sharding == like.trainable["kernel"].sharding
    equal(restored.state, saved)


def test_keeps_the_last_and_the_best(tmp_path):
    keeper = checkpointer(tmp_path)
    best = None
    for step, value in [(1, 0.5), (2, 0.9), (3, 0.6), (4, 0.7)]:
        best = Best(step, value) if best is None or value > best.value else best
        keeper.save(state_at(step), {}, best)
    assert keeper.steps() == [2, 4]


def flipped(content, at, bit=1):
    return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]


def test_a_flipped_byte_of_any_file_is_refused_by_name(tmp_path):
    """The first byte, the last one, and one between."""
    keeper = checkpointer(tmp_path)
    keeper.save(state_at(1), {}, None)
    folder = tmp_path / "step-00000001"
    files = {path for path in folder.rglob("*") if path.is_file() and path.stat().st_size}
    files.remove(folder / "manifest.json")
    names = {path.relative_to(folder).parts[0] for path in files}
    assert names == {"arrays", "record.json"}
    assert {path.parent.name for path in files} >= {"arrays", "model", "optimizer", "d"}
    for path in files:
        content = path.read_bytes()
        for at in {0, len(content) // 2, len(content) - 1}:
            path.write_bytes(flipped(content, at))
            with pytest.raises(InputError, match=f"^{path} does not have the sha256"):
                keeper.restore_last(state_at(0))
        path.write_bytes(content)
    keeper.restore_last(state_at(0))


def refusal(folder):
    try:
        artefacts.verify(folder)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("bit", [1, 128])  # Another character; none at all.
def test_a_flipped_byte_of_the_manifest_is_refused_or_changes_nothing(tmp_path, bit):
    checkpointer(tmp_path).save(state_at(1), {}, None)
    folder = tmp_path / "step-00000001"
    path, refused = folder / "manifest.json", 0
    content = path.read_bytes()
    files = json.loads(content)["files"]
    places = range(0, len(content), 5)  # Some of every key and every digest.
    for at in places:
        path.write_bytes(flipped(content, at, bit))
        said = refusal(folder)
        refused += bool(said)
        assert (
            said.startswith(str(folder))
            if said
            else json.loads(path.read_bytes())["files"] == files
        )
    assert refused > len(places) / 2


def test_another_config_is_refused_with_the_difference(tmp_path):
    checkpointer(tmp_path).save(state_at(1), {}, None)
    with pytest.raises(InputError, match="rank: 8 -> 16"):
        checkpointer(tmp_path, Job(rank=16)).restore_last(state_at(0))


def test_another_base_is_refused(tmp_path):
    checkpointer(tmp_path, frozen="aaaa").save(state_at(1), {}, None)
    with pytest.raises(InputError, match="frozen parameters aaaa, got bbbb"):
        checkpointer(tmp_path, frozen="bbbb").restore_last(state_at(0))


def test_other_inputs_are_refused(tmp_path):
    checkpointer(tmp_path, inputs={"tables": "aa", "graph": "cc"}).save(state_at(1), {}, None)
    checkpointer(tmp_path, inputs={"tables": "aa", "graph": "cc"}).restore_last(state_at(0))
    with pytest.raises(InputError, match=r'trained on other inputs \(tables: "aa" -> "bb"\)'):
        checkpointer(tmp_path, inputs={"tables": "bb", "graph": "cc"}).restore_last(state_at(0))


def test_half_a_checkpoint_is_none(tmp_path):
    keeper = checkpointer(tmp_path)
    keeper.save(state_at(1), {}, None)
    (tmp_path / "step-00000001").rename(tmp_path / ".step-00000001.partial")
    assert checkpointer(tmp_path).restore_last(state_at(0)) is None
    assert not list(tmp_path.iterdir())


def test_digest_depends_on_names_shapes_types_and_bytes():
    tree = {"a": np.arange(6, dtype=np.float32), "b": jnp.ones((), jnp.bfloat16)}
    others = [
        {"c": tree["a"], "b": tree["b"]},
        {"a": tree["a"].reshape(2, 3), "b": tree["b"]},
        {"a": tree["a"].astype(np.int32), "b": tree["b"]},
        {"a": np.nextafter(tree["a"], 9), "b": tree["b"]},
        {"a": tree["a"], "b": tree["b"] * 2},
    ]
    digests = [tree_digest(t) for t in (tree, *others)]
    assert len(set(digests)) == 6
    assert digests[0] == tree_digest(json.loads("{}") | tree)


@pytest.mark.parametrize("split", [(), (None, "fsdp"), (None, None, "fsdp"), ("fsdp",)], ids=str)
def test_digest_does_not_depend_on_where_leaves_lie(split, monkeypatch):
    # In small blocks, the last ones of which overlap.
    monkeypatch.setattr(checkpoints, "blocks", partial(pieces.blocks, block_bytes=3000))
    leaf = np.random.default_rng(0).standard_normal((8, 16, 56)).astype(np.float32)
    where = NamedSharding(make_mesh(MeshConfig(data=2, fsdp=4)), PartitionSpec(*split))
    assert tree_digest({"a": jax.device_put(leaf, where)}) == tree_digest({"a": leaf})


def test_the_model_alone_can_be_read(tmp_path):
    saved = state_at(5)
    checkpointer(tmp_path).save(saved, {}, Best(5, 0.7))
    like = TrainedParameters(state_at(0).trainable, ())
    loaded = load_trained(tmp_path, 5, like, frozen_digest="f")
    equal(loaded.trainable, saved.trainable)
    equal(load_trained(tmp_path, 5, like, frozen_digest=None), loaded)
    with pytest.raises(InputError, match="frozen parameters f, got g"):
        load_trained(tmp_path, 5, like, frozen_digest="g")
