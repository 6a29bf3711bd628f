"""What two nodes have in common: per node type, how alike the neighbours of the two are.

An attention encoder mixes all neighbours of a node into one vector; that two nodes point at the
*same* company or place is easy to lose there, and slow to learn. The match part keeps the
neighbours apart by type: every attribute node owns a signature (a learned vector that starts
random, so that distinct nodes start nearly orthogonal), and a seed is described by the mean
signature of its neighbours (`near`) and of the neighbours of its past partners (`far`), with text
vectors averaged alike. The cosine of two means of random signatures estimates the cosine of the
two bags of ids (Johnson-Lindenstrauss) before any training; training then moves the signatures.
"""

import dataclasses
import math
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from star_jax.graph.batches import Neighbours, Subgraph
from star_jax.graph.features import look_up, text_of
from star_jax.graph.schema import parse_key
from star_jax.graph.segments import hop_blocks

_TINY = 1e-12  # A square below this is that of no vector.


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """The match part of a model.

    Attributes:
      enabled: Off, the decoder sees the two embeddings alone.
      width: Of a signature; the noise of a cosine is about 1 / sqrt(width).
      text_width: Wider text vectors are projected to this width.
    """

    enabled: bool = True
    width: int = 128
    text_width: int = 384

    def __post_init__(self) -> None:
        for name in ("width", "text_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, needed at least 1")


@dataclasses.dataclass(frozen=True)
class MatchLayout:
    """Where the parts of a match vector stand, the same for both roles.

    Attributes:
      signatures: (node type, number of rows) of every type with signatures.
      width: Of the parts that are means of signatures.
      text_width: Of the text parts; 0 without text features.
    """

    signatures: tuple[tuple[str, int], ...]
    width: int
    text_width: int

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """Name and width of every part, in order."""
        bags = [(f"{kind}/{t}", self.width) for t, _ in self.signatures for kind in ("near", "far")]
        texts = [("text/own", self.text_width), ("text/far", self.text_width)]
        return (*bags, *(texts if self.text_width else ()))

    @property
    def num_cosines(self) -> int:
        """Cosines of `MatchFeatures`; its other columns are presence bits."""
        return len(self.parts)

    def split(self, vectors: Float[Array, "B X"]) -> dict[str, Float[Array, "B _"]]:
        """The parts of match vectors by name."""
        found, start = {}, 0
        for name, width in self.parts:
            found[name] = vectors[:, start : start + width]
            start += width
        return found


class MatchEncoder(nn.Module):
    """Seeds to match vectors: parts of length 1, or zeros where a seed has nothing of that kind.

    Attributes:
      layout: Widths, and node types with signatures.
    """

    layout: MatchLayout

    def setup(self) -> None:
        """One table of signatures per type, and the projection of wide texts."""
        width = self.layout.width
        init = nn.initializers.normal(1.0 / math.sqrt(width))
        self.tables = {
            name: self.param(f"signature_{name}", init, (count, width))
            for name, count in self.layout.signatures
        }
        self.text = nn.Dense(self.layout.text_width, use_bias=False)

    def __call__(
        self, subgraph: Subgraph, seed_type: str, partners: tuple[str, ...]
    ) -> Float[Array, "S X"]:
        """One match vector per seed row.

        Args:
          subgraph: Around the seeds.
          seed_type: Their node type.
          partners: Node types that seeds of this role are linked to: `far` goes through them.
        """
        blocks = hop_blocks(subgraph, seed_type)
        num_seeds, width = blocks[seed_type][0], self.layout.width
        parts: dict[str, Float[Array, "S _"]] = {}
        inner: dict[str, list[Float[Array, "_ K"]]] = {
            name: [] for name in partners if name in subgraph.nodes
        }
        for name, table in self.tables.items():
            rows = {}
            if name in subgraph.nodes:
                rows = {name: look_up(table, subgraph.nodes[name])}
            parts[f"near/{name}"] = _mean(subgraph, 0, seed_type, rows, num_seeds, width)
            for partner, found in inner.items():
                found.append(_all_hops(subgraph, partner, rows, blocks[partner], width))
        if self.tables:  # One gather of all types side by side.
            joined = {name: jnp.concatenate(found, axis=1) for name, found in inner.items()}
            far = _mean(subgraph, 0, seed_type, joined, num_seeds, width * len(self.tables))
            for name, part in zip(self.tables, jnp.split(far, len(self.tables), 1), strict=True):
                parts[f"far/{name}"] = part
        if self.layout.text_width:
            texts = {
                name: self._texts(subgraph, name)
                for name in {seed_type, *partners}
                if name in subgraph.nodes
            }
            parts["text/own"] = texts[seed_type][:num_seeds]
            known = {name: texts[name] for name in partners if name in texts}
            parts["text/far"] = _mean(
                subgraph, 0, seed_type, known, num_seeds, self.layout.text_width
            )
        empty = jnp.zeros((num_seeds, 0))
        return jnp.concatenate(
            [empty, *(unit(parts[name]) for name, _ in self.layout.parts)], axis=1
        )

    def _texts(self, subgraph: Subgraph, node_type: str) -> Float[Array, "R X"]:
        """Unit vectors; zeros where a node, or its whole type, has no text."""
        nodes = subgraph.nodes[node_type]
        rows = text_of(nodes, nodes.node.shape[0])
        width = self.layout.text_width
        if rows.shape[1] == 0:
            return jnp.zeros((rows.shape[0], width))
        return unit(self.text(rows)) if rows.shape[1] > width else rows


