"""What a graph training reads: its batches and its validation, for any number of neighbours."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh

from star_jax.config import InputError
from star_jax.graph.engines.protocol import GraphEngine
from star_jax.graph.store import GraphStore
from star_jax.pipeline.graph_adaptive import GraphValidate
from star_jax.pipeline.graph_compatible import OldVersion
from star_jax.pipeline.graph_loader import Groups
from star_jax.pipeline.graph_model import GraphModelFile
from star_jax.pipeline.graph_programs import RowShards
from star_jax.pipeline.graph_streams import (
    BatchMaker,
    TaskStream,
    make_batches,
    make_streams,
    stacked,
)
from star_jax.pipeline.graph_text_validation import EncodedTexts
from star_jax.pipeline.graph_training import GraphTrainConfig, sampling_of, sees_own_rows
from star_jax.pipeline.graph_validation import GraphValidation
from star_jax.pipeline.hard_negatives import beside_tables, read_hard_negatives
from star_jax.pipeline.tables.read import TablesMeta, read_pairs
from star_jax.train.loop import Batches


class GraphData:
    """Batches and validation, both with as many neighbours per node and hop as asked for."""

    def __init__(
        self,
        config: GraphTrainConfig,
        workdir: Path,
        file: GraphModelFile,
        store: GraphStore,
        meta: TablesMeta,
        shards: int,
        engine: GraphEngine,
        texts: EncodedTexts | None = None,
        own: Sequence[int] | None = None,
    ) -> None:
        """Reads the pairs.

        Args:
          config: What is trained.
          workdir: Of the tables.
          file: The model.
          store: The graph.
          meta: Of the tables.
          shards: As in `BatchMaker`.
          engine: Draws the neighbourhoods.
          texts: Given, those of the batches are encoded.
          own: As in `BatchMaker`.

        Raises:
          InputError: Mined negatives are asked for, and missing or of a task that is not trained.
        """
        self._texts, self._own = texts, own
        self._config, self._workdir, self._file = config, workdir, file
        self._store, self._meta, self._shards, self._engine = store, meta, shards, engine
        self._old = None
        if config.compatible is not None and file.compatible is not None:
            self._old = OldVersion(config.compatible, file.compatible, workdir / "tables")
        main = next(iter(meta.tasks))
        if config.hard_negatives and main not in {task.name for task in file.tasks}:
            raise InputError(
                f"hard_negatives {config.hard_negatives} are of task {main}, which is not among "
                f"tasks {', '.join(config.tasks)}; add it, or leave them out"
            )
        self._groups = {}
        for task in file.tasks:
            pairs = read_pairs(workdir / "tables", task.name, "train")
            if config.hard_negatives and task.name == main:
                mined = read_hard_negatives(workdir, main)
                pairs = beside_tables(pairs, mined, config.hard_negatives)
            self._groups[task.name] = Groups(pairs)

    def batches(self, size: int) -> Batches:
        """Endless batches of all tasks; the examples and their order do not depend on the size."""
        streams = self._streams(size)
        budgets = {name: stream.budgets() for name, stream in streams.items()}
        maker = BatchMaker(streams, budgets, self._shards, self._own)
        if self._texts is None:
            one, alike = maker, lambda steps: [maker(step) for step in steps]
        else:
            one = self._texts.batches(maker)
            alike = one.alike
        exchange = self._config.exchange
        return make_batches(one if exchange is None else stacked(alike, exchange.every))

    @property
    def steps_per_epoch(self) -> float:
        """Steps whose batches hold every group of the largest task once."""
        streams = self._streams(self._config.fanouts.largest)
        batches = max(stream.steps_per_epoch for stream in streams.values()) / self._shards
        return batches / self._config.batches_per_step

    def validation(self, size: int, mesh: Mesh) -> GraphValidate:
        """Validation on the same pairs whatever the size, its rows split over a mesh."""
        config, file = self._config, self._sized(size)
        validation = GraphValidation(
            file.build(),
            self._store,
            file,
            self._workdir / "tables",
            RowShards(mesh, whole=not sees_own_rows(config)),
            max_pairs=config.validation_pairs,
            seed=config.seed,
            resolve=None if self._texts is None else self._texts.current,
            old=self._old,
        )
        return validation if self._texts is None else self._texts.validation(validation)

    def _streams(self, size: int) -> dict[str, TaskStream]:
        config = self._config
        return make_streams(
            self._sized(size),
            self._groups,
            self._store,
            hides={name: tuple(task.edge_types) for name, task in self._meta.tasks.items()},
            num_negatives=config.num_negatives if config.negatives == "uniform" else None,
            know_links=config.model.decoder.kind == "softmax",
            correct=config.popularity_correction,
            batch_size=config.batch_size / self._shards,
            size_power=config.size_power,
            seed=config.seed,
            engine=self._engine,
            old=self._old,
        )

    def _sized(self, size: int) -> GraphModelFile:
        sampling = sampling_of(self._config, self._store.meta, self._file.tasks, size)
        return dataclasses.replace(self._file, sampling=sampling)
