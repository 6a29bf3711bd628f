"""Which engine draws the neighbourhoods of a training."""

import dataclasses
import logging
from typing import Literal

from jax.sharding import Mesh

from star_jax.graph.engines.deepgnn import engine as deepgnn_engine
from star_jax.graph.engines.host import HostEngine
from star_jax.graph.engines.mesh import engine as mesh_engine
from star_jax.graph.engines.mesh.features import TextPrecision
from star_jax.graph.engines.mesh.topology import shaped, spread
from star_jax.graph.engines.protocol import GraphEngine
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.store import GraphStore
from star_jax.parallel.rules import device_bytes

_log = logging.getLogger(__name__)
_WHY_REFUSED = {"mesh": mesh_engine.why_refused, "deepgnn": deepgnn_engine.why_refused}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where neighbourhoods come from.

    Attributes:
      kind: `host`: files of any size that the host maps, sampled ahead by threads. `mesh`: the
        graph lies on the devices, spread over them, and the compiled step samples. `deepgnn`:
        the graph engine of the paper, an optional extra, in the place of `host`.
      folder: In the working directory, for `deepgnn`: the graph in its format, written when a
        training first asks for it.
      graph_axes: Which axes of the mesh the graph is split over; for `mesh`. `data+fsdp`: all that
        batches are split over, the least memory. `fsdp`: each row of devices along it holds a
        graph of its own, and requests stay in the row. The samples are the same.
      text_precision: Of text vectors on the devices; for `mesh`.
      slack: Room in the exchange between devices: so many times an even share; for `mesh`. What
        does not fit is left out and counted as `num_cut`.
    """

    kind: Literal["host", "mesh", "deepgnn"] = "host"
    folder: str = "deepgnn"
    graph_axes: Literal["data+fsdp", "fsdp"] = "data+fsdp"
    text_precision: TextPrecision = "float32"
    slack: float = 2.0

    def __post_init__(self) -> None:
        if self.slack < 1:
            raise ValueError(f"slack {self.slack} must be >= 1")


def why_refused(config: EngineConfig, sampler: SamplerConfig) -> str | None:
    """Why an engine cannot draw as the sampler says; None if it can."""
    refused = _WHY_REFUSED.get(config.kind)
    return None if refused is None else refused(sampler)


def make_engine(
    config: EngineConfig, store: GraphStore, mesh: Mesh, *, planned: bool = False
) -> GraphEngine:
    """What draws the neighbourhoods of a training.

    Args:
      config: Which one.
      store: The graph.
      mesh: The devices.
      planned: They are not there: what would lie on them is shapes.

    Raises:
      InputError: The graph does not fit the engine, or a package is missing.
    """
    if config.kind == "host":
        return HostEngine(store)
    if config.kind == "deepgnn":
        return deepgnn_engine.DeepGnnEngine(store, store.folder.parent / config.folder)
    engine = mesh_engine.MeshEngine(
        store,
        mesh,
        axes=tuple(config.graph_axes.split("+")),
        text_precision=config.text_precision,
        slack=config.slack,
        place=shaped if planned else spread,
    )
    if planned:
        return engine
    num_bytes = device_bytes(engine.arrays)
    _log.info("graph on %d device(s), %.1f MB on each", mesh.size, num_bytes / 1e6)
    return engine
