"""Random graphs in the proportions of the paper's, drawn on the device that samples them."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32, Key

from bench.drawn_graph import SPAN, TIMED
from bench.mesh_shapes import TEXT_WIDTH
from star_jax.graph.engines.mesh.engine import MeshArrays
from star_jax.graph.engines.mesh.features import NodeArrays
from star_jax.graph.engines.mesh.topology import NO_TIME32, Edges, spread, type_places
from star_jax.graph.schema import GraphSchema, parse_key
from star_jax.graph.store import TIMED_BIT

_TRAIN = 1  # The split of all edges.


class _Columns(NamedTuple):
    """Of the edges into one node type."""

    sender: Array
    time: Array
    flags: Array


class _Relations(NamedTuple):
    """By column of the bounds."""

    mean: Float32[Array, " r"]  # Degree.
    senders: Int32[Array, " r"]  # Nodes of the sender type.
    timed: Array


def draw_arrays(
    schema: GraphSchema, degrees: dict[str, float], texts: tuple[str, ...], mesh: Mesh
) -> tuple[MeshArrays, int]:
    """What `MeshEngine` holds of a graph, on the one device of a mesh.

    Degrees are Poisson, ends uniform, and the timed edges of a row spread over the span. A relation
    and its reverse are drawn apart, which no sampler can tell.

    Args:
      schema: Of the graph.
      degrees: Edge key, reverses included, to its mean degree.
      texts: Node types whose nodes have one int8 vector each.
      mesh: Of one device.

    Returns:
      The arrays, and how many edges there are, reverses included.
    """
    keys = iter(jax.random.split(jax.random.key(0, impl="rbg"), 3 * len(schema.nodes)))
    drawn: dict[str, tuple[Array, _Relations]] = {}
    total = 0
    for name, place in type_places(schema, 1):
        relations = _relations(schema, degrees, place.columns)
        bounds = _bounds(next(keys), relations.mean, total, schema.nodes[name].count)
        drawn[name] = (bounds, relations)
        total = int(bounds[-1, -1])
    columns = _Columns(*(jnp.zeros(total, kind) for kind in (jnp.int32, jnp.int32, jnp.uint8)))
    for bounds, relations in drawn.values():
        count = int(bounds[-1, -1]) - int(bounds[0, 0])
        columns = _filled(columns, next(keys), bounds, relations, count)
    edges = Edges(
        bounds=jnp.concatenate([bounds.reshape(-1) for bounds, _ in drawn.values()]),
        sender=columns.sender,
        time=columns.time,
        removed=jnp.zeros(0, jnp.int32),
        weight=jnp.ones(total, jnp.float32),
        flags=columns.flags,
    )
    nodes = {
        name: _features(next(keys), node.count, tuple(node.categorical.values()), name in texts)
        for name, node in schema.nodes.items()
    }
    return spread(lambda _: MeshArrays(edges, nodes), mesh), total


def _relations(
    schema: GraphSchema, degrees: dict[str, float], columns: tuple[str, ...]
) -> _Relations:
    ends = [parse_key(key) for key in columns]
    return _Relations(
        mean=jnp.asarray([degrees[key] for key in columns], jnp.float32),
        senders=jnp.asarray([schema.nodes[sender].count for sender, _, _ in ends], jnp.int32),
        timed=jnp.asarray([relation.removeprefix("rev_") in TIMED for _, relation, _ in ends]),
    )


@partial(jax.jit, static_argnames="count")
def _bounds(
    key: Key[Array, ""], mean: Float32[Array, " r"], first: int, count: int
) -> Int32[Array, "N r_plus_1"]:
    """Normal where Poisson is as good as that, for its speed."""
    rough = mean + jnp.sqrt(mean) * jax.random.normal(key, (count, mean.size))
    exact = _poisson(key, jnp.minimum(mean, 30.0), count)
    degree = jnp.where(mean > 30, jnp.maximum(jnp.round(rough), 0), exact).astype(jnp.int32)
    stops = first + jnp.cumsum(degree.reshape(-1)).reshape(degree.shape)
    return jnp.concatenate([stops[:, :1] - degree[:, :1], stops], axis=1)


def _poisson(key: Key[Array, ""], mean: Float32[Array, " r"], count: int) -> Array:
    """By inversion: how many steps of the distribution lie below a uniform number."""
    uniform = jax.random.uniform(key, (count, mean.size))

    def step(k: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        degree, chance, below = state
        return degree + (uniform >= below), chance * mean / (k + 1), below + chance * mean / (k + 1)

    chance = jnp.exp(-mean)
    start = (jnp.zeros(uniform.shape), chance, chance)
    return jax.lax.fori_loop(0, 64, step, start)[0]


@partial(jax.jit, static_argnames="count", donate_argnums=0)
def _filled(
    columns: _Columns,
    key: Key[Array, ""],
    bounds: Int32[Array, "N r_plus_1"],
    relations: _Relations,
    count: int,
) -> _Columns:
    """The columns with the edges of one type written in."""
    first = bounds[0, 0]
    begin = bounds[:, :-1].reshape(-1) - first
    size = (bounds[:, 1:] - bounds[:, :-1]).reshape(-1)
    opened = jnp.zeros(count, jnp.int32).at[begin].add(1, mode="drop")
    row = jnp.cumsum(opened) - 1
    of = row % relations.mean.size
    place = jnp.arange(count) - begin[row]
    ends, moments = jax.random.uniform(key, (2, count))
    timed = relations.timed[of]
    time = ((place + moments) / size[row] * SPAN).astype(jnp.int32)
    drawn = _Columns(
        sender=jnp.minimum(ends * relations.senders[of], relations.senders[of] - 1),
        time=jnp.where(timed, time, NO_TIME32),
        flags=jnp.where(timed, _TRAIN | TIMED_BIT, _TRAIN),
    )
    return _Columns(
        *(
            jax.lax.dynamic_update_slice(whole, part.astype(whole.dtype), (first,))
            for whole, part in zip(columns, drawn, strict=True)
        )
    )


@partial(jax.jit, static_argnums=(1, 2, 3))
def _features(
    key: Key[Array, ""], count: int, cardinalities: tuple[int, ...], has_text: bool
) -> NodeArrays:
    keys = jax.random.split(key, 2)
    shape = (count, TEXT_WIDTH) if has_text else (1, 0)
    most = jnp.asarray(cardinalities or (1,), jnp.int32)
    codes = jax.random.randint(keys[1], (count, len(cardinalities)), 0, most[: len(cardinalities)])
    return NodeArrays(
        text_bounds=jnp.arange(count + 1) if has_text else jnp.zeros(count + 1, jnp.int32),
        text_time=jnp.full(shape[0], NO_TIME32),
        texts=jax.lax.bitcast_convert_type(jax.random.bits(keys[0], shape, jnp.uint8), jnp.int8),
        text_scale=jnp.full(shape[0], 1 / 127 / 16),
        categorical=codes,
        dense=jnp.zeros((count, 0)),
        seen=jnp.ones(count, bool),
    )
