"""A graph training: its config, the model and the loss it describes, its batches and validation."""

import dataclasses
import logging
from pathlib import Path
from typing import Literal

from jax.sharding import Mesh, PartitionSpec

from star_jax.config import InputError
from star_jax.graph.compatible import MAPS
from star_jax.graph.conflicts import Conflicts, make_conflicts
from star_jax.graph.engines.drawing import in_step
from star_jax.graph.engines.protocol import GraphEngine, ProgramEngine
from star_jax.graph.identities import ROW_MULTIPLE, TABLES
from star_jax.graph.model import GraphModel, GraphModelConfig, LinkTask, rows_read
from star_jax.graph.objective import StatefulLoss, make_loss
from star_jax.graph.samplers.adaptive import AdaptiveConfig
from star_jax.graph.samplers.fanouts import FanoutConfig, channels, resolve
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.store import GraphMeta, GraphStore
from star_jax.parallel.mesh import MeshConfig
from star_jax.parallel.rules import FSDP_RULES, Rule, Rules, with_tables
from star_jax.pipeline.graph_compatible import (
    Compatible,
    CompatibleConfig,
    alignment_of,
    describe_compatible,
)
from star_jax.pipeline.graph_engines import EngineConfig, why_refused
from star_jax.pipeline.graph_loader import Sampling
from star_jax.pipeline.graph_model import (
    GraphModelFile,
    inputs_of,
    link_tasks,
    node_features,
    node_heads,
    text_input,
)
from star_jax.pipeline.graph_text import TREE, GraphTextConfig
from star_jax.pipeline.tables.read import TablesMeta, read_pairs
from star_jax.train.exchange import ExchangeConfig
from star_jax.train.optimizers import OptimizerConfig, make_optimizer
from star_jax.train.plan import PlanConfig
from star_jax.train.rows import make_row_optimizer
from star_jax.train.state import Optimizer, TrainState
from star_jax.train.step import Step, make_step

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphTrainConfig:
    """Training of the graph half on all tasks of the tables.

    Attributes:
      model: Features, encoder, decoders.
      fanouts: Neighbours per hop; as many hops as the encoder has layers.
      sampler: How neighbours are chosen.
      adaptive: Given, training begins with fewer neighbours and takes more when validation stops
        to gain; the fanouts are the largest, and what validation, scoring and export have.
      receiver_view: What a receiver is seen with. "attributes": its features and its attribute
        neighbours. "all": whatever a sender is seen with; then what happened around a receiver
        also tells how long it has been in the pool, which parts positives from negatives in
        training and says nothing of new receivers.
      negatives: "tables": those that the import wrote; "uniform": fresh ones in every batch,
        from the receivers of training positives that existed before the event.
      num_negatives: Per positive, of fresh ones.
      hard_negatives: Most per group, beside the others and of the first task alone; from `star
        mine-negatives`.
      popularity_correction: With model.decoder.kind=softmax, logits are lowered by the log of how
        often a receiver is met as a negative (logQ).
      batch_size: Pairs of one update, of all tasks and devices together.
      size_power: A task's share of the batch is its number of groups to this power.
      task_weights: (Task, weight of its loss); 1 for tasks that are not named.
      positive_weight: Weight of a positive pair, where a negative one weighs 1; times the
        tables' class weights.
      validation_pairs: Of each task's val pairs, whole groups.
      output: Folder in the working directory.
      tasks: Names of those that are trained; none: all. A task alone, into an `output` of its own,
        is the baseline that says what the others do for it.
      gradient_conflicts: At every validation, whether tasks pull the weights they share against
        each other, as `conflict/<task>~<task>`; see `make_conflicts`. Compiles one more program.
      text_encoder: Given, the texts of a batch are encoded in its step, with or without training
        the encoder, in place of the vectors of `star export-text`; with the engine `host`.
      exchange: Given, a step has several batches, between which the devices do not meet.
      compatible: Given, the model comes with maps to the vectors of an older version.
      engine: Where neighbourhoods come from in training; validation, scoring and export sample on
        the host. `host` and `mesh` give the same samples, `deepgnn` others of the same kind.
      plan_of: Folder whose settled number of steps this training takes when it begins, instead of
        settling its own within the budget.
    """

    model: GraphModelConfig = dataclasses.field(default_factory=GraphModelConfig)
    fanouts: FanoutConfig = dataclasses.field(default_factory=FanoutConfig)
    sampler: SamplerConfig = dataclasses.field(default_factory=SamplerConfig)
    adaptive: AdaptiveConfig | None = None
    receiver_view: Literal["attributes", "all"] = "attributes"
    negatives: Literal["tables", "uniform"] = "tables"
    num_negatives: int = 1
    hard_negatives: int = 0
    popularity_correction: bool = False
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3)
    )
    plan: PlanConfig = dataclasses.field(
        default_factory=lambda: PlanConfig(num_epochs=10.0, budget_s=600.0)
    )
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    batch_size: int = 512
    size_power: float = 0.5
    task_weights: tuple[tuple[str, float], ...] = ()
    positive_weight: float = 1.0
    validation_pairs: int = 4000
    seed: int = 0
    tasks: tuple[str, ...] = ()
    gradient_conflicts: bool = False
    text_encoder: GraphTextConfig | None = None
    exchange: ExchangeConfig | None = None
    compatible: CompatibleConfig | None = None
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    output: str = "graph_model"
    plan_of: str | None = None

    def __post_init__(self) -> None:
        if self.fanouts.num_hops != self.model.encoder.layers:
            raise ValueError(
                f"fanouts have {self.fanouts.num_hops} hops, needed {self.model.encoder.layers}, "
                "as many as model.encoder.layers"
            )
        for name in ("num_negatives", "batch_size", "validation_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be >= 1")
        if self.hard_negatives < 0:
            raise ValueError(f"hard_negatives {self.hard_negatives} must be >= 0")
        by_rows = self.model.features.identity_update != "dense"
        if by_rows and ROW_MULTIPLE % self.mesh.fsdp:
            raise ValueError(
                f"mesh.fsdp {self.mesh.fsdp} with model.features.identity_update="
                f"{self.model.features.identity_update}, needed a divisor of {ROW_MULTIPLE}"
            )
        if self.adaptive is not None and self.sampler.kind == "full":
            raise ValueError("adaptive with sampler.kind=full, which takes all neighbours anyway")
        if refused := why_refused(self.engine, self.sampler):
            raise ValueError(refused)
        self._check_together()
        if not self.positive_weight > 0:
            raise ValueError(f"positive_weight {self.positive_weight} must be > 0")
        if self.popularity_correction and self.model.decoder.kind != "softmax":
            raise ValueError(
                "popularity_correction is for model.decoder.kind=softmax, it is "
                f"{self.model.decoder.kind}"
            )
        if self.model.decoder.kind == "softmax" and self.positive_weight != 1.0:
            raise ValueError(
                f"positive_weight {self.positive_weight} with model.decoder.kind=softmax, whose "
                "loss has positives alone; needed 1.0"
            )

    @property
    def batches_per_step(self) -> int:
        """Batches of `batch_size` pairs."""
        return 1 if self.exchange is None else self.exchange.every

    def _check_together(self) -> None:
        """What a step may have beside texts to encode, or beside several batches."""
        features, engine = self.model.features, self.engine.kind
        needed = {
            "text_encoder": {
                "model.features.text": (features.text, "vectors"),
                "engine.kind": (engine, "host"),
                "gradient_conflicts": (self.gradient_conflicts, False),
            },
            "exchange": {
                "model.features.identity_update": (features.identity_update, "dense"),
                "mesh.fsdp": (self.mesh.fsdp, 1),
                "mesh.tensor": (self.mesh.tensor, 1),
                "engine.kind": ("host" if engine == "deepgnn" else engine, "host"),
                "gradient_conflicts": (self.gradient_conflicts, False),
            },
        }
        for field, others in needed.items():
            for name, (value, wanted) in others.items():
                if getattr(self, field) is not None and value != wanted:
                    raise ValueError(f"{name}={value} with {field}, needed {wanted}")


