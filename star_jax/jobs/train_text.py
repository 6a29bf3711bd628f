"""`star train-text`: LoRA (or full, or head-only) training of the text bi-encoder on pairs.

Reads `W/tables`, writes `W/text_tokens` (all texts as token ids) and `W/text`: checkpoints,
metrics.jsonl, TensorBoard, plan.json, model.json; sealed when training has finished.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from star_jax import artefacts, trees
from star_jax.config import to_json
from star_jax.parallel import processes
from star_jax.parallel.mesh import make_mesh, num_row_shards
from star_jax.pipeline.hard_negatives import FOLDER
from star_jax.pipeline.tables.read import TaskMeta, read_meta
from star_jax.pipeline.text_calibration import positive_rate
from star_jax.pipeline.text_counts import TextCounts
from star_jax.pipeline.text_loader import BatchBuilder, make_batches
from star_jax.pipeline.text_model import CHECKPOINTS, KIND, MODEL, TextModelConfig, initial
from star_jax.pipeline.text_pairs import PairRecords
from star_jax.pipeline.text_training import Data, TextTrainConfig, make_text_step, read_data
from star_jax.pipeline.text_validation import TextValidation
from star_jax.shapes import PyTree
from star_jax.text.bi_encoder import BiEncoder
from star_jax.train.begun import check_begun, note_begun
from star_jax.train.checkpoints import Best, Checkpointer, tree_digest
from star_jax.train.loop import Validate, measure, train
from star_jax.train.meter import peak_flops
from star_jax.train.optimizers import (
    learning_rate,
    make_optimizer,
    warmup_steps,
)
from star_jax.train.plan import PLAN, Plan, settle
from star_jax.train.reporter import Reporter
from star_jax.train.state import create_state

JOB = "job.json"  # What the folder was begun with.

_log = logging.getLogger(__name__)


def run(config: TextTrainConfig, workdir: Path) -> None:
    """Trains, or goes on training, until the plan is done; then seals `W/text`."""
    folder = workdir / "text"
    inputs = _inputs(config, workdir)
    check_begun(folder / JOB, config, inputs)
    if (folder / artefacts.MANIFEST).is_file():
        artefacts.read_manifest(folder, KIND)
        _log.info("%s is trained already", folder)
        return
    task_name, task = next(iter(read_meta(workdir / "tables").tasks.items()))
    data = read_data(config, workdir, task_name, task, inputs)
    best, plan, reached = _train(config, folder, data, config.model(task))
    meta = {
        "task": task_name,
        "best_step": best.step,
        "best_score": best.value,
        "num_steps": reached,
        "num_epochs": reached / plan.steps_per_epoch if plan else 0.0,
        "num_train_pairs": len(data.train.label),
        "trained": plan is not None,
        "positive_rate": _positive_rate(config, data.train, task),
    }
    processes.write_once(lambda: artefacts.seal(folder, KIND, meta), "sealed")


def _train(
    config: TextTrainConfig, folder: Path, data: Data, model_config: TextModelConfig
) -> tuple[Best, Plan | None, int]:
    model = model_config.build(packed=config.pack_length is not None)
    mesh = make_mesh(config.mesh)
    trainable, frozen = initial(model_config, model, config.seed, mesh)
    processes.write_once(lambda: _begin(config, folder, data, model_config), "begun")
    checkpointer = Checkpointer(
        folder / CHECKPOINTS,
        config=config,
        frozen_digest=tree_digest(frozen),
        inputs=data.inputs,
    )
    counts = [f"{trees.count(tree):,}" for tree in (trainable, frozen)]
    _log.info("%s parameters train, %s are frozen, on %d device(s)", *counts, mesh.size)
    optimizer = make_optimizer(config.optimizer)
    rules = model_config.rules(model)
    state = create_state(trainable, optimizer, seed=config.seed, mesh=mesh, rules=rules)
    if not len(data.train.label):
        _log.warning("no training pair has texts on both sides: the text model stays as it began")
        checkpointer.save(state, {}, Best(0, 0.0))
        return Best(0, 0.0), None, 0
    shape = config.batch_shape(num_row_shards(mesh))
    builder = BatchBuilder(data.train, data.records, shape, known=data.known, seed=config.seed)
    batches = make_batches(builder, shape, seed=config.seed)
    step = make_text_step(model, optimizer, state, mesh, shape)
    validate = _validation(config, data, model, mesh, frozen)
    plan = settle(
        config.plan,
        path=folder / PLAN,
        job=config,
        steps_per_epoch=builder.num_groups / (shape.num_groups * shape.num_microbatches),
        measure=lambda: measure(
            state=state, frozen=frozen, step=step, batches=batches, validate=validate
        ),
    )
    trained = train(
        name="train-text",
        state=state,
        frozen=frozen,
        step=step,
        batches=batches,
        count=TextCounts(model, config.mode),
        unit="tokens",
        peak_flops=peak_flops(mesh.devices.flat, config.peak_flops),
        rate=_rate(config, plan),
        plan=plan,
        validate=validate,
        checkpointer=checkpointer,
        reporter=Reporter(folder, writes=processes.is_first()),
    )
    return trained.best, plan, int(trained.state.step)


def _begin(
    config: TextTrainConfig, folder: Path, data: Data, model_config: TextModelConfig
) -> None:
    note_begun(folder / JOB, config, data.inputs)
    artefacts.write_text(folder / MODEL, to_json(model_config))


def _validation(
    config: TextTrainConfig, data: Data, model: BiEncoder, mesh: Mesh, frozen: PyTree
) -> Validate:
    validation = TextValidation(
        model,
        data.records,
        mesh,
        data.val,
        data.negative,
        max_pairs=config.validation_pairs,
        batch_tokens=config.validation_tokens,
        num_lengths=config.validation_lengths,
        seed=config.seed,
    )
    return lambda state: validation({**frozen, **state.trainable}, int(state.step))


def _rate(config: TextTrainConfig, plan: Plan) -> Callable[[int], float]:
    warmup = warmup_steps(config.optimizer, config.batch_size, plan.num_steps)
    _log.info("warm-up over %d of %d steps", warmup, plan.num_steps)
    return lambda step: learning_rate(
        config.optimizer, step, num_steps=plan.num_steps, warmup=warmup
    )


def _positive_rate(config: TextTrainConfig, pairs: PairRecords, task: TaskMeta) -> float | None:
    """Of which the scorer's logits are the log-odds; None where nothing was trained."""
    weight = config.model(task).objective.positive_weight
    if not len(pairs.label):
        return None
    return positive_rate(pairs, config.num_negatives, config.hard_negatives, weight)


def _inputs(config: TextTrainConfig, workdir: Path) -> dict[str, str]:
    """Digests of all that training reads."""
    inputs = {"tables": artefacts.digest(workdir / "tables")}
    if config.hard_negatives:
        inputs[FOLDER] = artefacts.digest(workdir / FOLDER)
    if config.teacher is not None and config.teacher.is_file():
        inputs["teacher"] = artefacts.file_digest(config.teacher)
    return inputs
