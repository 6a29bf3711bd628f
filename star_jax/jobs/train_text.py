"""`star train-text`: LoRA (or full, or head-only) training of the text bi-encoder on pairs.

Reads `W/tables`, writes `W/text_tokens` (all texts as token ids) and `W/text`: checkpoints,
metrics.jsonl, TensorBoard, plan.json, model.json; sealed when training has finished.
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh

from star_jax import artefacts, trees
from star_jax.config import InputError, to_json
from star_jax.parallel import processes
from star_jax.parallel.mesh import MeshConfig, make_mesh, num_row_shards
from star_jax.pipeline.hard_negatives import FOLDER, read_hard_negatives, with_hard_negatives
from star_jax.pipeline.known_pairs import KnownPairs, known_positives
from star_jax.pipeline.tables.read import TaskMeta, read_meta, read_pairs
from star_jax.pipeline.teacher import with_teacher
from star_jax.pipeline.text_calibration import positive_rate
from star_jax.pipeline.text_counts import TextCounts
from star_jax.pipeline.text_loader import BatchBuilder, BatchShape, make_batches
from star_jax.pipeline.text_model import CHECKPOINTS, KIND, MODEL, TextModelConfig, initial
from star_jax.pipeline.text_pairs import PairRecords, pair_records, with_both_sides
from star_jax.pipeline.text_records import TextRecords, text_records
from star_jax.pipeline.text_validation import TextValidation
from star_jax.shapes import PyTree
from star_jax.text.bi_encoder import BiEncoder, Mode, make_loss, row_axes
from star_jax.text.lora import LoraConfig
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.prompts import kind_number
from star_jax.text.scorer import ScorerConfig
from star_jax.text.tower import TowerConfig, build_tokenizer
from star_jax.train.begun import check_begun, note_begun
from star_jax.train.checkpoints import Best, Checkpointer, tree_digest
from star_jax.train.loop import Validate, measure, train
from star_jax.train.meter import peak_flops
from star_jax.train.optimizers import (
    OptimizerConfig,
    learning_rate,
    make_optimizer,
    warmup_steps,
)
from star_jax.train.plan import PLAN, Plan, PlanConfig, settle
from star_jax.train.reporter import Reporter
from star_jax.train.state import create_state
from star_jax.train.step import make_step

JOB = "job.json"  # What the folder was begun with.

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTrainConfig:
    """Training of the text half on the first task of the tables."""

    tower: TowerConfig = dataclasses.field(default_factory=TowerConfig)
    mode: Mode = "lora"
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    scorer: ScorerConfig = dataclasses.field(default_factory=ScorerConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    plan: PlanConfig = dataclasses.field(default_factory=PlanConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    batch_size: int = 64  # Pairs of one update.
    microbatch_size: int = 64  # Pairs whose texts are encoded at a time.
    # Where negatives are found: in the whole batch, whose gradient is then exact (GradCache), in
    # a device's part of it, or in a microbatch (plain accumulation).
    mining: Literal["global", "device", "micro"] = "global"
    num_negatives: int = 1  # Per positive.
    hard_negatives: int = 0  # Per positive, beside the others; from `star mine-negatives`.
    # Parquet file of a cross-encoder's logits: columns sender, receiver (ids) and score.
    teacher: Path | None = None
    num_tables: int = 3  # Of texts, by length: more of them pad less, and compile longer.
    pack_length: int | None = None  # Tokens of rows that hold several texts, instead of tables.
    validation_pairs: int = 2000  # Of the val pairs, whole groups.
    # Of one batch of it on one device, padding included; None: as `BulkEncoder` says.
    validation_tokens: int | None = None
    validation_lengths: int = 3  # Padded lengths of its texts.
    peak_flops: float | None = None  # Of one device, a second; None: its data sheet's, of bf16.
    seed: int = 0

    def __post_init__(self) -> None:
        group = self.group_size
        if self.num_negatives < 1:
            raise ValueError(f"num_negatives {self.num_negatives} must be >= 1")
        if self.hard_negatives < 0:
            raise ValueError(f"hard_negatives {self.hard_negatives} must be >= 0")
        if (self.teacher is None) != (self.objective.distill.kind == "none"):
            raise ValueError(
                f"teacher {self.teacher} with objective.distill.kind "
                f"{self.objective.distill.kind}: one needs the other"
            )
        if self.microbatch_size < group or self.microbatch_size % group:
            raise ValueError(
                f"microbatch_size {self.microbatch_size} is not a multiple of a positive with "
                f"its num_negatives {self.num_negatives} and hard_negatives "
                f"{self.hard_negatives}, {group} pairs"
            )
        if self.batch_size < 1 or self.batch_size % self.microbatch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of microbatch_size "
                f"{self.microbatch_size}"
            )
        if self.pack_length is not None and self.pack_length < 1:
            raise ValueError(f"pack_length {self.pack_length} must be >= 1, or None for no packing")
        for name in (
            "num_tables",
            "validation_pairs",
            "validation_tokens",
            "validation_lengths",
        ):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} {value} must be >= 1")
        if self.mode == "frozen" and self.tower.pooling.learns:
            raise ValueError(
                f"mode frozen with tower.pooling that learns (token {self.tower.pooling.token}, "
                f"layers {self.tower.pooling.layers}): needed mode lora or full"
            )
        if self.mode == "full" and self.tower.base_quantisation != "none":
            raise ValueError(
                "mode full trains the base, which tower.base_quantisation "
                f"{self.tower.base_quantisation} freezes: needed mode lora or frozen"
            )
        if self.peak_flops is not None and self.peak_flops <= 0:
            raise ValueError(f"peak_flops {self.peak_flops} must be > 0")

    @property
    def group_size(self) -> int:
        """Pairs of a positive with all its negatives."""
        return 1 + self.num_negatives + self.hard_negatives

    def model(self, task: TaskMeta) -> TextModelConfig:
        """What decides the meaning of the variables; the task's class weights join the loss."""
        negative, positive = task.class_weights
        weight = self.objective.positive_weight * positive / negative
        return TextModelConfig(
            tower=self.tower,
            mode=self.mode,
            lora=self.lora,
            scorer=self.scorer,
            objective=dataclasses.replace(self.objective, positive_weight=weight),
        )

    def batch_shape(self, num_shards: int) -> BatchShape:
        """Static sizes of a batch."""
        group, num_parts = self.group_size, self.batch_size // self.microbatch_size
        micro = self.mining == "micro"
        return BatchShape(
            num_groups=(self.microbatch_size if micro else self.batch_size) // group,
            num_negatives=self.num_negatives,
            num_hard_negatives=self.hard_negatives,
            num_microbatches=num_parts if micro else 1,
            num_chunks=1 if micro else num_parts,
            num_tables=self.num_tables,
            pack_length=self.pack_length,
            num_pools=num_shards if self.mining == "device" else 1,
            num_shards=num_shards,
        )


