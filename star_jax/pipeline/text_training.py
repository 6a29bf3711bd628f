"""A text training: its config, its data, and the step that it describes."""

import dataclasses
import logging
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh

from star_jax.config import InputError
from star_jax.parallel import processes
from star_jax.parallel.mesh import MeshConfig
from star_jax.pipeline.hard_negatives import read_hard_negatives, with_hard_negatives
from star_jax.pipeline.known_pairs import KnownPairs, known_positives
from star_jax.pipeline.tables.read import TaskMeta, read_meta, read_pairs
from star_jax.pipeline.teacher import with_teacher
from star_jax.pipeline.text_loader import BatchShape
from star_jax.pipeline.text_model import TextModelConfig
from star_jax.pipeline.text_pairs import PairRecords, pair_records, with_both_sides
from star_jax.pipeline.text_records import TextRecords, text_records
from star_jax.text.bi_encoder import BiEncoder, Mode, make_loss, row_axes
from star_jax.text.lora import LoraConfig
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.prompts import kind_number
from star_jax.text.scorer import ScorerConfig
from star_jax.text.tower import TowerConfig, build_tokenizer
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.plan import PlanConfig
from star_jax.train.state import Optimizer, TrainState
from star_jax.train.step import Step, make_step

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
        return self.model_of(positive / negative)

    def model_of(self, class_ratio: float) -> TextModelConfig:
        """As `model`, where tables say that a positive weighs so many negatives."""
        weight = self.objective.positive_weight * class_ratio
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


def read_data(
    config: TextTrainConfig, workdir: Path, task_name: str, task: TaskMeta, inputs: dict[str, str]
) -> Data:
    """Reads the pairs of a task and their texts, tokenised first where that was not done.

    Args:
      config: Of the training.
      workdir: Holds `tables`.
      task_name: As the tables name it.
      task: What they say of it.
      inputs: Digests of all that is read.

    Raises:
      InputError: A file is missing or damaged, or adapters of towers meet texts of other kinds.
    """
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


def make_text_step(
    model: BiEncoder, optimizer: Optimizer, state: TrainState, mesh: Mesh, shape: BatchShape
) -> Step:
    """The update of a text training.

    Args:
      model: What trains.
      optimizer: Of its trainable variables.
      state: On the mesh, or its shapes.
      mesh: The devices.
      shape: Of every batch.
    """
    return make_step(
        make_loss(model),
        optimizer,
        state=state,
        mesh=mesh,
        accumulate=shape.num_microbatches,
        row_axes=row_axes,
    )
