"""`star train-graph`: trains the graph encoder and the decoders of all tasks on pairs.

Reads `W/tables`, `W/graph` and, with text features, `W/text_embeddings`; writes `W/graph_model`:
checkpoints, metrics.jsonl, TensorBoard, plan.json, model.json; sealed when training has finished.
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from star_jax import artefacts, trees
from star_jax.config import InputError, to_json
from star_jax.graph.model import (
    GraphModel,
    GraphModelConfig,
    LinkTask,
    StatefulLoss,
    init_model,
    make_loss,
)
from star_jax.graph.samplers.fanouts import FanoutConfig, resolve
from star_jax.graph.store import GraphMeta, GraphStore
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import FSDP_RULES
from star_jax.pipeline.graph_links import KnownLinks
from star_jax.pipeline.graph_loader import (
    TRAIN_SPLITS,
    BatchMaker,
    Groups,
    PairSampler,
    Sampling,
    TaskStream,
    count_pairs,
    make_batches,
)
from star_jax.pipeline.graph_model import (
    CHECKPOINTS,
    KIND,
    MODEL,
    GraphModelFile,
    inputs_of,
    link_tasks,
    node_features,
    open_store,
)
from star_jax.pipeline.graph_negatives import UniformNegatives
from star_jax.pipeline.graph_validation import GraphValidation
from star_jax.pipeline.tables.read import TablesMeta, read_meta, read_pairs
from star_jax.train.begun import check_begun, note_begun
from star_jax.train.checkpoints import Checkpointer, tree_digest
from star_jax.train.loop import Trained, measure, train
from star_jax.train.optimizers import (
    OptimizerConfig,
    learning_rate,
    make_optimizer,
    warmup_steps,
)
from star_jax.train.plan import PLAN, Plan, PlanConfig, settle
from star_jax.train.reporter import Reporter
from star_jax.train.state import TrainState, create_state
from star_jax.train.step import make_step

JOB = "job.json"  # What the folder was begun with.

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphTrainConfig:
    """Training of the graph half on all tasks of the tables.

    Attributes:
      model: Features, encoder, decoders.
      fanouts: Neighbours per hop; as many hops as the encoder has layers.
      replace: Draw neighbours with replacement.
      receiver_view: What a receiver is seen with. "attributes": its features and its attribute
        neighbours. "all": whatever a sender is seen with; then what happened around a receiver
        also tells how long it has been in the pool, which parts positives from negatives in
        training and says nothing of new receivers.
      negatives: "tables": those that the import wrote; "uniform": fresh ones in every batch,
        from the receivers of training positives that existed before the event.
      num_negatives: Per positive, of fresh ones.
      batch_size: Pairs of one update, of all tasks and devices together.
      size_power: A task's share of the batch is its number of groups to this power.
      task_weights: (Task, weight of its loss); 1 for tasks that are not named.
      positive_weight: Weight of a positive pair, where a negative one weighs 1; times the
        tables' class weights.
      validation_pairs: Of each task's val pairs, whole groups.
      output: Folder in the working directory.
      plan_of: Folder whose settled number of steps this training takes when it begins, instead of
        settling its own within the budget.
    """

    model: GraphModelConfig = dataclasses.field(default_factory=GraphModelConfig)
    fanouts: FanoutConfig = dataclasses.field(default_factory=FanoutConfig)
    replace: bool = False
    receiver_view: Literal["attributes", "all"] = "attributes"
    negatives: Literal["tables", "uniform"] = "tables"
    num_negatives: int = 1
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
        if not self.positive_weight > 0:
            raise ValueError(f"positive_weight {self.positive_weight} must be > 0")
        if self.model.decoder.kind == "softmax" and self.positive_weight != 1.0:
            raise ValueError(
                f"positive_weight {self.positive_weight} with model.decoder.kind=softmax, whose "
                "loss has positives alone; needed 1.0"
            )


def without_text(config: GraphTrainConfig) -> GraphTrainConfig:
    """The same training of the graph alone: of equal length, in the same compiled program."""
    features = config.model.features
    if features.text == "vectors":
        features = dataclasses.replace(features, text="zeros")
    model = dataclasses.replace(config.model, features=features)
    return dataclasses.replace(
        config, model=model, output="graph_only_model", plan_of=config.output
    )


def run(config: GraphTrainConfig, workdir: Path) -> None:
    """Trains, or goes on training, until the plan is done; then seals the output folder."""
    folder = workdir / config.output
    meta = read_meta(workdir / "tables")
    inputs = inputs_of(workdir, config.model.features.text)
    check_begun(folder / JOB, config, inputs)
    if (folder / artefacts.MANIFEST).is_file():
        artefacts.read_manifest(folder, KIND)
        _log.info("%s is trained already", folder)
        return
    store = open_store(workdir, config.model.features.text)
    tasks = _trainable_tasks(workdir, link_tasks(meta))
    fanouts = dict(resolve(config.fanouts, store.meta))
    for name, _ in config.task_weights:
        if name not in meta.tasks:
            raise InputError(f"task_weights names {name!r}, needed one of {', '.join(meta.tasks)}")
    file = GraphModelFile(
        model=config.model,
        features=node_features(config.model.features, store, tasks),
        keys=tuple(sorted(store.meta.num_edges)),
        tasks=tasks,
        sampling=Sampling(
            fanouts=fanouts,
            replace=config.replace,
            receiver_keys=(
                _attribute_keys(store.meta) if config.receiver_view == "attributes" else None
            ),
        ),
        inputs=inputs,
    )
    note_begun(folder / JOB, config, inputs)
    artefacts.write_text(folder / MODEL, to_json(file))
    trained, plan, num_parameters = _train(config, workdir, file, store, meta)
    summary = {
        "tasks": [task.name for task in tasks],
        "text": config.model.features.text == "vectors",
        "best_step": trained.best.step,
        "best_score": trained.best.value,
        "num_steps": int(trained.state.step),
        "num_epochs": int(trained.state.step) / plan.steps_per_epoch,
        "num_parameters": num_parameters,
        "embedding_size": config.model.encoder.dim,
    }
    artefacts.seal(folder, KIND, summary)


def _train(
    config: GraphTrainConfig,
    workdir: Path,
    file: GraphModelFile,
    store: GraphStore,
    meta: TablesMeta,
) -> tuple[Trained, Plan, int]:
    folder = workdir / config.output
    mesh = make_mesh(config.mesh)
    model = file.build()
    params, statistics = init_model(model, config.seed)
    optimizer = make_optimizer(config.optimizer)
    state = create_state(
        params, optimizer, seed=config.seed, mesh=mesh, rules=FSDP_RULES, statistics=statistics
    )
    _log.info("%s parameters on %d device(s)", f"{trees.count(params):,}", mesh.size)
    streams = make_streams(config, workdir, file, store, meta, shards=mesh.size)
    batches, steps_per_epoch = _batches(streams, mesh.size)
    loss = _loss(config, model, meta)
    step = make_step(loss, optimizer, state=state, mesh=mesh, stateful=True)
    validation = GraphValidation(
        model, store, file, workdir / "tables", max_pairs=config.validation_pairs, seed=config.seed
    )

    def validate(state: TrainState) -> dict[str, float]:
        variables = {"params": state.trainable, "batch_stats": state.statistics}
        return validation(variables, int(state.step))

    frozen: dict[str, Any] = {}
    plan = settle(
        config.plan,
        path=folder / PLAN,
        like=None if config.plan_of is None else workdir / config.plan_of / PLAN,
        job=config,
        steps_per_epoch=steps_per_epoch,
        measure=lambda: measure(
            state=state, frozen=frozen, step=step, batches=batches, validate=validate
        ),
    )
    trained = train(
        name="train-graph",
        state=state,
        frozen=frozen,
        step=step,
        batches=batches,
        count=count_pairs,
        unit="pairs",
        peak_flops=None,
        rate=_rate(config, plan),
        plan=plan,
        validate=validate,
        checkpointer=Checkpointer(
            folder / CHECKPOINTS,
            config=config,
            frozen_digest=tree_digest(frozen),
            inputs=file.inputs,
        ),
        reporter=Reporter(folder),
    )
    return trained, plan, trees.count(params)


def _batches(streams: dict[str, TaskStream], shards: int) -> tuple[Any, float]:
    """Endless batches of all tasks, and how many of them hold every group of the largest one."""
    budgets = {name: stream.budgets() for name, stream in streams.items()}
    longest = max(stream.steps_per_epoch for stream in streams.values())
    return make_batches(BatchMaker(streams, budgets, shards)), longest / shards


def _loss(config: GraphTrainConfig, model: GraphModel, meta: TablesMeta) -> StatefulLoss:
    """The loss of all tasks, with the config's weights and the tables' class weights."""
    return make_loss(
        model,
        task_weights={task.name: 1.0 for task in model.tasks} | dict(config.task_weights),
        positive_weight={
            task.name: config.positive_weight * _class_ratio(meta, task) for task in model.tasks
        },
    )


def make_streams(
    config: GraphTrainConfig,
    workdir: Path,
    file: GraphModelFile,
    store: GraphStore,
    meta: TablesMeta,
    *,
    shards: int,
) -> dict[str, TaskStream]:
    """Every task's part of the batch: fixed numbers of groups and pairs, for static shapes."""
    groups = {
        task.name: Groups(read_pairs(workdir / "tables", task.name, "train")) for task in file.tasks
    }
    total = sum(len(each) ** config.size_power for each in groups.values())
    streams = {}
    for number, task in enumerate(file.tasks):
        mine = groups[task.name]
        negatives = None
        group_size = int(mine.sizes.max())
        if config.negatives == "uniform":
            negatives = UniformNegatives(mine, store, task, config.num_negatives)
            group_size = int(mine.num_positives.max()) * (1 + config.num_negatives)
        share = len(mine) ** config.size_power / total
        num_pairs = max(group_size, round(share * config.batch_size / shards))
        hides = tuple(meta.tasks[task.name].edge_types)
        streams[task.name] = TaskStream(
            mine,
            PairSampler(store, task, hides, file.sampling, visible_splits=TRAIN_SPLITS),
            negatives,
            num_groups=num_pairs // group_size,
            num_pairs=num_pairs,
            seed=config.seed + number,
            links=KnownLinks(mine.positives()) if config.model.decoder.kind == "softmax" else None,
        )
    return streams


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


def _rate(config: GraphTrainConfig, plan: Plan) -> Callable[[int], float]:
    warmup = warmup_steps(config.optimizer, config.batch_size, plan.num_steps)
    _log.info("warm-up over %d of %d steps", warmup, plan.num_steps)
    return lambda step: learning_rate(
        config.optimizer, step, num_steps=plan.num_steps, warmup=warmup
    )
