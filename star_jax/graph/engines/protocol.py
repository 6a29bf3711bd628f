"""What training asks of an engine, and what every engine answers."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Int

from star_jax.graph.batches import Budget, Subgraph
from star_jax.graph.samplers.calibrate import SeedBatch
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.shapes import PyTree


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What holds for all batches of one kind of seeds; in a tree of arrays it is no array.

    Attributes:
      seed_type: Node type of the seeds.
      visible_splits: As in `sample`, like `sampler` and `use_time`.
      budget: Padded sizes; its widths are the neighbours to draw.
      edge_keys: Of `Exclusion`.
      num_groups: The most groups of a batch.
      pairs_per_group: The most supervised pairs of a group.
    """

    seed_type: str
    visible_splits: int
    budget: Budget
    sampler: SamplerConfig
    use_time: bool
    edge_keys: tuple[str, ...]
    num_groups: int
    pairs_per_group: int


@runtime_checkable
class GraphEngine(Protocol):
    """Draws the neighbourhoods of seeds.

    Every engine sees the same edges under the same rules. Engines whose draws are counter-based
    (`host` and `mesh`) give the same samples for the same key.
    """

    def prepare(self, question: Question, batch: SeedBatch, key: int) -> tuple[Any, int]:
        """The part of a batch that is made on the host, in many threads at once.

        Args:
          question: The sizes of all arrays follow from it.
          batch: Seeds of one device.
          key: From `sampling_key`.

        Returns:
          A subgraph, or what a `ProgramEngine` makes one of; and how many edges and texts did not
          fit the budget.
        """
        ...

    def take_seconds(self) -> dict[str, float]:
        """Thread time of `prepare` since the last call, by stage; empty if nothing is timed."""
        ...


@runtime_checkable
class Program(Protocol):
    """Draws inside the compiled program."""

    def subgraphs(self, arrays: PyTree, prepared: Any) -> tuple[Subgraph, Int[Array, " shards"]]:
        """What `prepare` left to do, inside the compiled program.

        Args:
          arrays: Those of the engine.
          prepared: Of all devices, one entry each.

        Returns:
          The subgraphs of all devices, one entry each, and per device how many edges, requests
          and features did not fit.
        """
        ...


@runtime_checkable
class ProgramEngine(GraphEngine, Program, Protocol):
    """An engine that leaves the drawing to the compiled program."""

    @property
    def arrays(self) -> PyTree:
        """What the compiled program reads of the graph; handed to it as an argument."""
        ...
