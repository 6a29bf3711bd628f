"""Padded subgraphs: the static shapes that leave the sampler and enter the compiled step."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from star_jax.graph.schema import parse_key

HostOrDevice = Array | np.ndarray  # The sampler fills these on the host, the step reads them.

Role = Literal["sender", "receiver"]
ROLES: tuple[Role, ...] = ("sender", "receiver")


class NodeTable(NamedTuple):
    """The nodes of one type: the seeds' rows, then those first reached at hop 1, at hop 2, ..."""

    node: Int[HostOrDevice, " R"]  # Global index; 0 on padding.
    mask: Bool[HostOrDevice, " R"]
    seen: Bool[HostOrDevice, " R"]  # Enough edges that training may see end in it.
    text_row: Int[HostOrDevice, " R"]  # Row of `texts`; -1 where no text was known at the time.
    # Each vector once per batch; E is 0 without text features. Where texts are encoded with the
    # batch: until then numbers, one per row.
    texts: Num[HostOrDevice, "U E"]
    categorical: Int[HostOrDevice, "R C"]
    dense: Float[HostOrDevice, "R D"]
    # Rows of the identity tables whose sum is the node's; None: the one of its number.
    identity: Int[HostOrDevice, "R reads"] | None = None


class Neighbours(NamedTuple):
    """The sampled edges of one relation, a row per node of the receiver type in one hop's block."""

    # Rows of the sender type's `NodeTable`; 0 on padding.
    index: Int[HostOrDevice, "Q k"]  # pyright: ignore[reportIncompatibleMethodOverride] # a field
    mask: Bool[HostOrDevice, "Q k"]
    weight: Float[HostOrDevice, "Q k"]
    age: Float[HostOrDevice, "Q k"]  # log(1 + time since the edge / age unit); 0 without a time.


class Subgraph(NamedTuple):
    """What one role's encoder reads.

    `hops[h]` holds the edges into the nodes first reached at hop h (0 for seeds) by edge key; it
    has a key exactly where `Budget` gives the receiver type rows at that hop and the key a fanout.
    """

    nodes: dict[str, NodeTable]
    hops: tuple[dict[str, Neighbours], ...]

    def with_tables(self, change: Callable[[str, NodeTable], NodeTable]) -> "Subgraph":
        """The same with other node tables; `change` takes a type and its table."""
        nodes = {name: change(name, table) for name, table in self.nodes.items()}
        return self._replace(nodes=nodes)


class OldVectors(NamedTuple):
    """What an older version has of the seeds of one role, in their order."""

    vectors: Float[HostOrDevice, "S E"]  # Zeros where it has nothing.
    known: Bool[HostOrDevice, " S"]  # False for nodes that it lacks, and for padding.


class PairBatch(NamedTuple):
    """Labelled pairs; each role has its own subgraph, so that a dual encoder is exact.

    An engine that samples inside the program has its request in place of the subgraph until then.
    """

    sender: Subgraph
    receiver: Subgraph
    sender_row: Int[HostOrDevice, " B"]  # Row of the pair's seed.
    receiver_row: Int[HostOrDevice, " B"]
    label: Float[HostOrDevice, " B"]
    mask: Bool[HostOrDevice, " B"]
    # Whether the row's sender and the column's receiver are linked; where the decoder asks.
    linked: Bool[HostOrDevice, "B B"] | None = None
    # Log of the share of the row's receiver among those of all batches; where the loss asks.
    log_q: Float[HostOrDevice, " B"] | None = None
    # By table of embeddings, where the training stays compatible with an older version.
    old: dict[str, OldVectors] | None = None


def padded(array: np.ndarray, size: int) -> np.ndarray:
    """The array with zeros behind it."""
    rest = np.zeros((size - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate([array, rest])


def width_class(width: int) -> int:
    """0 for tables up to 8 wide, 1 for 9 to 32, 2 for 33 to 128, and so on.

    What is done for one class at once is fewer, larger operations, which compile faster; padding
    to the widest of a class costs less than a factor of four, and nothing where it counts: wide
    tables are many because a total was shared out evenly.
    """
    return max(width - 1, 3).bit_length() // 2 - 1


@dataclasses.dataclass(frozen=True)
class Budget:
    """The padded sizes of a `Subgraph`: what the step is compiled for.

    Attributes:
      rows: Per node type, the rows of every hop's block; types that no hop can reach are absent.
      fanout: Per edge key, neighbours per node at every hop.
      texts: Per node type, distinct text vectors.
    """

    rows: tuple[tuple[str, tuple[int, ...]], ...]
    fanout: tuple[tuple[str, tuple[int, ...]], ...]
    texts: tuple[tuple[str, int], ...]

    @property
    def num_hops(self) -> int:
        """Hops of neighbours; the seeds alone are none."""
        return len(self.rows[0][1]) - 1

    def block(self, node_type: str, hop: int) -> tuple[int, int]:
        """First row and number of rows of a hop's block in the table of `node_type`."""
        sizes = dict(self.rows).get(node_type, (0,) * (self.num_hops + 1))
        return sum(sizes[:hop]), sizes[hop]


class EdgeList(NamedTuple):
    """One relation's sampled edges as a list, for the reference path over segments."""

    sender_row: Int[np.ndarray, " M"]
    receiver_row: Int[np.ndarray, " M"]
    mask: Bool[np.ndarray, " M"]


def edge_lists(subgraph: Subgraph, budget: Budget) -> tuple[dict[str, EdgeList], ...]:
    """Unrolls every neighbour table row by row; padding edges stay, masked.

    Returns:
      Per hop and edge key, rows of the sender type's and of the receiver type's `NodeTable`.
    """
    return tuple(
        {key: _edge_list(key, neighbours, hop, budget) for key, neighbours in tables.items()}
        for hop, tables in enumerate(subgraph.hops)
    )


def _edge_list(key: str, neighbours: Neighbours, hop: int, budget: Budget) -> EdgeList:
    index = np.asarray(neighbours.index)
    start, num_rows = budget.block(parse_key(key)[2], hop)
    receiver = np.repeat(np.arange(start, start + num_rows, dtype=np.int32), index.shape[1])
    return EdgeList(index.reshape(-1), receiver, np.asarray(neighbours.mask).reshape(-1))
