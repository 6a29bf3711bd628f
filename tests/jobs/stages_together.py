"""A run of four stages by several processes; run as a script, it is one of them."""

import dataclasses
import functools
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from star_jax import artefacts
from star_jax.jobs.run import Stage, run_stages
from star_jax.parallel import processes
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import FSDP_RULES
from star_jax.train.checkpoints import Checkpointer, TrainedParameters, load_trained
from star_jax.train.optimizers import OptimizerConfig, make_optimizer
from star_jax.train.state import TrainState, create_state
from tests.jobs.together import take_part


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    seconds: float = 0.0  # That the first stage takes.


def prepare(config: StageConfig, workdir: Path) -> None:
    """Takes its time."""
    with artefacts.writing(workdir / "data", "data") as partial:
        (workdir / "began").touch()
        time.sleep(config.seconds)
        (partial / "size").write_text(str(make_mesh(MeshConfig()).size), encoding="utf-8")


def train(config: StageConfig, workdir: Path, output: str) -> None:
    """Saves the sum of what was put on each device."""
    size = int((workdir / "data" / "size").read_text(encoding="utf-8"))
    mesh = make_mesh(MeshConfig())
    rows = jax.make_array_from_callback(
        (mesh.size,),
        NamedSharding(mesh, PartitionSpec("data")),
        lambda _: np.array([size * (10.0 + jax.process_index())], np.float32),
    )
    state = begin(mesh)
    state = state._replace(
        trainable={"weight": jax.jit(jnp.add)(state.trainable["weight"], jnp.sum(rows))}
    )
    folder = workdir / output
    checkpointer = Checkpointer(folder / "checkpoints", config=config, frozen_digest="")
    checkpointer.save(state, {}, None)
    processes.write_once(lambda: artefacts.seal(folder, "model", {}), "sealed")


def score(config: StageConfig, workdir: Path) -> None:
    """Says how many devices it computed with, and what it read."""
    mesh = make_mesh(MeshConfig())
    like = begin(mesh)
    checkpointer = Checkpointer(workdir / "model" / "checkpoints", config=config, frozen_digest="")
    read = checkpointer.restore(0, like).state.trainable
    model = load_trained(
        workdir / "model" / "checkpoints",
        0,
        TrainedParameters(like.trainable, like.statistics),
        frozen_digest="",
    ).trainable
    with artefacts.writing(workdir / "scores", "scores") as partial:
        values = [mesh.size, *(float(each["weight"].sum()) for each in (read, model))]
        (partial / "values").write_text(json.dumps(values), encoding="utf-8")


def begin(mesh: Mesh) -> TrainState:
    """Ones."""
    params = {"weight": np.ones(4, np.float32)}
    optimizer = make_optimizer(OptimizerConfig())
    return create_state(params, optimizer, seed=0, mesh=mesh, rules=FSDP_RULES)


def stages(config: StageConfig) -> list[Stage]:
    """Data, a model, its scores and another model; training is done by all."""

    def training(output: str) -> Stage:
        do = functools.partial(train, output=output)
        return Stage("train", do, config, output, "model", ("data",), True, together=True)

    return [
        Stage("prepare", prepare, config, "data", "data", (), False),
        training("model"),
        Stage("score", score, config, "scores", "scores", ("model",), False),
        training("again"),  # After a checkpoint that one process read.
    ]


def main(workdir: str, seconds: str, port: str, count: str, index: str) -> None:
    """As one process of several."""
    todo = stages(StageConfig(seconds=float(seconds)))
    take_part(lambda: run_stages(todo, Path(workdir)), port, count, index)


if __name__ == "__main__":
    main(*sys.argv[1:])
