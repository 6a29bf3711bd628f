"""The edges of a graph as device arrays, split by nodes over axes of a mesh, copied along others.

Node n lives on shard n modulo the number of shards, as its n // shards-th node, so that busy nodes
spread. Times become 32-bit differences from the earliest one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32, Float64, Int16, Int32, UInt8

from star_jax.config import InputError
from star_jax.graph.batches import HostOrDevice, padded
from star_jax.graph.samplers.picks.weighted import BITS
from star_jax.graph.schema import GraphSchema
from star_jax.graph.store import NOT_REMOVED, Adjacency, GraphStore, span_of
from star_jax.parallel.mesh import num_shards
from star_jax.shapes import NO_TIME

NO_TIME32 = int(np.iinfo(np.int32).min)
_NEVER32 = int(np.iinfo(np.int32).max)
_MOST = int(np.iinfo(np.int32).max)
_SUMS = ("digits", "exponent")


class Edges(NamedTuple):
    """All relations of all types, of one shard or one shard after the other."""

    bounds: Int32[HostOrDevice, " B"]  # Positions in the shard's arrays below; see `TypePlace`.
    sender: Int32[HostOrDevice, " M"]
    time: Int32[HostOrDevice, " M"]
    removed: Int32[HostOrDevice, " removable"]  # As in `Adjacency`: M, or none.
    weight: Float32[HostOrDevice, " M"]
    flags: UInt8[HostOrDevice, " M"]
    # `Adjacency.cumulative` as 0.digits times 2^exponent, cut to 31 bits; none if no type has it.
    digits: Int32[HostOrDevice, " M_weighted"]
    exponent: Int16[HostOrDevice, " M_weighted"]


@dataclasses.dataclass(frozen=True)
class TypePlace:
    """Where the bounds of one node type stand: those of local node i from `start + i * stride`."""

    start: int
    stride: int
    columns: tuple[str, ...]  # Edge keys, in the order of the bounds.


@dataclasses.dataclass(frozen=True)
class Clock:
    """Turns times of 64 bits into times of 32."""

    first: int

    def __call__(self, times: np.ndarray) -> Int32[np.ndarray, "*_"]:
        """Differences from the first; what is before it is just before it."""
        times = np.asarray(times, np.int64)
        since = np.clip(times, self.first - 1, self.first + _MOST - 1) - self.first
        return np.where(times == NO_TIME, NO_TIME32, since).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Places:
    """What is static about a graph on devices.

    Attributes:
      axes: Of the mesh, which the shards of the graph are split over; along the others of a batch
        there are copies, and requests stay among the devices that hold one copy.
      num_shards: Of the graph.
      types: By node type.
      clock: Of all times.
      age_unit: Of the ages of edges.
      longest: The most edges that a node has of one relation.
      weighted: Node types with edges into them that are not equally likely to be drawn by weight.
      most_texts: The most versions that the texts of a node have.
    """

    axes: tuple[str, ...]
    num_shards: int
    types: tuple[tuple[str, TypePlace], ...]
    clock: Clock
    age_unit: float
    longest: int
    most_texts: int
    weighted: tuple[str, ...]

    def of(self, node_type: str) -> TypePlace:
        """Where a type stands."""
        return dict(self.types)[node_type]


def place_edges(
    store: GraphStore, mesh: Mesh, axes: tuple[str, ...], place: "Place"
) -> tuple[Edges, Places]:
    """Puts the edges of a graph on all devices of a mesh, one shard each.

    Args:
      store: The graph.
      mesh: The devices.
      axes: As in `Places`.
      place: `spread`, or `shaped` where nothing shall be placed.

    Raises:
      InputError: Times span more than 32 bits, or a shard would hold more than 2^31 edges.
    """
    shards = num_shards(mesh, axes)
    texts = [np.diff(versions.bounds) for versions in store.text_versions.values()]
    places = Places(
        axes=axes,
        num_shards=shards,
        types=type_places(store.meta.schema, shards),
        clock=clock_of(store),
        age_unit=store.meta.age_unit,
        longest=max(store.meta.max_degree.values(), default=0),
        most_texts=max((int(counts.max(initial=0)) for counts in texts), default=0),
        weighted=tuple(name for name, each in store.adjacency.items() if len(each.cumulative)),
    )
    num_edges = max(_num_edges(store, shard, shards) for shard in range(shards))
    if num_edges > _MOST:
        raise InputError(
            f"a shard of the graph holds {num_edges} edges, needed at most {_MOST}: split it over "
            f"more than {shards} devices"
        )
    num_bounds = sum(
        place.stride * local_count(store.num_nodes[name], shards) for name, place in places.types
    )

    def shard(number: int) -> Edges:
        made = _shard(store, places, number)
        widths = dict.fromkeys(Edges._fields, max(num_edges, 1)) | {"bounds": num_bounds}
        widths |= dict.fromkeys(_left_out(store), 0)
        return Edges(
            **{name: padded(np.asarray(getattr(made, name)), n) for name, n in widths.items()}
        )

    return place(shard, mesh, axes), places


def spread(shard: Callable[[int], Any], mesh: Mesh, axes: tuple[str, ...]) -> Any:
    """Arrays of every shard one after the other, each on the devices that hold it.

    Args:
      shard: Number of a shard to a tree of arrays, of equal shapes for all. Every one that lies on
        a device of this process is made once.
      mesh: The devices.
      axes: Over these the shards follow each other; along the others they are copied.
    """
    where, shards = NamedSharding(mesh, PartitionSpec(axes)), num_shards(mesh, axes)
    holders: dict[int, list[Any]] = {}
    for device, index in where.addressable_devices_indices_map((shards,)).items():
        assert index is not None
        holders.setdefault(index[0].start or 0, []).append(device)
    placed = []
    for number, devices in holders.items():
        made = shard(number)
        placed += [
            jax.tree.map(lambda leaf, device=device: jax.device_put(leaf, device), made)
            for device in devices
        ]

    def joined(*parts: jax.Array) -> jax.Array:
        shape = (shards * parts[0].shape[0], *parts[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, where, list(parts))

    return jax.tree.map(joined, *placed)


def shaped(shard: Callable[[int], Any], mesh: Mesh, axes: tuple[str, ...]) -> Any:
    """As `spread`, of shapes and with nothing placed: what a step can be compiled for."""
    where, shards = NamedSharding(mesh, PartitionSpec(axes)), num_shards(mesh, axes)

    def joined(part: np.ndarray) -> jax.ShapeDtypeStruct:
        shape = (shards * part.shape[0], *part.shape[1:])
        return jax.ShapeDtypeStruct(shape, part.dtype, sharding=where)

    return jax.tree.map(joined, shard(0))


Place = Callable[[Callable[[int], Any], Mesh, tuple[str, ...]], Any]
"""`spread` or `shaped`."""


def local_count(num_nodes: int, num_shards: int) -> int:
    """Nodes of a type that a shard has room for."""
    return -(-num_nodes // num_shards)


def type_places(schema: GraphSchema, num_shards: int) -> tuple[tuple[str, TypePlace], ...]:
    """By node type, where its bounds stand on every shard."""
    found, start = [], 0
    for name, node in schema.nodes.items():
        keys = tuple(edge.key for edge in schema.into(name))
        found.append((name, TypePlace(start, len(keys) + 1, keys)))
        start += (len(keys) + 1) * local_count(node.count, num_shards)
    return tuple(found)


def clock_of(store: GraphStore) -> Clock:
    """Begins with the earliest time of an edge or a text.

    Raises:
      InputError: They span more than 32 bits.
    """
    found = [adjacency.time for adjacency in store.adjacency.values()]
    found += [versions.time for versions in store.text_versions.values()]
    for adjacency in store.adjacency.values():
        found.append(adjacency.removed[adjacency.removed != NOT_REMOVED])
    first, last = span_of(found)
    if last - first >= _MOST - 1:
        raise InputError(
            f"the times of the graph range from {first} to {last}, needed a span below 2^31 for "
            "an engine on devices; import them in a coarser unit"
        )
    return Clock(first)


def _num_edges(store: GraphStore, shard: int, num_shards: int) -> int:
    total = 0
    for adjacency in store.adjacency.values():
        bounds = adjacency.bounds[shard::num_shards]
        total += int((bounds[:, -1].astype(np.int64) - bounds[:, 0]).sum())
    return total


def _shard(store: GraphStore, places: Places, number: int) -> Edges:
    bounds: list[np.ndarray] = []
    parts: dict[str, list[np.ndarray]] = {name: [] for name in Edges._fields[1:]}
    start = 0
    for name, place in places.types:
        adjacency = store.adjacency[name]
        own = np.asarray(adjacency.bounds[number :: places.num_shards], np.int64)
        sizes = own[:, -1] - own[:, 0]
        first = start + np.cumsum(sizes) - sizes
        local = own - own[:, :1] + first[:, None]
        room = local_count(store.num_nodes[name], places.num_shards)
        rest = np.full((room - len(local), place.stride), start + int(sizes.sum()))
        bounds.append(np.concatenate([local, rest]).reshape(-1))
        positions = np.repeat(own[:, 0] - first, sizes) + start + np.arange(int(sizes.sum()))
        for field, values in _columns(adjacency, positions, places).items():
            parts[field].append(values)
        start += int(sizes.sum())
    joined = {field: np.concatenate(part) for field, part in parts.items()}
    joined |= {field: joined[field][:0] for field in _left_out(store)}
    return Edges(bounds=np.concatenate(bounds).astype(np.int32), **joined)


def _left_out(store: GraphStore) -> list[str]:
    """Columns that would say the same of all edges."""
    every = store.adjacency.values()
    found = [] if any(len(each.removed) for each in every) else ["removed"]
    return found if any(len(each.cumulative) for each in every) else [*found, *_SUMS]


def _columns(adjacency: Adjacency, positions: np.ndarray, places: Places) -> dict[str, np.ndarray]:
    removed = np.full(len(positions), _NEVER32, np.int32)
    if len(adjacency.removed):
        times = adjacency.removed[positions]
        removed = np.where(times == NOT_REMOVED, removed, places.clock(times)).astype(np.int32)
    sums = np.zeros(len(positions))
    if len(adjacency.cumulative):
        sums = adjacency.cumulative[positions]
    return {
        "sender": adjacency.sender[positions].astype(np.int32),
        "time": places.clock(adjacency.time[positions]),
        "removed": removed,
        "weight": adjacency.weight[positions].astype(np.float32),
        "flags": adjacency.flags[positions].astype(np.uint8),
        **dict(zip(_SUMS, digits_of(sums), strict=True)),
    }


def digits_of(
    sums: Float64[np.ndarray, " M"],
) -> tuple[Int32[np.ndarray, " M"], Int16[np.ndarray, " M"]]:
    """Numbers of 0 or more as `Edges.digits` and `Edges.exponent`."""
    part, exponent = np.frexp(sums)
    return np.ldexp(part, BITS).astype(np.int32), exponent.astype(np.int16)
