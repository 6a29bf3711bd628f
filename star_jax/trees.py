"""Parameter trees by path: `a/b/c` names the leaf `tree["a"]["b"]["c"]`.

A pattern is a regular expression that must match the whole path.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Tree = Mapping[str, Any]


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}/")
        else:
            yield path, value


def _nest(leaves: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path, value in leaves:
        *parents, name = path.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return root


def paths(tree: Tree) -> list[str]:
    """Paths of all leaves, in the order of the tree."""
    return [path for path, _ in _leaves(tree)]


def split(tree: Tree, pattern: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a tree into the leaves whose path matches and the others."""
    full = re.compile(pattern)
    matching = _nest((path, value) for path, value in _leaves(tree) if full.fullmatch(path))
    rest = _nest((path, value) for path, value in _leaves(tree) if not full.fullmatch(path))
    return matching, rest


def select(tree: Tree, pattern: str) -> dict[str, Any]:
    """The part of the tree whose paths match; empty when none does."""
    return split(tree, pattern)[0]


def merge(a: Tree, b: Tree) -> dict[str, Any]:
    """Joins two trees that share no leaf: the inverse of `split`.

    Raises:
      ValueError: A path is a leaf in one tree and present in the other.
    """
    merged: dict[str, Any] = dict(a)
    for name, value in b.items():
        if name not in merged:
            merged[name] = value
        elif isinstance(merged[name], Mapping) and isinstance(value, Mapping):
            merged[name] = merge(merged[name], value)
        else:
            raise ValueError(f"both trees hold {name!r}, needed disjoint leaves")
    return merged


def count(tree: Tree) -> int:
    """Number of scalars in all leaves."""
    return sum(int(np.prod(np.shape(value))) for _, value in _leaves(tree))


def size_bytes(tree: Tree) -> int:
    """Bytes of all leaves; leaves may be arrays or shapes with a dtype."""
    return sum(
        int(np.prod(np.shape(value))) * np.dtype(value.dtype).itemsize for _, value in _leaves(tree)
    )
