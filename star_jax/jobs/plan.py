"""`star plan`: whether a config fits machines that are not here, how long it takes, what it moves.

Compiles the steps of the stages from shapes alone, for TPUs by their own compiler (`jax[tpu]`, no
TPU needed). With `W`, reads `W/tables` and plans for its texts, tokenised into `W/text_tokens`
where they are not yet; without, every text is as long as the limits allow. The graph half is
planned where `W/graph` lies.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.config import InputError
from star_jax.jobs.export_graph import GraphExportConfig, targets
from star_jax.jobs.export_text import TextExportConfig
from star_jax.parallel.mesh import make_mesh, num_row_shards
from star_jax.pipeline.graph_embedding import split_view
from star_jax.pipeline.graph_model import open_training_store
from star_jax.pipeline.graph_training import GraphTrainConfig, describe
from star_jax.pipeline.planning import graph, inference, text
from star_jax.pipeline.planning.machines import GIB, Topology, parse_topology, planned_devices
from star_jax.pipeline.planning.memory import on_gpu
from star_jax.pipeline.planning.prediction import EFFICIENCY, Planned, described, fits
from star_jax.pipeline.planning.programs import Program, Refused, compiled
from star_jax.pipeline.tables.read import read_meta
from star_jax.pipeline.text_encoding import ACCELERATOR_TOKENS
from star_jax.pipeline.text_loader import BatchBuilder
from star_jax.pipeline.text_model import TextModelConfig
from star_jax.pipeline.text_training import TextTrainConfig, read_data
from star_jax.text.bi_encoder import TextBatch
from star_jax.text.flops import model_flops
from star_jax.text.tower import TowerConfig, read_base
from star_jax.train.plan import num_steps

_SERVED_TOKENS = (1024, 1500, 1800)
_SERVED_PER_S = 200  # Queries, as in the paper (SPEC 13).


class _Given:
    """What a plan is made for."""

    def __init__(self, topology: Topology, workdir: Path | None, num_pairs: int | None) -> None:
        imported = workdir is not None and (workdir / "tables").is_dir()
        self.workdir = workdir if imported else None  # Whose tables are planned for.
        self.topology, self.num_pairs = topology, num_pairs
        self.devices = planned_devices(topology)


def run(
    config: Any,
    topology: str,
    say: Callable[[str], None],
    *,
    workdir: Path | None = None,
    num_pairs: int | None = None,
) -> bool:
    """Says the plan of every stage that a config has; returns whether all of them fit.

    Args:
      config: Of a whole run, of `train-text` or of `train-graph`.
      topology: Such as `v5e:4x4`, `v5p:4x4x4`, `v6e:8x8`; of GPUs, `h200:8`, what is said is an
        estimate: see `star_jax.pipeline.planning.memory`.
      say: Takes one line.
      workdir: Whose data is planned for, once it was imported.
      num_pairs: Training pairs, where no folder says how many.

    Raises:
      InputError: The topology is unknown, its compiler is missing, or the config has no stage that
        can be planned.
    """
    given = _Given(parse_topology(topology), workdir, num_pairs)
    trained, exported = _part(config, TextTrainConfig), _part(config, TextExportConfig)
    graphed, sent = _part(config, GraphTrainConfig), _part(config, GraphExportConfig)
    if trained is None and graphed is None:
        raise InputError(
            f"{type(config).__name__} cannot be planned, needed the config of train-text, of "
            "train-graph or of a whole run"
        )
    stages: list[Callable[[], Planned]] = []
    if trained is not None:
        stages.append(lambda: _train_text(trained, given))
        if exported is not None:
            stages.append(lambda: _export_text(trained, exported, given))
    folder = given.workdir
    if graphed is not None and folder is not None and (folder / "graph").is_dir():
        stages.append(lambda: _train_graph(graphed, folder, given))
        if sent is not None:
            stages.append(lambda: _export_graph(graphed, sent, folder, given))
    elif graphed is not None:
        say("train-graph is planned when --workdir holds its graph, by star build-graph")
    all_fit = True
    for stage in stages:  # Each takes minutes to compile.
        planned = stage()
        all_fit &= fits(planned, given.topology)
        for line in described(planned, given.topology):
            say(line)
    for line in () if trained is None else _serving(trained, given.topology):
        say(line)
    return all_fit


def _part(config: Any, kind: type) -> Any:
    """The config of one stage, or None."""
    fields = [getattr(config, field.name) for field in dataclasses.fields(config)]
    return next((each for each in [config, *fields] if isinstance(each, kind)), None)


def _train_text(config: TextTrainConfig, given: _Given) -> Planned:
    mesh = make_mesh(config.mesh, given.devices)
    batch, model_config, num_groups = _batch(config, given, num_row_shards(mesh))
    step = text.text_step(config, model_config, mesh, given.topology.machine, batch)
    shape, counts = config.batch_shape(num_row_shards(mesh)), step.counts
    assert counts.arithmetic is not None
    steps = None
    if num_groups is not None:
        steps = num_steps(config.plan, num_groups / (shape.num_groups * shape.num_microbatches))
    return Planned(
        stage="train-text",
        parts={
            "base, frozen": step.frozen,
            "trainable parameters": step.trainable,
            "optimizer": step.optimizer,
        },
        program=_text_program(step, config.tower),
        working=step.working,
        flops=counts.arithmetic.hardware / mesh.size,
        unit="tokens",
        units=counts.units,
        steps=steps,
        memory_traffic=None,
        notes=(
            *_choices(mesh.shape, step),
            f"remat {config.tower.remat}, {config.batch_size} pairs an update, "
            f"{config.microbatch_size} of them encoded at a time",
            f"{counts.units:,} tokens an update, {counts.slots:,} with padding; texts "
            + ("as long as the limits allow" if given.workdir is None else f"of {given.workdir}"),
        ),
        remedy="a larger mesh.fsdp, a smaller microbatch_size, or tower.remat=full",
    )


def _batch(
    config: TextTrainConfig, given: _Given, num_shards: int
) -> tuple[TextBatch, TextModelConfig, float | None]:
    """A batch of the training, what it trains, and its groups where they are known."""
    shape = config.batch_shape(num_shards)
    if given.workdir is None:
        pairs = given.num_pairs
        num_groups = None if pairs is None else pairs / config.group_size
        return text.longest_batch(config, num_shards), config.model_of(1.0), num_groups
    task_name, task = next(iter(read_meta(given.workdir / "tables").tasks.items()))
    data = read_data(config, given.workdir, task_name, task, {})
    if not len(data.train.label):
        raise InputError(f"{given.workdir / 'tables'}: no training pair has texts on both sides")
    builder = BatchBuilder(data.train, data.records, shape, known=data.known, seed=config.seed)
    groups = np.arange(shape.num_groups * shape.num_microbatches) % builder.num_groups
    return builder(0, groups), config.model(task), builder.num_groups


def _export_text(trained: TextTrainConfig, config: TextExportConfig, given: _Given) -> Planned:
    mesh = make_mesh(config.mesh, given.devices)
    tokens = config.batch_tokens or ACCELERATOR_TOKENS
    longest = max(vars(read_base(trained.tower).limits).values())
    step = text.text_export(
        trained.model_of(1.0), mesh, given.topology.machine, tokens=tokens, length=longest
    )
    arithmetic = step.counts.arithmetic
    assert arithmetic is not None
    return Planned(
        stage="export-text",
        parts={"base and adapters": step.frozen},
        program=_text_program(step, trained.tower),
        working=step.working,
        flops=arithmetic.hardware / mesh.size,
        unit="tokens",
        units=step.counts.units,
        steps=None,
        memory_traffic=None,
        notes=(*_choices(mesh.shape, step), f"batches of texts of {longest} tokens"),
        remedy="a larger mesh.fsdp, or a smaller batch_tokens",
    )


def _train_graph(config: GraphTrainConfig, folder: Path, given: _Given) -> Planned:
    mesh = make_mesh(config.mesh, given.devices)
    step = graph.graph_step(config, folder, mesh)
    program = compiled(step.lower)
    return Planned(
        stage="train-graph",
        parts={
            "parameters": step.parameters,
            "optimizer": step.optimizer,
            "graph and features": step.graph,
        },
        program=program,
        working={},
        flops=program.flops if isinstance(program, Program) else 0.0,
        unit="pairs",
        units=step.pairs,
        steps=num_steps(config.plan, step.steps_per_epoch),
        memory_traffic=program.memory_traffic if isinstance(program, Program) else None,
        notes=(
            f"mesh {_axes(mesh.shape)}, sampled by the engine {config.engine.kind}",
            f"{step.pairs:,} pairs a step of {folder}; loops count once in its arithmetic and "
            "memory",
        ),
        remedy="a larger mesh.fsdp, a smaller batch_size or fanouts.total, or engine.kind=host",
    )


def _export_graph(
    trained: GraphTrainConfig, config: GraphExportConfig, folder: Path, given: _Given
) -> Planned:
    """Of the processes, which compute apart, each has the devices of one host."""
    devices = [d for d in given.devices if d.process_index == given.devices[0].process_index]
    num_processes = len(given.devices) // len(devices)
    mesh = make_mesh(config.mesh, devices)
    meta = read_meta(folder / "tables")
    store = open_training_store(folder, trained.model.features, trained.text_encoder)
    file = describe(trained, folder, store, meta)
    what = inference.Exported(
        [(target.role, target.node_type) for target in targets(file, config)],
        config.part_nodes,
        config.neighbours if config.inference == "layerwise" else None,
        config.state_precision,
    )
    view = split_view(store, config.visible)
    export = inference.export_runs(file.build(), file.sampling, view, mesh, what, num_processes)
    program = inference.together(export)
    known = isinstance(program, Program)
    return Planned(
        stage="export-graph",
        parts={"parameters": export.parameters},
        program=program,
        working={},
        flops=program.flops if known else 0.0,
        unit="nodes",
        units=export.nodes,
        steps=1,
        memory_traffic=program.memory_traffic if known else None,
        notes=(
            f"processes that compute apart: {num_processes}, each on mesh {_axes(mesh.shape)}",
            f"{config.inference}, {sum(run.times for run in export.runs):,} runs of "
            f"{len(export.runs)} programs on each; a step is all of them",
            f"states between layers: {export.state_bytes / GIB:,.2f} GiB on disk; sampling on "
            "hosts is not in the times",
        ),
        remedy="mesh.data in the place of mesh.fsdp, or fewer node_types",
    )


def _axes(mesh_shape: Any) -> str:
    return " x ".join(f"{name} {size}" for name, size in mesh_shape.items())


def _choices(mesh_shape: Any, step: text.TextStep) -> tuple[str, ...]:
    return (f"mesh {_axes(mesh_shape)}, attention by {step.attention}",)


def _text_program(step: text.TextStep, tower: TowerConfig) -> Program | Refused:
    program = compiled(step.lower)
    if step.working and isinstance(program, Program):
        return on_gpu(program, step.working, tower.compute_dtype)
    return program


def _serving(config: TextTrainConfig, topology: Topology) -> Iterator[str]:
    """How many chips answer as many queries a second as the paper's (SPEC 13)."""
    base = read_base(config.tower)
    assert base.pooling.attention is not None
    yield f"serve on {topology.kind}, one copy of the base a chip, forward passes alone"
    for tokens in _SERVED_TOKENS:
        flops = model_flops(base.shape, "frozen", np.array([tokens]), base.pooling.attention)
        rate = EFFICIENCY * topology.chip.flops / flops
        yield (
            f"  {tokens} tokens: {flops / 1e12:.1f} TFLOP, {rate:.1f} texts/s a chip, "
            f"{_SERVED_PER_S} a second need {-(-_SERVED_PER_S // rate):.0f} chips"
        )
