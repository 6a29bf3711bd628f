"""The programs of inference with a graph model: each device computes rows of its own.

A part is so many rows as one device computes at a time, with all they read. How rows are parted
does not depend on the mesh: what is drawn for a row, and what shares its sample, are the same on
every mesh. As many parts as the mesh splits rows into go through a program together, stacked along
a leading axis.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from star_jax.graph.batches import HostOrDevice, Neighbours, NodeTable, PairBatch, Subgraph
from star_jax.graph.decoders import SeedVectors
from star_jax.graph.layerwise import ending_of, features_of, layer_of
from star_jax.graph.model import GraphModel, Role
from star_jax.parallel import processes
from star_jax.parallel.mesh import ROW_AXES, num_row_shards
from star_jax.parallel.rules import batch_shardings, own_parts, put, put_own
from star_jax.shapes import PyTree

OfPart = Callable[..., PyTree]
"""(model, variables, part, **static) -> arrays; one of the functions of this module."""

_STATIC = ("model", "role", "node_type", "number", "task", "head")


class LayerRows(NamedTuple):
    """What `layer_of` reads of a batch of nodes."""

    own: Float[HostOrDevice, "Q D"]
    senders: Mapping[str, HostOrDevice]
    tables: Mapping[str, Neighbours]


def embed(
    model: GraphModel, variables: PyTree, part: Subgraph, *, role: Role, node_type: str
) -> SeedVectors:
    """Vectors of the seeds of a sample."""
    found = model.apply(variables, part, role, node_type, False, method="embed")
    assert isinstance(found, SeedVectors)
    return found


def decode(
    model: GraphModel, variables: PyTree, part: tuple[SeedVectors, SeedVectors], *, task: str
) -> Float[Array, " B"]:
    """Logits of pairs of vectors."""
    return jnp.asarray(model.apply(variables, task, *part, False, method="decode"))


def decode_grid(
    model: GraphModel, variables: PyTree, part: tuple[SeedVectors, SeedVectors], *, task: str
) -> Float[Array, "Q C"]:
    """Logits of every sender with every receiver; what only one of them decides is done once."""

    def logit(*ends: SeedVectors) -> Float[Array, ""]:
        rows = jax.tree.map(lambda row: row[None], ends)
        return decode(model, variables, rows, task=task)[0]

    return jax.vmap(jax.vmap(logit, (None, 0)), (0, None))(*part)


def pair_logits(
    model: GraphModel, variables: PyTree, part: PairBatch, *, task: str
) -> Float[Array, " B"]:
    """Logits of pairs, from the samples around their ends."""
    return jnp.asarray(model.apply(variables, task, part, False, method="logits_of"))


def classes(
    model: GraphModel, variables: PyTree, part: Float[HostOrDevice, "S E"], *, head: str
) -> Float[Array, "S C"]:
    """Probabilities of the classes of nodes, from their vectors."""
    logits = model.apply(variables, head, part, False, method="classify")
    return jax.nn.softmax(jnp.asarray(logits))


def features(
    model: GraphModel, variables: PyTree, part: NodeTable, *, node_type: str
) -> Float[Array, "R D"]:
    """Rows of nodes before the first layer."""
    return features_of(model, variables, part, node_type)


def layer(
    model: GraphModel,
    variables: PyTree,
    part: LayerRows,
    *,
    role: Role,
    number: int,
    node_type: str,
) -> Float[Array, "Q D"]:
    """Rows of nodes after one more layer."""
    own = jnp.asarray(part.own)
    senders = {name: jnp.asarray(rows) for name, rows in part.senders.items()}
    ends = {"role": role, "number": number, "node_type": node_type}
    return layer_of(model, variables, own, senders, part.tables, **ends)


def ending(
    model: GraphModel,
    variables: PyTree,
    part: Sequence[Float[HostOrDevice, "S D"]],
    *,
    role: Role,
    node_type: str,
) -> Float[Array, "S E"]:
    """Embeddings of nodes from their rows in the states that make them up."""
    return ending_of(model, variables, part, role=role, node_type=node_type)


@functools.cache
def program(of_part: OfPart, mesh: Mesh) -> jax.stages.Wrapped:
    """(model, variables, stacked parts, **static) -> what a function gives of each, stacked.

    Args:
      of_part: Of this module; its keywords are static.
      mesh: Where the variables lie; parts and results are split over its row axes.
    """

    def of_stack(model: GraphModel, variables: PyTree, parts: PyTree, **static: Any) -> PyTree:
        of_one = functools.partial(of_part, model, variables, **static)
        if num_row_shards(mesh) > 1:
            return jax.vmap(of_one)(parts)
        found = of_one(jax.tree.map(lambda array: array[0], parts))
        return jax.tree.map(lambda array: array[None], found)

    where = NamedSharding(mesh, PartitionSpec(ROW_AXES))
    return jax.jit(of_stack, static_argnames=_STATIC, out_shardings=where)


@runtime_checkable
class Rows(Protocol):
    """Where parts of rows go: `RowShards`, or what plans for it."""

    count: int
    own: list[int]

    def groups(self, total: int, size: int) -> Iterator[list[slice]]:
        """As `RowShards.groups`."""
        ...

    def run(
        self,
        of_part: OfPart,
        model: GraphModel,
        variables: PyTree,
        parts: Sequence[PyTree],
        **static: Any,
    ) -> PyTree:
        """As `RowShards.run`."""
        ...

    def agreed(self, value: int) -> int:
        """As `RowShards.agreed`."""
        ...


class RowShards:
    """Runs programs on a mesh, and says which rows this process makes for its devices.

    Attributes:
      mesh: The devices.
      count: Parts of a stack.
      own: Which of them this process makes.
    """

    def __init__(self, mesh: Mesh, *, whole: bool = False) -> None:
        """Of several processes whose devices the mesh has, each makes the parts of its own.

        Args:
          mesh: The devices.
          whole: Every process makes all parts.
        """
        self.mesh, self.count = mesh, num_row_shards(mesh)
        self.own = list(range(self.count)) if whole else own_parts(mesh)

    def groups(self, total: int, size: int) -> Iterator[list[slice]]:
        """Slices of rows, a part of at most `size` each; those behind the last row are empty."""
        parts = [slice(s, min(s + size, total)) for s in range(0, max(total, 1), size)]
        for first in range(0, len(parts), self.count):
            group = parts[first : first + self.count]
            yield group + [slice(total, total)] * (self.count - len(group))

    def run(
        self,
        of_part: OfPart,
        model: GraphModel,
        variables: PyTree,
        parts: Sequence[PyTree],
        **static: Any,
    ) -> PyTree:
        """What a function of this module gives of a stack of parts, on the host; all call it.

        Args:
          of_part: The function.
          model: Its model.
          variables: Of the model, on the mesh or on the host.
          parts: Host arrays of one shape, of the parts that this process makes.
          **static: Keywords of the function.
        """
        made = program(of_part, self.mesh)(model, variables, self._placed(parts), **static)
        return jax.tree.map(processes.fetched, made)

    def agreed(self, value: int) -> int:
        """The greatest value of all processes that make parts of the mesh; all call it."""
        return value if len(self.own) == self.count else int(processes.greatest(value))

    def _placed(self, parts: Sequence[PyTree]) -> PyTree:
        stacked = jax.tree.map(_stacked, *parts)
        if len(self.own) < self.count:
            return put_own(stacked, self.mesh)
        return put(stacked, batch_shardings(stacked, self.mesh))


def _stacked(first: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    return np.stack([first, *rest]) if rest else np.asarray(first)[None]
