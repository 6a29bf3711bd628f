"""`star train-graph`: trains the graph encoder and the decoders of all tasks on pairs.

Reads `W/tables`, `W/graph` and, with text features, `W/text_embeddings`, or with `text_encoder`
the texts and `W/text`; with `compatible` also the older vectors that it names. Writes
`W/graph_model`: checkpoints, metrics.jsonl, TensorBoard, plan.json, model.json; sealed when
training has finished.
"""

import functools
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from star_jax import artefacts, trees
from star_jax.config import to_json
from star_jax.graph.engines.protocol import GraphEngine, ProgramEngine
from star_jax.graph.model import GraphBatch, GraphModel, init_model
from star_jax.graph.store import GraphStore
from star_jax.parallel import processes
from star_jax.parallel.mesh import make_mesh, num_row_shards
from star_jax.parallel.rules import own_parts
from star_jax.pipeline.graph_adaptive import AdaptiveBatches, AdaptiveValidation, GraphValidate
from star_jax.pipeline.graph_compatible import compatible_inputs
from star_jax.pipeline.graph_conflicts import with_conflicts
from star_jax.pipeline.graph_data import GraphData
from star_jax.pipeline.graph_engines import make_engine
from star_jax.pipeline.graph_model import (
    CHECKPOINTS,
    KIND,
    MODEL,
    GraphModelFile,
    inputs_of,
    open_training_store,
    text_input,
)
from star_jax.pipeline.graph_streams import count_pairs
from star_jax.pipeline.graph_text import joined, open_text, with_text
from star_jax.pipeline.graph_text_validation import EncodedTexts
from star_jax.pipeline.graph_tokens import count_texts
from star_jax.pipeline.graph_training import (
    GraphTrainConfig,
    conflicts_of,
    describe,
    graph_rules,
    make_graph_optimizer,
    make_graph_step,
    make_model_loss,
    sees_own_rows,
)
from star_jax.pipeline.hard_negatives import FOLDER
from star_jax.pipeline.tables.read import TablesMeta, read_meta
from star_jax.shapes import PyTree
from star_jax.train.begun import check_begun, note_begun
from star_jax.train.checkpoints import Checkpointer, tree_digest
from star_jax.train.loop import Counts, Trained, Validate, measure, train
from star_jax.train.optimizers import learning_rate, warmup_steps
from star_jax.train.plan import PLAN, Plan, settle
from star_jax.train.reporter import Reporter
from star_jax.train.state import TrainState, create_state
from star_jax.train.step import Step

JOB = "job.json"  # What the folder was begun with.

_log = logging.getLogger(__name__)


def run(config: GraphTrainConfig, workdir: Path) -> None:
    """Trains, or goes on training, until the plan is done; then seals the output folder."""
    folder = workdir / config.output
    meta = read_meta(workdir / "tables")
    features = config.model.features
    inputs = begun_with(config, workdir)
    check_begun(folder / JOB, config, inputs)
    if (folder / artefacts.MANIFEST).is_file():
        artefacts.read_manifest(folder, KIND)
        _log.info("%s is trained already", folder)
        return
    store = open_training_store(workdir, features, config.text_encoder)
    file = describe(config, workdir, store, meta)

    def begin() -> None:
        note_begun(folder / JOB, config, inputs)
        artefacts.write_text(folder / MODEL, to_json(file))

    processes.write_once(begin, "begun")
    trained, plan, num_parameters = _train(config, workdir, file, store, meta)
    summary = {
        "tasks": [task.name for task in file.tasks],
        "text": features.text == "vectors",
        "best_step": trained.best.step,
        "best_score": trained.best.value,
        "num_steps": int(trained.state.step),
        "num_epochs": int(trained.state.step) / plan.steps_per_epoch,
        "num_parameters": num_parameters,
        "embedding_size": config.model.encoder.dim,
    }
    processes.write_once(lambda: artefacts.seal(folder, KIND, summary), "sealed")


def begun_with(config: GraphTrainConfig, workdir: Path) -> dict[str, str]:
    """Digests of all that a training reads."""
    text = text_input(config.model.features.text, config.text_encoder)
    mined = {FOLDER: artefacts.digest(workdir / FOLDER)} if config.hard_negatives else {}
    return inputs_of(workdir, text) | compatible_inputs(config.compatible) | mined


