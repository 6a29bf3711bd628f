"""The update of a graph training, of shapes."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from star_jax.config import InputError
from star_jax.graph.engines.protocol import ProgramEngine
from star_jax.graph.model import GraphModel, init_model
from star_jax.parallel.mesh import num_row_shards
from star_jax.parallel.rules import batch_shardings, device_bytes, placed
from star_jax.pipeline.graph_data import GraphData
from star_jax.pipeline.graph_engines import make_engine
from star_jax.pipeline.graph_model import open_training_store
from star_jax.pipeline.graph_streams import count_pairs
from star_jax.pipeline.graph_training import (
    GraphTrainConfig,
    describe,
    graph_rules,
    make_graph_optimizer,
    make_graph_step,
    make_model_loss,
)
from star_jax.pipeline.tables.read import read_meta
from star_jax.train.state import shapes_of_state


class GraphStep(NamedTuple):
    """The update of a graph training, ready to be compiled.

    Attributes:
      lower: Traces it.
      pairs: Real ones of a step, of all devices.
      steps_per_epoch: Of the tables.
      parameters: Bytes of a device, like the two below.
      optimizer: Its state.
      graph: Edges and features, where the program samples.
    """

    lower: Callable[[], jax.stages.Lowered]
    pairs: int
    steps_per_epoch: float
    parameters: int
    optimizer: int
    graph: int


def graph_step(config: GraphTrainConfig, workdir: Path, mesh: Mesh) -> GraphStep:
    """What `train-graph` would run on the tables and the graph of a folder.

    A batch is made on the host, as large as those of the training; the graph is not placed.

    Args:
      config: Of the training.
      workdir: Holds `tables`, `graph` and, with text features, `text_embeddings`.
      mesh: Devices that need not be there.

    Raises:
      InputError: Something is missing, or the training encodes texts, which cannot be planned.
    """
    if config.text_encoder is not None:
        raise InputError("train-graph with text_encoder cannot be planned, needed the vectors'")
    meta = read_meta(workdir / "tables")
    store = open_training_store(workdir, config.model.features, None)
    file = describe(config, workdir, store, meta)
    model: GraphModel = file.build()
    params, statistics = jax.eval_shape(lambda: init_model(model, config.seed))
    optimizer = make_graph_optimizer(config, model)
    state = shapes_of_state(
        params, optimizer, mesh=mesh, rules=graph_rules(config), statistics=statistics
    )
    engine = make_engine(config.engine, store, mesh, planned=True)
    arrays = engine.arrays if isinstance(engine, ProgramEngine) else {}
    loss = make_model_loss(config, model, meta, file.compatible)
    step = make_graph_step(config, loss, optimizer, state, mesh, engine)
    data = GraphData(config, workdir, file, store, meta, num_row_shards(mesh), engine)
    batch = next(data.batches(config.fanouts.largest))
    where = batch_shardings(batch, mesh, axis=0 if config.exchange is None else 1)
    return GraphStep(
        lower=lambda: step.lower(state, arrays, placed(batch, where)),
        pairs=count_pairs(batch).units,
        steps_per_epoch=data.steps_per_epoch,
        parameters=device_bytes(state.trainable),
        optimizer=device_bytes(state.opt_state),
        graph=device_bytes(arrays),
    )
