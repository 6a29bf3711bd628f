"""Questions to the shard that knows the answer, and back: two all-to-all exchanges."""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from star_jax.graph.engines.mesh.topology import Places
from star_jax.shapes import PyTree

Answer = TypeVar("Answer", bound=PyTree)


def ask(
    answer: Callable[..., Answer],
    owner: Int32[Array, " Q"],
    question: PyTree,
    *,
    places: Places,
    slack: float,
) -> tuple[Answer, Int32[Array, ""]]:
    """Answers every question where its data is; inside `shard_map` if there are several shards.

    Args:
      answer: Questions to answers, row by row, on the shard that owns them. Rows of zeros come
        beside the real ones.
      owner: Shard of each question; `num_shards` or more: nobody is asked.
      question: Arrays with one row per question.
      places: Of the graph: its shards, and the axes they are split over.
      slack: A shard takes so many times its even share of a device's questions.

    Returns:
      The answers, zeros where nobody was asked or too many asked one shard; and how many of the
      latter there were.
    """
    num_questions, num_shards = owner.shape[0], places.num_shards
    if num_shards == 1:
        asked = owner < 1
        return _where(asked, answer(question)), jnp.int32(0)
    room = min(num_questions, math.ceil(slack * num_questions / num_shards))
    order = jnp.argsort(owner, stable=True)
    start = jnp.searchsorted(owner[order], jnp.arange(num_shards))
    place = jnp.arange(num_questions) - start[jnp.minimum(owner[order], num_shards - 1)]
    fits = (owner[order] < num_shards) & (place < room)
    slot = jnp.where(fits, owner[order] * room + place, num_shards * room)

    def send(rows: Array) -> Array:
        buffer = jnp.zeros((num_shards * room, *rows.shape[1:]), rows.dtype)
        return _swap(buffer.at[slot].set(rows[order], mode="drop"), places)

    found = jax.tree.map(lambda rows: _swap(rows, places), answer(jax.tree.map(send, question)))
    back = jnp.zeros(num_questions, jnp.int32).at[order].set(slot.astype(jnp.int32))
    got = back < num_shards * room
    found = jax.tree.map(lambda rows: rows[jnp.minimum(back, num_shards * room - 1)], found)
    return _where(got, found), jnp.sum((owner < num_shards) & ~got)


def _swap(rows: Array, places: Places) -> Array:
    """Part i goes to shard i; what comes from shard i is part i."""
    parts = rows.reshape(places.num_shards, rows.shape[0] // places.num_shards, *rows.shape[1:])
    return jax.lax.all_to_all(parts, places.axes, 0, 0).reshape(rows.shape)


def _where(kept: Array, tree: Answer) -> Answer:
    def masked(rows: Array) -> Array:
        return jnp.where(kept.reshape(-1, *[1] * (rows.ndim - 1)), rows, jnp.zeros((), rows.dtype))

    return jax.tree.map(masked, tree)
