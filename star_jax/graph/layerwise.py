"""The encoder layer by layer: what the rows of all nodes are made of, and the three programs.

In a sampled subgraph, layer l computes of a node met at hop h

    S(h, l + 1)_v = layer_l(S(h, l)_v, {S(h + 1, l)_u : u drawn for v with the fanouts of hop h})

down to the features S(h, 0). Here such a `State` is computed for all nodes of a type before any
that reads it, so that the work grows with the number of layers, not with the fanouts to its power.
The hop counts where it decides how many neighbours are drawn: two layers have three states of a
seed type, and two where the hops draw alike, or all there is.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from star_jax.graph.batches import HostOrDevice, Neighbours, NodeTable, Subgraph
from star_jax.graph.encoder import EncoderEnding, GraphLayer, receiving_types
from star_jax.graph.features import SliceLayer
from star_jax.graph.identities import name_rows
from star_jax.graph.messages import Hidden
from star_jax.graph.model import GraphModel, Role, encoder_name, rounds_of, seed_types_of
from star_jax.graph.samplers.sample import Fanouts
from star_jax.graph.schema import parse_key
from star_jax.shapes import PyTree


@dataclasses.dataclass(frozen=True)
class State:
    """The rows of all nodes of a type after some layers; equal ones have equal rows.

    Attributes:
      node_type: Of the nodes.
      layer: How many layers are behind it; 0: the features.
      role: Whose encoder; "sender" where both roles share it, and for the features.
      fanout: Edge key -> neighbours that its last layer draws.
      own: The same nodes one layer before; None for the features.
      senders: The neighbours one layer before, a state for each of their types.
    """

    node_type: str
    layer: int
    role: Role = "sender"
    fanout: tuple[tuple[str, int], ...] = ()
    own: "State | None" = None
    senders: tuple["State", ...] = ()

    @property
    def made_of(self) -> tuple["State", ...]:
        """The states that its last layer reads."""
        return () if self.own is None else (self.own, *self.senders)

    def __str__(self) -> str:
        layer = f"layer {self.layer} of {self.role}s" if self.layer else "features"
        return f"{self.node_type} {layer}"


def outputs_of(
    model: GraphModel, role: Role, node_type: str, fanouts: Fanouts
) -> tuple[State, ...]:
    """What `ending_of` reads: the last state of a type, or all of them for jumping knowledge.

    A type that is no end of a task begins at the hop where training meets it.

    Args:
      model: The link model.
      role: Of the seeds.
      node_type: Of the seeds.
      fanouts: Of the role, for all hops.
    """
    config = model.config.encoder
    rounds = rounds_of(model, role, node_type)
    joined = config.skip == "jumping_knowledge" and node_type in seed_types_of(model, role)
    states = _States(model, role, fanouts)
    return tuple(
        states.of(node_type, layer, config.layers - rounds)
        for layer in range(0 if joined else rounds, rounds + 1)
    )


class _States:
    """The states of one encoder and the fanouts of one role."""

    def __init__(self, model: GraphModel, role: Role, fanouts: Fanouts) -> None:
        self._fanouts = {key: fanouts[key] for key in sorted(fanouts)}
        self._role: Role = role if model.config.encoder.dual else "sender"
        self._made: dict[tuple[str, int, int], State] = {}

    def of(self, node_type: str, layer: int, hop: int) -> State:
        """S(hop, layer) of a type."""
        key = (node_type, layer, hop)
        if key not in self._made:
            self._made[key] = self._new(node_type, layer, hop)
        return self._made[key]

    def _new(self, node_type: str, layer: int, hop: int) -> State:
        if not layer:
            return State(node_type, 0)
        into = tuple(
            (key, hops[hop])
            for key, hops in self._fanouts.items()
            if parse_key(key)[2] == node_type and hops[hop]
        )
        return State(
            node_type,
            layer,
            self._role,
            into,
            self.of(node_type, layer - 1, hop),
            tuple(
                self.of(name, layer - 1, hop + 1)
                for name in sorted({parse_key(key)[0] for key, _ in into})
            ),
        )


def in_order(states: Iterable[State]) -> list[State]:
    """The states and all that they are made of, each once, after those that it is made of."""
    found: dict[State, None] = {}

    def walk(state: State) -> None:
        if state not in found:
            for before in state.made_of:
                walk(before)
            found[state] = None

    for state in states:
        walk(state)
    return list(found)


def features_of(
    model: GraphModel, variables: PyTree, nodes: NodeTable, node_type: str
) -> Float[Array, "R D"]:
    """The rows of nodes before the first layer."""
    sizes = next(each for each in model.features if each.node_type == node_type)
    layer = SliceLayer(sizes, model.config.encoder.dim, model.config.features.activation)
    params = variables["params"][f"features_{node_type}"]
    return jnp.asarray(layer.apply({"params": params}, name_rows(nodes, sizes)))


def layer_of(
    model: GraphModel,
    variables: PyTree,
    own: Float[Array, "Q D"],
    senders: Hidden,
    tables: Mapping[str, Neighbours],
    *,
    role: Role,
    number: int,
    node_type: str,
) -> Float[Array, "Q D"]:
    """The rows of nodes after one more layer.

    Args:
      model: The link model.
      variables: Of the model.
      own: Rows of the nodes.
      senders: Node type -> rows that the tables point into.
      tables: Edge key -> neighbours of each node.
      role: Whose encoder.
      number: Of the layer, from 0 on.
      node_type: Of the nodes.
    """
    num_nodes = own.shape[0]
    hidden = {**senders, node_type: own}
    if node_type in senders:  # Met as neighbours, nodes may be in another state.
        hidden[node_type] = jnp.concatenate([own, senders[node_type]])
        tables = {
            key: table._replace(index=table.index + num_nodes)
            if parse_key(key)[0] == node_type
            else table
            for key, table in tables.items()
        }
    config = model.config.encoder
    types = receiving_types(model.keys, seed_types_of(model, role), config.layers)[number]
    params = variables["params"][encoder_name(model, role)][f"layer_{number}"]
    nodes = {name: _only_rows(rows.shape[0]) for name, rows in hidden.items()}
    made = GraphLayer(config, model.keys, types).apply(
        {"params": params}, Subgraph(nodes, (dict(tables),)), hidden, node_type, 1, False
    )
    assert isinstance(made, dict)
    return made[node_type]


def ending_of(
    model: GraphModel,
    variables: PyTree,
    outputs: Sequence[HostOrDevice],
    *,
    role: Role,
    node_type: str,
) -> Float[Array, "S E"]:
    """Embeddings of the seeds of a task; what is no end of one has none but its last output.

    Args:
      model: The link model.
      variables: Of the model.
      outputs: Rows of the nodes in the states of `outputs_of`.
      role: Whose encoder.
      node_type: Of the nodes.
    """
    if node_type not in seed_types_of(model, role):
        return jnp.asarray(outputs[-1])
    name = encoder_name(model, role)
    of_encoder = {kind: each[name] for kind, each in variables.items() if name in each}
    ending = EncoderEnding(model.config.encoder, node_type)
    return jnp.asarray(ending.apply(of_encoder, [jnp.asarray(rows) for rows in outputs]))


def _only_rows(num_rows: int) -> NodeTable:
    """Nodes of which a layer reads no more than how many there are."""
    rows, none = jnp.zeros(num_rows, jnp.int32), jnp.zeros((num_rows, 0))
    mask = jnp.ones(num_rows, bool)
    return NodeTable(rows, mask, mask, rows, jnp.zeros((0, 0)), none.astype(jnp.int32), none)
