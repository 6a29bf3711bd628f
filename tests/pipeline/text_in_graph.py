"""The graph market with a text model, and the parts of a training that encodes its texts."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax

from star_jax.graph.engines.host import HostEngine
from star_jax.graph.model import GraphBatch, GraphModel, init_model
from star_jax.graph.objective import StatefulLoss
from star_jax.jobs import export_text
from star_jax.jobs.export_text import TextExportConfig
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline.graph_data import GraphData
from star_jax.pipeline.graph_model import open_training_store
from star_jax.pipeline.graph_text import GraphTextConfig, open_text
from star_jax.pipeline.graph_text_validation import EncodedTexts
from star_jax.pipeline.graph_training import describe, make_model_loss
from star_jax.pipeline.tables.read import read_meta
from tests.jobs import tiny_graph, trained_text
from tests.text import fixtures

EXPORT = TextExportConfig(mesh=MeshConfig(data=1), batch_tokens=512, num_lengths=1)


def write(market: Path, folder: Path, base: str = "tiny_bert") -> Path:
    """Tables and graph of the market, a text model, and the vectors that it gives."""
    for name in ("tables", "graph"):
        shutil.copytree(market / name, folder / name)
    trained_text.write(folder / "text", fixtures.FOLDER / base)
    export_text.run(EXPORT, folder)
    return folder


def config(**fields: Any) -> GraphTrainConfig:
    """As `tiny_graph.config`, without dropout."""
    model = tiny_graph.config().model
    model = dataclasses.replace(
        model,
        encoder=dataclasses.replace(model.encoder, dropout=0.0),
        decoder=dataclasses.replace(model.decoder, dropout=0.0),
    )
    return tiny_graph.config(**{"model": model, "batch_size": 36} | fields)


class Training(NamedTuple):
    """What a test of a step needs."""

    model: GraphModel
    loss: StatefulLoss  # Of the graph model alone.
    params: Any
    statistics: Any
    batches: Any
    text: Any  # `TextInStep`; None without.
    makers: list[Any]  # Of batches whose texts are numbers yet.

    def batch(self) -> GraphBatch:
        """The next one, on the host."""
        return next(self.batches)


def training(workdir: Path, text: GraphTextConfig | None, shards: int = 1, **fields) -> Training:
    """Opens all parts; nothing is compiled but what initialises the model."""
    made = config(text_encoder=text, mesh=MeshConfig(data=shards), **fields)
    mesh = make_mesh(made.mesh)
    opened = texts = None
    makers: list[Any] = []
    store = open_training_store(workdir, made.model.features, text)
    if text is not None:
        opened = open_text(text, workdir / "text", mesh, seed=0)
        texts = EncodedTexts(text, opened, workdir, mesh, seed=0)
        with_tokens = texts.batches
        setattr(texts, "batches", lambda make: makers.append(make) or with_tokens(make))  # noqa: B010
    meta = read_meta(workdir / "tables")
    file = describe(made, workdir, store, meta)
    model = file.build()
    data = GraphData(made, workdir, file, store, meta, shards, HostEngine(store), texts)
    params, statistics = init_model(model, 0)
    loss = make_model_loss(made, model, meta)
    return Training(model, loss, params, statistics, data.batches(6), opened, makers)


KEY = jax.random.key(0)
