"""The engine that samples on the host, from memory-mapped files, ahead of the device."""

from star_jax.graph.batches import Subgraph
from star_jax.graph.engines.protocol import Question
from star_jax.graph.samplers.calibrate import SeedBatch
from star_jax.graph.samplers.sample import StageSeconds, Walk, sample
from star_jax.graph.store import GraphStore


class HostEngine:
    """As `GraphEngine`; the program gets finished subgraphs."""

    def __init__(self, store: GraphStore) -> None:
        """Samples from a store."""
        self._store = store
        self._seconds = StageSeconds()

    def prepare(self, question: Question, batch: SeedBatch, key: int) -> tuple[Subgraph, int]:
        """Samples."""
        subgraph, stats = sample(
            self._store,
            seed_type=question.seed_type,
            visible_splits=question.visible_splits,
            fanouts=dict(question.budget.fanout),
            budget=question.budget,
            key=key,
            sampler=question.sampler,
            use_time=question.use_time,
            walk=self.walk(question),
            seconds=self._seconds,
            **batch._asdict(),
        )
        return subgraph, stats.num_dropped

    def walk(self, question: Question) -> Walk | None:
        """What draws the edges, if not the sampler itself."""
        del question
        return None

    def take_seconds(self) -> dict[str, float]:
        """Of all threads together."""
        return self._seconds.take()
