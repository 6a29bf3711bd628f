"""The link model: features, an encoder per role, a decoder per task."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from star_jax.graph.batches import (
    ROLES,
    HostOrDevice,
    Neighbours,
    NodeTable,
    PairBatch,
    Role,
    Subgraph,
)
from star_jax.graph.compatible import MAPS, CompatibleMap, CompatibleMaps, Mapped
from star_jax.graph.decoders import Decoder, DecoderConfig, SeedVectors
from star_jax.graph.encoder import GraphEncoder, GraphEncoderConfig, num_rounds
from star_jax.graph.features import FeatureConfig, NodeFeatures, SliceLayer
from star_jax.graph.heads import Classifier, NodeClasses, NodeHead, NodeTask, held_out
from star_jax.graph.identities import batch_rows, by_table, with_rows
from star_jax.graph.match import MatchEncoder, MatchLayout
from star_jax.shapes import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphModelConfig:
    """The whole model."""

    features: FeatureConfig = dataclasses.field(default_factory=FeatureConfig)
    encoder: GraphEncoderConfig = dataclasses.field(default_factory=GraphEncoderConfig)
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    node_tasks: tuple[NodeTask, ...] = ()  # Columns that are predicted beside the links.
    kernel_l2: float = 1e-5  # Times the sum of squares of the encoders' kernels (Keras reading).


@dataclasses.dataclass(frozen=True)
class LinkTask:
    """One link objective between two node types."""

    name: str
    sender: str
    receiver: str


class GraphBatch(NamedTuple):
    """One step: every task's pairs. All arrays have a leading axis, one entry per device.

    Each device has subgraphs of its own, so that indices never point into another's rows.
    """

    tasks: dict[str, PairBatch]
    mask: Bool[HostOrDevice, "shards B"]  # The tasks' masks side by side.
    texts: PyTree = None  # What the numbers in node tables count, until it is encoded; or None.

    def with_tables(self, change: Callable[[str, NodeTable], NodeTable]) -> "GraphBatch":
        """As that of `Subgraph`, for both roles of all tasks."""
        tasks = {}
        for name, pairs in self.tasks.items():
            roles: dict[str, Any] = {
                role: getattr(pairs, role).with_tables(change) for role in ROLES
            }
            tasks[name] = pairs._replace(**roles)
        return self._replace(tasks=tasks)


class GraphOutputs(NamedTuple):
    """What a batch gives."""

    links: dict[str, Float[Array, "..."]]  # By task, as its decoder gives them.
    classes: dict[str, NodeClasses]  # By name of a head, of all seeds of its type.
    mapped: Mapped  # Where there are maps to an older version.


class GraphModel(nn.Module):
    """Pairs to logits.

    Attributes:
      config: Options.
      features: One entry per node type.
      keys: Every edge key, reverses included.
      tasks: The links to predict.
      heads: The columns of nodes to predict.
      maps: To vectors of an older version, of the seeds that have some.
      axis_name: Mapped axis over which batch statistics are summed; None for none.
    """

    config: GraphModelConfig
    features: tuple[NodeFeatures, ...]
    keys: tuple[str, ...]
    tasks: tuple[LinkTask, ...]
    heads: tuple[NodeHead, ...] = ()
    maps: tuple[CompatibleMap, ...] = ()
    axis_name: str | None = None

    def setup(self) -> None:
        """Makes the parts; which of them a subgraph needs shows when it comes."""
        dim, activation = self.config.encoder.dim, self.config.features.activation
        self.slices = {
            each.node_type: SliceLayer(each, dim, activation, name=f"features_{each.node_type}")
            for each in self.features
        }
        if self.config.encoder.dual:
            self.sender_encoder = self._encoder("sender")
            self.receiver_encoder = self._encoder("receiver")
        else:
            self.sender_encoder = self.receiver_encoder = self._encoder("sender")
        layout = match_layout(self.config.decoder, self.features)
        self.match = None if layout is None else MatchEncoder(layout)
        self.compatible = CompatibleMaps(self.maps, name=MAPS)
        self.decoders = {
            task.name: Decoder(self.config.decoder, layout, name=f"decoder_{task.name}")
            for task in self.tasks
        }
        self.classifiers = {
            head.task.name: Classifier(
                self.config.decoder,
                head.num_classes,
                name=f"classifier_{head.task.node_type}_{head.task.column}",
            )
            for head in self.heads
        }

    def __call__(self, batches: dict[str, PairBatch], train: bool) -> GraphOutputs:
        """Logits of every task's pairs and of their nodes' classes; seeds in older spaces."""
        links: dict[str, Float[Array, "B ..."]] = {}
        mapped: Mapped = {}
        classes: dict[str, list[NodeClasses]] = {head.task.name: [] for head in self.heads}
        for task in self.tasks:
            batch = batches[task.name]
            ends = self._ends(task, batch, train)
            links[task.name] = self._decode_pairs(task.name, batch, ends, train)
            mapped[task.name] = self._mapped(task, ends)
            for role, vectors in ends.items():
                for head in self.heads:
                    if head.task.node_type == getattr(task, role):
                        nodes = getattr(batch, role).nodes[head.task.node_type]
                        classes[head.task.name].append(self._classes(head, nodes, vectors, train))
        joined = {
            name: jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)
            for name, found in classes.items()
        }
        return GraphOutputs(links, joined, mapped)

    def logits_of(self, task: str, batch: PairBatch, train: bool) -> Float[Array, "B ..."]:
        """Logits of one task's pairs."""
        ends = next(each for each in self.tasks if each.name == task)
        return self._decode_pairs(task, batch, self._ends(ends, batch, train), train)

    def classify(
        self, head: str, embedding: Float[HostOrDevice, "S E"], train: bool
    ) -> Float[Array, "S C"]:
        """Logits of the classes of nodes."""
        return self.classifiers[head](embedding, train)

    def embed(self, subgraph: Subgraph, role: Role, seed_type: str, train: bool) -> SeedVectors:
        """One row per seed, padding seeds included; no match part for what is no end of a task."""
        encoder = self.sender_encoder if role == "sender" else self.receiver_encoder
        subgraph = with_rows(subgraph, self.features)
        hidden = {name: self.slices[name](nodes) for name, nodes in subgraph.nodes.items()}
        embedding = encoder(subgraph, hidden, seed_type, train)
        partners = self._partners(role, seed_type)
        if self.match is None or not partners:
            return SeedVectors(embedding, jnp.zeros((embedding.shape[0], 0)))
        return SeedVectors(embedding, self.match(subgraph, seed_type, partners))

    def decode(
        self, task: str, sender: SeedVectors, receiver: SeedVectors, train: bool
    ) -> Float[Array, "B ..."]:
        """Logits of pairs of rows."""
        return self.decoders[task](sender, receiver, train)

    def _ends(self, task: LinkTask, batch: PairBatch, train: bool) -> dict[Role, SeedVectors]:
        return {
            role: self.embed(getattr(batch, role), role, getattr(task, role), train)
            for role in ROLES
        }

    def _decode_pairs(
        self, task: str, batch: PairBatch, ends: Mapping[Role, SeedVectors], train: bool
    ) -> Float[Array, "B ..."]:
        senders = ends["sender"].take(jnp.asarray(batch.sender_row))
        return self.decode(
            task, senders, ends["receiver"].take(jnp.asarray(batch.receiver_row)), train
        )

    def _mapped(
        self, task: LinkTask, ends: Mapping[Role, SeedVectors]
    ) -> dict[str, Float[Array, "S E"]]:
        return {
            each.table: self.compatible(each.name, ends[each.role].embedding)
            for each in self.maps
            if each.node_type == getattr(task, each.role)
        }

    def _classes(
        self, head: NodeHead, nodes: NodeTable, vectors: SeedVectors, train: bool
    ) -> NodeClasses:
        num_seeds = vectors.embedding.shape[0]
        node, mask = (jnp.asarray(part)[:num_seeds] for part in (nodes.node, nodes.mask))
        label = jnp.asarray(nodes.categorical)[:num_seeds, head.number].astype(jnp.int32)
        counts = mask & (label > 0) & ~held_out(head.task, node)
        logits = self.classify(head.task.name, vectors.embedding, train)
        return NodeClasses(logits, label, counts)

    def _partners(self, role: Role, seed_type: str) -> tuple[str, ...]:
        """Node types that the tasks link seeds of a role to."""
        other = "receiver" if role == "sender" else "sender"
        linked = {getattr(t, other) for t in self.tasks if getattr(t, role) == seed_type}
        return tuple(sorted(linked))

    def _encoder(self, role: Role) -> GraphEncoder:
        seed_types, name = seed_types_of(self, role), encoder_name(self, role)
        return GraphEncoder(self.config.encoder, self.keys, seed_types, self.axis_name, name=name)


