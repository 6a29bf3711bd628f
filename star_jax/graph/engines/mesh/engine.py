"""The engine that samples inside the compiled program, on one device or many."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int32, UInt32

from star_jax.graph.batches import HostOrDevice, Subgraph, padded
from star_jax.graph.engines.mesh.expand import SeedRows, Walk, expand
from star_jax.graph.engines.mesh.features import (
    AS_OF,
    NodeArrays,
    TextPrecision,
    place_features,
    tables_of,
)
from star_jax.graph.engines.mesh.topology import Edges, Place, Places, place_edges, spread
from star_jax.graph.engines.mesh.visibility import Rule, Viewers
from star_jax.graph.engines.protocol import Question
from star_jax.graph.samplers.calibrate import SeedBatch
from star_jax.graph.samplers.gather import known_texts
from star_jax.graph.samplers.layout import layout_of
from star_jax.graph.samplers.sample import hides
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.samplers.search import places_in_runs
from star_jax.graph.schema import GraphSchema
from star_jax.graph.store import GraphStore
from star_jax.parallel.mesh import ROW_AXES

_KINDS = ("uniform", "weighted", "top_k", "last_n", "full")


class MeshArrays(NamedTuple):
    """A graph on the devices of a mesh: in every array the shards follow each other.

    A device reads its part as it lies. An axis of length one in front would cost a TPU a copy of
    the whole graph, in the layout without that axis.
    """

    edges: Edges
    nodes: dict[str, NodeArrays]


class Seeds(NamedTuple):
    """The seeds of one device."""

    rows: SeedRows  # Groups are counted from 0 on every device.
    version: Int32[HostOrDevice, " S"]  # Of its texts: one that an event points to, -1, or AS_OF.


class Request(NamedTuple):
    """Whose neighbourhoods are wanted; in a batch with a leading axis, one entry per part of it."""

    seeds: Seeds
    viewers: Viewers  # The groups of these seeds.
    key: UInt32[HostOrDevice, " 2"]  # Upper and lower half of that of the step.
    question: Question  # Static: another one is another compiled program.


@dataclasses.dataclass(frozen=True)
class MeshProgram:
    """The compiled part: it knows what is static about a graph, and can be compiled without one.

    Attributes:
      schema: Of the graph.
      places: Where it stands on the devices.
      mesh: The devices.
      slack: As in `ask`.
    """

    schema: GraphSchema
    places: Places
    mesh: Mesh
    slack: float

    def subgraphs(
        self, arrays: MeshArrays, prepared: Request
    ) -> tuple[Subgraph, Int32[Array, " shards"]]:
        """Samples. Text vectors are not de-duplicated: row i shows vector i.

        Raises:
          ValueError: The sampler's kind exists on the host alone.
        """
        walk = self._walk(prepared.question)
        sample = jax.shard_map(
            lambda arrays, request: jax.tree.map(
                lambda leaf: leaf[None],
                _sample(walk, arrays, jax.tree.map(lambda leaf: leaf[0], request)),
            ),
            mesh=self.mesh,
            in_specs=(PartitionSpec(self.places.axes), PartitionSpec(ROW_AXES)),
            out_specs=PartitionSpec(ROW_AXES),
            check_vma=False,
        )
        return sample(arrays, prepared)

    def _walk(self, question: Question) -> Walk:
        sampler = question.sampler
        if refused := why_refused(sampler):
            raise ValueError(refused)
        return Walk(
            layout=layout_of(question.budget),
            places=self.places,
            schema=self.schema,
            seed_type=question.seed_type,
            rule=Rule(question.visible_splits, question.use_time, sampler.max_age or 0),
            sampler=sampler,
            hidden=hides(question.edge_keys),
            slack=self.slack,
        )


class MeshEngine:
    """A `ProgramEngine` that draws the very samples that `HostEngine` draws.

    Attributes:
      arrays: The graph on the devices.
    """

    def __init__(
        self,
        store: GraphStore,
        mesh: Mesh,
        *,
        axes: tuple[str, ...] = ROW_AXES,
        text_precision: TextPrecision = "float32",
        slack: float = 2.0,
        place: Place = spread,
    ) -> None:
        """Copies the graph to the devices, one shard each.

        Args:
          store: The graph.
          mesh: The devices.
          axes: As in `Places`: all that a batch is split over, or some of them.
          text_precision: As in `place_features`.
          slack: As in `ask`.
          place: As in `place_edges`.

        Raises:
          InputError: The times span more than 32 bits, or a shard has too many edges.
        """
        self._store = store
        edges, places = place_edges(store, mesh, axes, place)
        nodes = place_features(store, mesh, places, text_precision, place)
        self.arrays = MeshArrays(edges, nodes)
        self._program = MeshProgram(store.meta.schema, places, mesh, slack)

    def prepare(self, question: Question, batch: SeedBatch, key: int) -> tuple[Request, int]:
        """A few numbers per seed.

        Raises:
          ValueError: The question has no room for the batch, or an event points to a text of
            another node.
        """
        store, seed_type = self._store, question.seed_type
        times = np.asarray(batch.group_time, np.int64)
        shared = known_texts(
            store, seed_type, batch.seeds, times[batch.groups], batch.seed_text_row
        )
        size = question.budget.block(seed_type, 0)[1]
        rows = SeedRows(
            node=_padded(batch.seeds, size, "seeds"),
            group=_padded(batch.groups, size, "seeds"),
            real=np.arange(size) < len(batch.seeds),
            shared=_padded(shared, size, "seeds"),
        )
        version = _padded(_versions(store, seed_type, batch), size, "seeds")
        clock = _padded(self._program.places.clock(times), question.num_groups, "groups")
        viewers = Viewers(clock, *_hidden(batch, question))
        halves = np.asarray([key >> 32, key & 0xFFFFFFFF], np.uint32)
        return Request(Seeds(rows, version), viewers, halves, question), 0

    @property
    def num_shards(self) -> int:
        """Parts that the graph is split into; there may be copies."""
        return self._program.places.num_shards

    def take_seconds(self) -> dict[str, float]:
        """Nothing: the program samples and gathers."""
        return {}

    def subgraphs(
        self, arrays: MeshArrays, prepared: Request
    ) -> tuple[Subgraph, Int32[Array, " shards"]]:
        """As `MeshProgram.subgraphs`."""
        return self._program.subgraphs(arrays, prepared)


def why_refused(sampler: SamplerConfig) -> str | None:
    """What the program cannot draw, as an error says it; None for what it can."""
    if sampler.kind in _KINDS:
        return None
    return (
        f"sampler.kind {sampler.kind!r} with engine.kind=mesh, needed one of "
        f"{', '.join(_KINDS)}, or engine.kind=host"
    )


def _sample(walk: Walk, arrays: MeshArrays, request: Request) -> tuple[Subgraph, Int32[Array, ""]]:
    """What one device does; it talks to the others."""
    viewers, rows, num_shards = request.viewers, request.seeds.rows, walk.places.num_shards
    if num_shards > 1:
        axes = walk.places.axes
        first = jax.lax.axis_index(axes) * viewers.time.shape[0]
        rows = rows._replace(group=rows.group + first)
        viewers = Viewers(*(jax.lax.all_gather(part, axes, tiled=True) for part in viewers))
    expanded = expand(walk, arrays.edges, viewers, jnp.asarray(request.key), rows)
    tables, num_refused = tables_of(
        arrays.nodes,
        expanded.nodes,
        viewers,
        walk.seed_type,
        jnp.asarray(request.seeds.version),
        places=walk.places,
        slack=walk.slack,
    )
    return Subgraph(tables, expanded.hops), expanded.num_dropped + num_refused


def _padded(values: np.ndarray, size: int, name: str) -> np.ndarray:
    if len(values) > size:
        raise ValueError(f"{len(values)} {name}, needed at most {size}")
    return padded(values.astype(np.bool_ if values.dtype == np.bool_ else np.int32), size)


def _hidden(batch: SeedBatch, question: Question) -> tuple[np.ndarray, np.ndarray]:
    """The supervised pairs of each group side by side."""
    exclude = batch.exclude
    group = np.asarray(exclude.group, np.int64)
    order = np.argsort(group, kind="stable")
    place = places_in_runs(group[order])
    if len(place) and place.max() >= question.pairs_per_group:
        raise ValueError(
            f"a group has {place.max() + 1} supervised pairs, needed at most "
            f"{question.pairs_per_group}"
        )
    sides = []
    for side in (exclude.sender, exclude.receiver):
        table = np.full((question.num_groups, question.pairs_per_group), -1, np.int32)
        table[group[order], place] = side[order]
        sides.append(table)
    return sides[0], sides[1]


def _versions(store: GraphStore, seed_type: str, batch: SeedBatch) -> Int32[np.ndarray, " S"]:
    """Which of its node's versions each seed's text is."""
    pointed = batch.seed_text_row
    if pointed is None or not store.text_size(seed_type):
        return np.full(len(batch.seeds), AS_OF, np.int32)
    versions = store.text_versions[seed_type]
    begin, end = (np.asarray(versions.bounds[batch.seeds + i], np.int64) for i in (0, 1))
    found = np.full(len(batch.seeds), -1, np.int32)
    for number in range(int((end - begin).max(initial=0))):  # Of one node: a few.
        open_ = np.flatnonzero((found < 0) & (begin + number < end))
        hits = open_[versions.text[begin[open_] + number] == pointed[open_]]
        found[hits] = number
    if (lost := np.flatnonzero((pointed >= 0) & (found < 0))).size:
        raise ValueError(
            f"{seed_type} {batch.seeds[lost[0]]} is given text {pointed[lost[0]]}, which is no "
            "text of it"
        )
    return found