def without_text(config: GraphTrainConfig) -> GraphTrainConfig:
    """The same training of the graph alone: of equal length, in the same compiled program.

    It is compatible with nothing: its vectors are there to be compared, not to be read by others.
    """
    features = config.model.features
    if features.text == "vectors":
        features = dataclasses.replace(features, text="zeros")
    model = dataclasses.replace(config.model, features=features)
    return dataclasses.replace(
        config,
        model=model,
        text_encoder=None,
        compatible=None,
        output="graph_only_model",
        plan_of=config.output,
    )


def describe(
    config: GraphTrainConfig, workdir: Path, store: GraphStore, meta: TablesMeta
) -> GraphModelFile:
    """The model that a config trains on the tables of a folder.

    Raises:
      InputError: The config names what the tables do not have, or no task has training pairs.
    """
    named = {"tasks": config.tasks, "task_weights": [name for name, _ in config.task_weights]}
    for field, names in named.items():
        for name in names:
            if name not in meta.tasks:
                raise InputError(f"{field} names {name!r}, needed one of {', '.join(meta.tasks)}")
    wanted = [task for task in link_tasks(meta) if task.name in (config.tasks or meta.tasks)]
    tasks = _trainable_tasks(workdir, tuple(wanted))
    if config.gradient_conflicts and len(tasks) < 2:
        raise InputError("gradient_conflicts compares tasks, needed two with training pairs")
    sampling = sampling_of(config, store.meta, tasks, config.fanouts.largest)
    heads = node_heads(config.model, store, tasks)
    compatible = None
    if config.compatible is not None:
        compatible = describe_compatible(config.compatible, tasks, store.version)
    return GraphModelFile(
        model=config.model,
        features=node_features(config.model.features, store, tasks, heads),
        keys=tuple(sorted({*store.meta.num_edges, *sampling.channels})),
        tasks=tasks,
        heads=heads,
        sampling=sampling,
        inputs=inputs_of(workdir, text_input(config.model.features.text, config.text_encoder)),
        text_encoder=config.text_encoder,
        compatible=compatible,
    )


