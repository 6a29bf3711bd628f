"""A run of two stages by several processes; run as a script, it is one of them.

The first stage is done by one process: it computes on a mesh, saves a checkpoint and reads it. The
second one adds up what all of them have.
"""

import dataclasses
import json
import sys
import time
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from star_jax import artefacts
from star_jax.jobs.run import Stage, run_stages
from star_jax.parallel import processes
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import FSDP_RULES
from star_jax.train.checkpoints import Checkpointer
from star_jax.train.optimizers import OptimizerConfig, make_optimizer
from star_jax.train.state import create_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    seconds: float = 0.0  # That the first stage takes longer.


def first(config: StageConfig, workdir: Path) -> None:
    """Says how many devices it computed with."""
    mesh = make_mesh(MeshConfig())
    params = {"weight": np.arange(8, dtype=np.float32)}
    optimizer = make_optimizer(OptimizerConfig())
    state = create_state(params, optimizer, seed=0, mesh=mesh, rules=FSDP_RULES)
    with artefacts.writing(workdir / "first", "first") as partial:
        checkpointer = Checkpointer(partial / "checkpoints", config=config, frozen_digest="")
        checkpointer.save(state, {}, None)
        restored = checkpointer.restore_last(state)
        total = float(jnp.sum(restored.state.trainable["weight"])) if restored else 0.0
        (workdir / "began").touch()
        time.sleep(config.seconds)
        (partial / "data").write_text(json.dumps([mesh.size, total]), encoding="utf-8")


def second(config: StageConfig, workdir: Path) -> None:
    """Says how many devices it computed with, and the sum of what was put on each."""
    mesh = make_mesh(MeshConfig())
    where = NamedSharding(mesh, PartitionSpec("data"))
    size, total = json.loads((workdir / "first" / "data").read_text(encoding="utf-8"))
    rows = jax.make_array_from_callback(
        (mesh.size,), where, lambda _: np.array([total * (jax.process_index() + 1)], np.float32)
    )
    data = [size, mesh.size, float(jax.jit(jnp.sum)(rows))]
    text = json.dumps(data)
    folder = workdir / "second"
    processes.write_once(lambda: (folder / "data").write_text(text, encoding="utf-8"), "data")
    processes.write_once(lambda: artefacts.seal(folder, "second", {}), "sealed")


def stages(config: StageConfig) -> list[Stage]:
    return [
        Stage("first", first, config, "first", "first", (), False),
        Stage("second", second, config, "second", "second", ("first",), True, together=True),
    ]


def main(workdir: str, seconds: str, port: str, count: str, index: str) -> None:
    """As one process of several."""
    processes.join(
        processes.Joined(
            coordinator=f"localhost:{port}", num_processes=int(count), process_id=int(index)
        )
    )
    try:
        run_stages(stages(StageConfig(seconds=float(seconds))), Path(workdir))
    except Exception:
        traceback.print_exc()
        processes.leave(1)  # As the command line does.
    processes.wait("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