def _train(
    config: GraphTrainConfig,
    workdir: Path,
    file: GraphModelFile,
    store: GraphStore,
    meta: TablesMeta,
) -> tuple[Trained, Plan, int]:
    folder, mesh = workdir / config.output, make_mesh(config.mesh)
    parts = _parts(config, workdir, file, store, meta, mesh)
    step, data = parts.step, parts.data
    largest = config.fanouts.largest
    validation_of = functools.partial(data.validation, mesh=mesh)
    batches, validation = data.batches(largest), validation_of(largest)
    timed = functools.partial(
        measure, state=parts.state, frozen=parts.frozen, step=step, batches=batches
    )
    plan = settle(
        config.plan,
        path=folder / PLAN,
        like=None if config.plan_of is None else workdir / config.plan_of / PLAN,
        job=config,
        steps_per_epoch=data.steps_per_epoch,
        measure=functools.partial(timed, validate=_of_state(validation)),
    )
    if config.adaptive is not None:
        batches = AdaptiveBatches(data.batches, config.adaptive, largest=largest)
        validation = AdaptiveValidation(validation, validation_of, batches)
    if config.gradient_conflicts:
        conflicts = conflicts_of(config, parts.model, meta)
        batch = step.place(next(data.batches(largest)))
        validation = with_conflicts(validation, conflicts, parts.engine, batch)
    num_parameters = trees.count(parts.state.trainable)
    trained = train(
        name="train-graph",
        state=parts.state,
        frozen=parts.frozen,
        step=step,
        batches=batches,
        count=functools.partial(_count, engine=parts.engine, share=parts.share),
        unit="pairs",
        peak_flops=None,
        rate=_rate(config, plan),
        plan=plan,
        validate=_of_state(validation),
        checkpointer=Checkpointer(
            folder / CHECKPOINTS,
            config=config,
            frozen_digest=parts.frozen_digest,
            inputs=begun_with(config, workdir),
        ),
        accept_from=_accept_from(config, plan),
        reporter=Reporter(folder, writes=processes.is_first()),
    )
    return trained, plan, num_parameters


class _Parts(NamedTuple):
    """What trains."""

    model: GraphModel
    state: TrainState
    frozen: PyTree  # What the step reads beside the state and the batch.
    frozen_digest: str  # Of what decides a checkpoint's meaning and is not in it.
    engine: GraphEngine
    step: Step
    data: GraphData
    share: float  # Of the rows of a batch, those that this process makes.


def _parts(
    config: GraphTrainConfig,
    workdir: Path,
    file: GraphModelFile,
    store: GraphStore,
    meta: TablesMeta,
    mesh: Mesh,
) -> _Parts:
    model = file.build()
    params, statistics = init_model(model, config.seed)
    loss = make_model_loss(config, model, meta, file.compatible)
    texts, digest = None, tree_digest({})
    rules = graph_rules(config)
    engine = make_engine(config.engine, store, mesh)
    frozen = engine.arrays if isinstance(engine, ProgramEngine) else {}
    if config.text_encoder is not None:
        text = open_text(config.text_encoder, workdir / "text", mesh, seed=config.seed)
        texts = EncodedTexts(config.text_encoder, text, workdir, mesh, seed=config.seed)
        params, loss = joined(params, text.trainable), with_text(loss, text)
        frozen, digest = text.frozen, text.digest
        rules = graph_rules(config, text.rules)
    own = own_parts(mesh) if sees_own_rows(config) else None
    optimizer = make_graph_optimizer(config, model)
    state = create_state(
        params, optimizer, seed=config.seed, mesh=mesh, rules=rules, statistics=statistics
    )
    _log.info("%s parameters on %d device(s)", f"{trees.count(params):,}", mesh.size)
    step = make_graph_step(config, loss, optimizer, state, mesh, engine)
    shards = num_row_shards(mesh)
    data = GraphData(config, workdir, file, store, meta, shards, engine, texts, own)
    share = 1.0 if own is None else len(own) / shards
    return _Parts(model, state, frozen, digest, engine, step, data, share)


def _count(batch: GraphBatch, engine: GraphEngine, share: float) -> Counts:
    counts = count_pairs(batch, share)._replace(seconds=engine.take_seconds())
    if batch.texts is None:
        return counts
    return counts._replace(figures={**counts.figures, **count_texts(batch)})


def _of_state(validation: GraphValidate) -> Validate:
    return lambda state: validation(
        {"params": state.trainable, "batch_stats": state.statistics}, int(state.step)
    )


def _accept_from(config: GraphTrainConfig, plan: Plan) -> int:
    """The first step whose checkpoint may be better than those after it."""
    return 0 if config.compatible is None else math.ceil(config.compatible.settled * plan.num_steps)


def _rate(config: GraphTrainConfig, plan: Plan) -> Callable[[int], float]:
    size = config.batch_size * config.batches_per_step
    warmup = warmup_steps(config.optimizer, size, plan.num_steps)
    _log.info("warm-up over %d of %d steps", warmup, plan.num_steps)
    return lambda step: learning_rate(
        config.optimizer, step, num_steps=plan.num_steps, warmup=warmup
    )