def make_model_loss(
    config: GraphTrainConfig,
    model: GraphModel,
    meta: TablesMeta,
    compatible: Compatible | None = None,
) -> StatefulLoss:
    """The loss of all tasks, with the config's weights and the tables' class weights.

    Args:
      config: Of the training.
      model: Its model.
      meta: Of the tables.
      compatible: Of the model; None: without what its maps miss.
    """
    alignment = None
    if config.compatible is not None and compatible is not None:
        alignment = alignment_of(config.compatible, compatible)
    return make_loss(
        model,
        task_weights={task.name: 1.0 for task in model.tasks} | dict(config.task_weights),
        positive_weight=_positive_weights(config, model, meta),
        alignment=alignment,
    )


def conflicts_of(config: GraphTrainConfig, model: GraphModel, meta: TablesMeta) -> Conflicts:
    """How the tasks' gradients stand to each other, with the tables' class weights."""
    return make_conflicts(model, _positive_weights(config, model, meta))


def _positive_weights(
    config: GraphTrainConfig, model: GraphModel, meta: TablesMeta
) -> dict[str, float]:
    """By task, what a positive pair weighs where a negative one weighs 1."""
    return {task.name: config.positive_weight * _class_ratio(meta, task) for task in model.tasks}


def make_graph_optimizer(config: GraphTrainConfig, model: GraphModel) -> Optimizer:
    """AdamW for all parameters, or with `identity_update` a row rule for the identity tables."""
    features, optimizer = config.model.features, config.optimizer
    if config.compatible is not None:
        optimizer = dataclasses.replace(optimizer, no_decay=rf"{optimizer.no_decay}|{MAPS}/.*")
    if config.text_encoder is not None and config.text_encoder.mode != "frozen":
        multipliers = (*optimizer.rate_multipliers, (f"{TREE}/.*", config.text_encoder.rate))
        optimizer = dataclasses.replace(optimizer, rate_multipliers=multipliers)
    if features.identity_update == "dense":
        return make_optimizer(optimizer)
    return make_row_optimizer(
        optimizer,
        features.identity_update,
        rate=features.identity_rate,
        tables=TABLES,
        read=rows_read(model),
    )


