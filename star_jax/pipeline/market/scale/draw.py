"""Draws a streamed market into a run's folder, by one process or several, here or on more machines.

Blocks lie under `W/.market` until tables and text vectors are there: a run that was ended goes on
with those that are missing.
"""

import dataclasses
import functools
import json
import logging
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from star_jax import artefacts
from star_jax.pipeline.market.scale.blocks import BlockDrawer
from star_jax.pipeline.market.scale.join import Joiner
from star_jax.pipeline.market.scale.size import Block, LargeMarketConfig, blocks_of, drawn_of
from star_jax.pipeline.progress import Work
from star_jax.pipeline.tables.read import KIND

_log = logging.getLogger(__name__)


def draw_large_market(config: LargeMarketConfig, workdir: Path) -> None:
    """Writes `tables` and `text_embeddings`; as one of several shards, its blocks alone."""
    name = artefacts.content_digest(json.dumps(drawn_of(config)).encode())[:16]
    scratch = workdir / ".market"
    parts = scratch / name
    blocks = blocks_of(config)
    own = blocks if config.shard is None else blocks[config.shard :: config.num_shards]
    work = Work("drawing the market", len(own), "blocks")
    for _ in _drawn(config, own, parts):
        work.advance(1)
    if config.shard is not None:
        _log.info("drew %d of %d blocks", len(own), len(blocks))
        return
    joiner = Joiner(config, parts, blocks)
    with artefacts.writing(workdir / "text_embeddings", "text_embeddings") as partial:
        counts = joiner.text_embeddings(partial)
        artefacts.set_meta(partial, {"model": name, "num_texts": counts})
    with artefacts.writing(workdir / "tables", KIND) as partial:
        meta = joiner.tables(partial)
        artefacts.set_meta(partial, dataclasses.asdict(meta))
    artefacts.remove(scratch)
    nodes = sum(node.count for node in meta.node_types.values())
    edges = sum(edge.count for edge in meta.edge_types)
    _log.info("drew a market of %d nodes and %d edges", nodes, edges)


def _drawn(config: LargeMarketConfig, blocks: list[Block], parts: Path) -> Iterator[None]:
    if config.num_processes == 1:
        yield from (_draw(config, parts, block) for block in blocks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.num_processes, mp_context=context) as pool:
        yield from pool.map(functools.partial(_draw, config, parts), blocks)


def _draw(config: LargeMarketConfig, parts: Path, block: Block) -> None:
    alone = dataclasses.replace(config, num_processes=1, shard=None, num_shards=1)
    _drawer(alone).draw(block, parts)


@functools.lru_cache(maxsize=1)
def _drawer(config: LargeMarketConfig) -> BlockDrawer:
    """What a process measures once."""
    return BlockDrawer(config)
