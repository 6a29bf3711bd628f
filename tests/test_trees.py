import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import trees


@pytest.fixture
def tree():
    return {
        "layers": {"attention": {"q": np.ones((2, 3)), "k": np.zeros(3)}, "scale": np.ones(4)},
        "head": np.ones((3, 1)),
    }


def test_paths_name_every_leaf(tree):
    by_jax = [
        "/".join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    assert sorted(trees.paths(tree)) == sorted(by_jax)


def test_pattern_must_match_the_whole_path(tree):
    assert trees.paths(trees.select(tree, r".*/q")) == ["layers/attention/q"]
    assert trees.select(tree, "layers") == {}


@pytest.mark.parametrize("pattern", [r".*", r"nothing", r"layers/.*", r".*/(q|scale)"])
def test_merge_is_the_inverse_of_split(tree, pattern):
    matching, rest = trees.split(tree, pattern)
    assert not set(trees.paths(matching)) & set(trees.paths(rest))
    merged = trees.merge(rest, matching)
    assert jax.tree.structure(merged) == jax.tree.structure(tree)
    assert all(a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(tree), strict=True))


def test_merge_refuses_what_both_hold(tree):
    with pytest.raises(ValueError, match="both trees hold 'q'"):
        trees.merge(tree, {"layers": {"attention": {"q": np.ones(1)}}})
    with pytest.raises(ValueError, match="both trees hold 'head'"):
        trees.merge(tree, {"head": {"kernel": np.ones(1)}})


def test_count_and_size(tree):
    assert trees.count(tree) == 6 + 3 + 4 + 3
    assert trees.size_bytes(tree) == 16 * 8
    shapes = jax.eval_shape(lambda: {"a": jnp.zeros((2, 5), jnp.bfloat16), "b": jnp.float32(0)})
    assert (trees.count(shapes), trees.size_bytes(shapes)) == (11, 24)
