"""What a graph holds: node types with features, edge types, and the reverse of each."""

import dataclasses
from typing import Literal

EdgeKind = Literal["interaction", "attribute"]
_SEPARATOR = "__"
_REVERSE = "rev_"
PPR = "ppr"  # The relation of neighbours by personalised PageRank, which are no edges.


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeType:
    """One node type and its feature columns.

    Attributes:
      count: Nodes; their global indices are 0 .. count - 1.
      categorical: Column -> number of codes, the code 0 of missing or unknown values included.
      dense: Columns of numbers.
    """

    count: int
    categorical: dict[str, int]
    dense: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.count < 2**31:
            raise ValueError(f"count is {self.count}, needed 0 <= count < 2^31 (indices are int32)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgeType:
    """Edges of one relation, pointing from the sender to the receiver."""

    sender: str
    relation: str
    receiver: str
    kind: EdgeKind

    def __post_init__(self) -> None:
        for name in (self.sender, self.relation, self.receiver):
            if not name or _SEPARATOR in name:
                raise ValueError(f"edge type has the name {name!r}, needed one without '__'")

    @property
    def key(self) -> str:
        """The name of its files, fanouts and weights."""
        return _SEPARATOR.join((self.sender, self.relation, self.receiver))

    @property
    def reverse(self) -> "EdgeType":
        """The same edges, pointing the other way."""
        relation = (
            self.relation.removeprefix(_REVERSE)
            if self.relation.startswith(_REVERSE)
            else _REVERSE + self.relation
        )
        return EdgeType(
            sender=self.receiver, relation=relation, receiver=self.sender, kind=self.kind
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphSchema:
    """Node types by name and the edge types as imported, without their reverses."""

    nodes: dict[str, NodeType]
    edges: tuple[EdgeType, ...]

    def __post_init__(self) -> None:
        keys = [edge.key for edge in self.edges]
        if len(set(keys)) < len(keys):
            raise ValueError(f"edge types {keys} repeat a name, needed distinct ones")
        for edge in self.edges:
            if edge.relation.startswith(_REVERSE):
                raise ValueError(f"{edge.key} begins with 'rev_', a prefix kept for reverse edges")
            if edge.relation == PPR:
                raise ValueError(f"{edge.key} has the name of a sampler, needed another one")
            for node_type in (edge.sender, edge.receiver):
                if node_type not in self.nodes:
                    raise ValueError(
                        f"{edge.key} joins {node_type!r}, needed one of {sorted(self.nodes)}"
                    )

    def all_edges(self) -> tuple[EdgeType, ...]:
        """Every edge type and its reverse."""
        return tuple(each for edge in self.edges for each in (edge, edge.reverse))

    def into(self, receiver: str) -> tuple[EdgeType, ...]:
        """Edge types, reverses included, that end in `receiver`, in the order of its rows."""
        found = (edge for edge in self.all_edges() if edge.receiver == receiver)
        return tuple(sorted(found, key=lambda edge: edge.key))


def parse_key(key: str) -> tuple[str, str, str]:
    """Sender type, relation and receiver type of an edge key."""
    parts = key.split(_SEPARATOR)
    if len(parts) != 3:
        raise ValueError(f"edge key is {key!r}, needed 'sender__relation__receiver'")
    return parts[0], parts[1], parts[2]


def reverse_key(key: str) -> str:
    """The key of the same edges pointing the other way."""
    sender, relation, receiver = parse_key(key)
    edge = EdgeType(sender=sender, relation=relation, receiver=receiver, kind="attribute")
    return edge.reverse.key
