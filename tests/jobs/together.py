"""Several processes of one command, on this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

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


def training(*, fsdp=1, plan):
    """The file of a config."""
    return TRAINING.format(fsdp=fsdp, plan=plan)


def start(folder, count, command, config_text):
    """Starts processes of one CPU device each; their output is in `folder/INDEX.log`."""
    config = folder / "config.py"
    config.write_text(config_text)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    begun = []
    for index in range(count):
        arguments = [command, str(config), "--workdir", str(folder)]
        if count > 1:
            arguments += ["--coordinator", f"localhost:{port}", "--num-processes", str(count)]
            arguments += ["--process-id", str(index)]
        with (folder / f"{index}.log").open("w") as log:
            begun.append(
                subprocess.Popen(
                    [sys.executable, "-m", "star_jax", *arguments],
                    cwd=ROOT,
                    env=os.environ | {"PYTHONPATH": str(ROOT)},
                    stdout=log,
                    stderr=log,
                )
            )
    return begun


def finish(folder, count, command, config_text):
    """Their logs, when all have ended well."""
    codes = [process.wait(timeout=300) for process in start(folder, count, command, config_text)]
    logs = [(folder / f"{index}.log").read_text() for index in range(count)]
    assert codes == [0] * count, "\n".join(logs)
    return logs
