"""How big a streamed market is, and how it is parted into blocks."""

import dataclasses
import math
from typing import NamedTuple

from star_jax.pipeline.market.size import FLOORS, NODE_MILLIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class LargeMarketConfig:
    """A market of any size. Equal configs give equal bytes, however many processes draw it.

    Attributes:
      num_members: All other counts follow from it, in the paper's proportions.
      seed: Of everything.
      text_size: Width of the text vectors.
      block_nodes: Nodes of a block, and so what a process holds at a time.
      num_pairs: About as many training positives become pairs, each with a negative; a tenth as
        many of val and of test. A small market has fewer.
      num_processes: That draw blocks.
      shard: Of `num_shards`, whose blocks this run draws. None: all of them, then what was drawn
        is put together.
      num_shards: Runs that share the blocks, on machines that share the folder.
    """

    num_members: int = 4_930_000
    seed: int = 0
    text_size: int = 256
    block_nodes: int = 1 << 15
    num_pairs: int = 500_000
    num_processes: int = 2
    shard: int | None = None
    num_shards: int = 1

    def __post_init__(self) -> None:
        for name in ("text_size", "block_nodes", "num_pairs", "num_processes", "num_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}, needed 1 or more")
        if not 1_000 <= self.num_members < 2**31:
            raise ValueError(f"num_members {self.num_members}, needed 1000 to 2^31 - 1")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed}, needed 0 or more")
        if self.shard is not None and not 0 <= self.shard < self.num_shards:
            raise ValueError(f"shard {self.shard}, needed 0 to {self.num_shards - 1}")


def drawn_of(config: LargeMarketConfig) -> dict[str, int]:
    """All that decides the bytes of a market: not who draws it."""
    by_whom = ("num_processes", "shard", "num_shards")
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in by_whom}


class Block(NamedTuple):
    """Nodes `start` to `stop` of a type."""

    node_type: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.node_type}-{self.number:06d}"


def nodes_of(config: LargeMarketConfig) -> dict[str, int]:
    """Nodes by type; titles are those of the vocabulary."""
    share = config.num_members / NODE_MILLIONS["member"]
    counts = {
        name: max(round(millions * share), FLOORS.get(name, 1))
        for name, millions in NODE_MILLIONS.items()
    }
    return counts | {"title": FLOORS["title"]}


def blocks_of(config: LargeMarketConfig) -> list[Block]:
    """All blocks, type after type."""
    size = config.block_nodes
    return [
        Block(name, number, number * size, min((number + 1) * size, count))
        for name, count in nodes_of(config).items()
        for number in range(math.ceil(count / size))
    ]