def make_graph_step(
    config: GraphTrainConfig,
    loss: StatefulLoss,
    optimizer: Optimizer,
    state: TrainState,
    mesh: Mesh,
    engine: GraphEngine,
) -> Step:
    """The update of a graph training.

    Args:
      config: Of the training.
      loss: As `make_model_loss` makes it, with texts where they are encoded.
      optimizer: Of the trainable parameters.
      state: On the mesh, or its shapes.
      mesh: The devices.
      engine: Where it samples in the program, the step does so first.
    """
    return make_step(
        loss,
        optimizer,
        state=state,
        mesh=mesh,
        prepare=in_step(engine) if isinstance(engine, ProgramEngine) else None,
        stateful=True,
        exchange=config.exchange,
        own_rows=sees_own_rows(config),
    )


def sees_own_rows(config: GraphTrainConfig) -> bool:
    """Whether each of several processes makes the rows of its own devices alone.

    Where texts are encoded their lengths decide shapes, and every process makes all of them.
    """
    return config.text_encoder is None


def graph_rules(config: GraphTrainConfig, rest: Rules = FSDP_RULES) -> Rules:
    """Where the parameters lie: tables updated by rows are split by rows, maps are copied."""
    if config.compatible is not None:
        rest = (Rule(f"{MAPS}/.*", PartitionSpec()), *rest)
    if config.model.features.identity_update == "dense":
        return rest
    return with_tables(rest, TABLES)


def sampling_of(
    config: GraphTrainConfig, meta: GraphMeta, tasks: tuple[LinkTask, ...], size: int
) -> Sampling:
    """How neighbours are drawn, with at most `size` per node and hop."""
    fanouts = config.fanouts.at_most(size)
    seed_types = {task.sender for task in tasks}
    receiver_keys = None
    if config.receiver_view == "attributes":
        receiver_keys = _attribute_keys(meta)
    else:
        seed_types |= {task.receiver for task in tasks}
    return Sampling(
        fanouts=dict(resolve(fanouts, meta, config.sampler.kind)),
        channels=channels(fanouts, meta, config.sampler, seed_types),
        sampler=config.sampler,
        receiver_keys=receiver_keys,
    )


def _trainable_tasks(workdir: Path, tasks: tuple[LinkTask, ...]) -> tuple[LinkTask, ...]:
    """Tasks with training pairs.

    Raises:
      InputError: No task has any.
    """
    found = []
    for task in tasks:
        if len(read_pairs(workdir / "tables", task.name, "train").label):
            found.append(task)
        else:
            _log.warning("task %s has no training pairs and is left out", task.name)
    if not found:
        raise InputError(f"{workdir / 'tables'} has no training pairs, needed some for one task")
    return tuple(found)


def _attribute_keys(meta: GraphMeta) -> tuple[str, ...]:
    """Edge keys, reverses included, that say what a node is rather than what it did."""
    return tuple(sorted(e.key for e in meta.schema.all_edges() if e.kind == "attribute"))


def _class_ratio(meta: TablesMeta, task: LinkTask) -> float:
    negative, positive = meta.tasks[task.name].class_weights
    return positive / negative