def encoder_name(model: GraphModel, role: Role) -> str:
    """Where the parameters of a role's encoder stand; both roles may share them."""
    return f"encoder_{role}" if model.config.encoder.dual else "encoder"


def rounds_of(model: GraphModel, role: Role, node_type: str) -> int:
    """Layers of a role's encoder that update nodes of a type."""
    seed_types = seed_types_of(model, role)
    return num_rounds(model.keys, seed_types, model.config.encoder.layers, node_type)


def seed_types_of(model: GraphModel, role: Role) -> tuple[str, ...]:
    """What the encoder of a role takes through all of its layers."""
    roles = (role,) if model.config.encoder.dual else ROLES
    return tuple(sorted({getattr(task, each) for task in model.tasks for each in roles}))


def match_layout(config: DecoderConfig, features: tuple[NodeFeatures, ...]) -> MatchLayout | None:
    """Signatures for the types with identities, text parts where there are texts."""
    if not config.match.enabled:
        return None
    return MatchLayout(
        signatures=tuple((f.node_type, f.num_identities) for f in features if f.num_identities),
        width=config.match.width,
        text_width=min(config.match.text_width, max(f.text_size for f in features)),
    )


def init_model(model: GraphModel, seed: int) -> tuple[PyTree, PyTree]:
    """Parameters and running statistics of a fresh model; they depend on no batch."""
    key = jax.random.key(seed, impl="rbg")  # One kernel per array compiles twice as fast with it.
    smallest = _smallest_subgraph(model)
    zero = jnp.zeros(1, jnp.int32)
    pairs = PairBatch(smallest, smallest, zero, zero, jnp.zeros(1), jnp.ones(1, bool))
    batches = {task.name: pairs for task in model.tasks}
    init = jax.jit(model.clone(axis_name=None).init, static_argnames="train")
    variables = init(key, batches, train=False)
    return variables["params"], variables.get("batch_stats", {})