class MatchFeatures(nn.Module):
    """Pairs of match vectors to what a decoder reads.

    Attributes:
      layout: That of the encoder which made the vectors.
    """

    layout: MatchLayout

    def __call__(
        self, sender: Float[Array, "B X"], receiver: Float[Array, "B X"]
    ) -> tuple[Float[Array, "B P"], Float[Array, "B C"]]:
        """Compares what the sender and its past partners have with what the receiver has.

        The past partners of the receiver are left out: they tell how many links it got before,
        which a receiver in the training window has and a new one never.

        Returns:
          Elementwise products of the text parts times sqrt(width), so that entries are O(1); and
          the cosines, followed by a presence bit for every part of the sender.
        """
        u, v = self.layout.split(sender), self.layout.split(receiver)
        pairs = [
            (u[f"{kind}/{name}"], v[f"near/{name}"])
            for name, _ in self.layout.signatures
            for kind in ("near", "far")
        ]
        products = [jnp.zeros((sender.shape[0], 0))]
        if self.layout.text_width:
            texts = [(u["text/own"], v["text/own"]), (u["text/far"], v["text/own"])]
            products += [math.sqrt(self.layout.text_width) * a * b for a, b in texts]
            pairs += texts
        # As products of matrices: scored as a grid, all pairs of a part are one.
        cosines = [jnp.einsum("bx,bx->b", a, b) for a, b in pairs]
        present = [jnp.any(part != 0, axis=1).astype(jnp.float32) for part in u.values()]
        columns = [*cosines, *present]
        empty = jnp.zeros((sender.shape[0], 0))
        return (
            jnp.concatenate(products, axis=1),
            jnp.concatenate([empty, *(column[:, None] for column in columns)], axis=1),
        )


def unit(vectors: Float[Array, "B X"]) -> Float[Array, "B X"]:
    """Vectors of length 1; zeros stay zero, and so do their gradients."""
    square = jnp.sum(vectors**2, axis=1, keepdims=True)
    some = square > _TINY
    return jnp.where(some, vectors / jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)


def _all_hops(
    subgraph: Subgraph,
    receiver: str,
    rows: Mapping[str, Float[Array, "_ K"]],
    blocks: tuple[int, ...],
    width: int,
) -> Float[Array, "R K"]:
    """For every row of a type, the direction of its neighbours' mean; zeros beyond the last hop."""
    num_rows = subgraph.nodes[receiver].node.shape[0]
    means = [
        _mean(subgraph, hop, receiver, rows, size, width) for hop, size in enumerate(blocks) if size
    ]
    beyond = jnp.zeros((num_rows - sum(blocks), width))
    return unit(jnp.concatenate([*means, beyond]))


def _mean(
    subgraph: Subgraph,
    hop: int,
    receiver: str,
    rows: Mapping[str, Float[Array, "_ K"]],
    num_rows: int,
    width: int,
) -> Float[Array, "Q K"]:
    """Mean of the neighbours' rows over all relations that arrive from their types."""
    sums, counts = jnp.zeros((num_rows, width)), jnp.zeros((num_rows, 1))
    for key, table in sorted(subgraph.hops[hop].items()):
        sender, _, end = parse_key(key)
        if end == receiver and sender in rows:
            value, count = _sum(table, rows[sender])
            sums, counts = sums + value, counts + count[:, None]
    return sums / jnp.maximum(counts, 1.0)


def _sum(
    table: Neighbours, rows: Float[Array, "R K"]
) -> tuple[Float[Array, "Q K"], Float[Array, " Q"]]:
    mask = jnp.asarray(table.mask)
    picked = rows[jnp.asarray(table.index)] * mask[..., None]
    return jnp.sum(picked, axis=1), jnp.sum(mask, axis=1).astype(jnp.float32)