class Data(NamedTuple):
    """What the pairs of the first task are made of."""

    train: PairRecords  # Pairs with texts on both sides.
    known: KnownPairs
    val: PairRecords
    negative: np.ndarray  # Kind of each val pair, "" for positives.
    records: TextRecords
    inputs: dict[str, str]  # Digest of everything it was read from.


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
    data = _read(config, workdir, task_name, task, inputs)
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
    step = make_step(
        make_loss(model),
        optimizer,
        state=state,
        mesh=mesh,
        accumulate=shape.num_microbatches,
        row_axes=row_axes,
    )
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


def _read(
    config: TextTrainConfig, workdir: Path, task_name: str, task: TaskMeta, inputs: dict[str, str]
) -> Data:
    tables = workdir / "tables"
    tokenizer = build_tokenizer(config.tower)
    processes.write_once(lambda: text_records(workdir, tokenizer), "text tokens")
    records = text_records(workdir, tokenizer)
    pairs, val = (read_pairs(tables, task_name, split) for split in ("train", "val"))
    known = KnownPairs(known_positives(tables, read_meta(tables), task, pairs))
    train_pairs, val_pairs = (
        pair_records(each, records, sender=task.sender, receiver=task.receiver)
        for each in (pairs, val)
    )
    if config.hard_negatives:
        mined = read_hard_negatives(workdir, task_name)
        mined_pairs = pair_records(mined, records, sender=task.sender, receiver=task.receiver)
        train_pairs = with_hard_negatives(train_pairs, mined_pairs)
    if config.teacher is not None:
        train_pairs = with_teacher(train_pairs, config.teacher, tables, task)
    lone = ~np.isin(train_pairs.group, train_pairs.group[train_pairs.label == 1])
    if lone.any():
        _log.warning("%d training pairs are negatives of no positive and left out", lone.sum())
    both = with_both_sides(train_pairs)
    _log.info(
        "task %s: %d training pairs, %d of them with texts on both sides",
        task_name,
        len(train_pairs.label),
        len(both.label),
    )
    _check_kinds(config, both, records, task)
    return Data(both, known, val_pairs, val.negative, records, inputs)


def _check_kinds(
    config: TextTrainConfig, pairs: PairRecords, records: TextRecords, task: TaskMeta
) -> None:
    """Adapters of a tower read the texts of its kind alone.

    Raises:
      InputError: The texts that train are of other kinds.
    """
    if config.mode != "lora" or not config.lora.tower_adapters:
        return
    for kind, node_type, column in (
        ("job", task.receiver, pairs.document),
        ("profile", task.sender, pairs.profile),
        ("resume", task.sender, pairs.resume),
    ):
        if (records.kinds[column[column >= 0]] != kind_number(kind)).any():
            raise InputError(
                f"lora.tower_adapters: texts of {node_type} are not of the kind {kind}; name it so "
                "in the schema, or leave tower_adapters false"
            )


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