def _smallest_subgraph(model: GraphModel) -> Subgraph:
    """One node of every type and one edge of every relation at every hop."""
    layers = model.config.encoder.layers
    rows = jnp.zeros(layers, jnp.int32)
    nodes = {
        each.node_type: NodeTable(
            node=rows,
            mask=jnp.ones(layers, bool),
            seen=jnp.ones(layers, bool),
            text_row=rows,
            texts=jnp.zeros((1, each.text_size)),
            categorical=jnp.zeros((layers, len(each.cardinalities)), jnp.int32),
            dense=jnp.zeros((layers, each.dense_size)),
        )
        for each in model.features
    }
    edge = Neighbours(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool), *jnp.zeros((2, 1, 1)))
    return Subgraph(nodes, tuple(dict.fromkeys(model.keys, edge) for _ in range(layers)))


def rows_read(model: GraphModel) -> Callable[[GraphBatch], tuple[GraphBatch, PyTree]]:
    """What an update by rows asks of a batch.

    Returns:
      Batch -> the batch that reads from the taken rows alone, and which rows to take, by table.
    """
    signatures = match_layout(model.config.decoder, model.features) is not None

    def read(batch: GraphBatch) -> tuple[GraphBatch, PyTree]:
        tasks, rows = batch_rows(batch.tasks, model.features)
        return batch._replace(tasks=tasks), by_table(rows, signatures=signatures)

    return read
