"""Several processes of one command, on this machine."""

import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path

from star_jax.parallel.processes import Joined, join, leave, wait

ROOT = Path(__file__).parents[2]
TRAINING = """
from star_jax.parallel.mesh import MeshConfig
from tests.jobs import tiny_text

def get_config():
    return tiny_text.config(mesh=MeshConfig(fsdp={fsdp}), plan=tiny_text.PlanConfig({plan}))
"""


EXPORT = """
from star_jax.jobs.export_text import TextExportConfig

def get_config():
    return TextExportConfig(batch_tokens=2048, num_lengths=1, part_texts=4)
"""


GRAPH_TRAINING = """
import dataclasses

from star_jax.parallel.mesh import MeshConfig
from star_jax.pipeline.graph_engines import EngineConfig
from tests.jobs import tiny_graph

def get_config():
    config = tiny_graph.config(
        num_steps=4,
        mesh=MeshConfig(fsdp=2),
        engine=EngineConfig(kind="{engine}", slack=8.0),
        tasks=("apply",),
    )
    model = dataclasses.replace(config.model, features=tiny_graph.BY_ROWS)
    return dataclasses.replace(config, model=model)
"""


def training(*, fsdp=1, plan):
    """The file of a config."""
    return TRAINING.format(fsdp=fsdp, plan=plan)


def free_port():
    """One that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def of_python(arguments, log, *, devices=1):
    """Starts a module of the project on so many CPU devices; its output goes to an open file."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=log,
        stderr=log,
    )


def take_part(work, port, count, index):
    """Works as one process of several, and ends as the command line does."""
    address = f"localhost:{port}"
    join(Joined(coordinator=address, num_processes=int(count), process_id=int(index)))
    done = False
    try:
        work()
        wait("done")
        done = True
    finally:
        if not done:
            traceback.print_exc()
            leave(1)  # The others may wait for this one.


def start(folder, count, command, config_text, *, devices=1, options=None):
    """Starts processes of so many CPU devices each; their output is in `folder/INDEX.log`.

    Their options are those given, or the folder as the working directory.
    """
    config = folder / "config.py"
    config.write_text(config_text)
    port = free_port()
    begun = []
    for index in range(count):
        arguments = [command, str(config), *(options or ["--workdir", str(folder)])]
        if count > 1:
            arguments += ["--coordinator", f"localhost:{port}", "--num-processes", str(count)]
            arguments += ["--process-id", str(index)]
        with (folder / f"{index}.log").open("w") as log:
            begun.append(of_python(["star_jax", *arguments], log, devices=devices))
    return begun


def finish(folder, count, command, config_text, *, devices=1):
    """Their logs, when all have ended well."""
    processes = start(folder, count, command, config_text, devices=devices)
    codes = [process.wait(timeout=300) for process in processes]
    logs = [(folder / f"{index}.log").read_text() for index in range(count)]
    assert codes == [0] * count, "\n".join(logs)
    return logs
