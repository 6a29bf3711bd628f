"""Small programs through the TPU's own compiler, as `star plan` hands them over, without a TPU."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.pipeline import graph_market

pytestmark = pytest.mark.extra("tpu-compiler")

PLANNED = """
import dataclasses, json
from pathlib import Path

from bench.shapes import MISTRAL_7B, hf_config
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.jobs.export_text import TextExportConfig
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.jobs.train_text import TextTrainConfig
from star_jax.parallel.mesh import MeshConfig
from star_jax.pipeline.graph_engines import EngineConfig
from star_jax.text.families import TokenLimits
from star_jax.text.tower import TowerConfig
from tests.jobs import tiny_graph, tiny_text

SMALL = dataclasses.replace(
    MISTRAL_7B, vocab_size=512, width=256, num_layers=2, num_heads=4, num_kv_heads=4,
    head_width=64, mlp_width=512,
)
LIMITS = TokenLimits(job=128, profile=128, resume=128, other=128)


@dataclasses.dataclass(frozen=True)
class Text:
    train_text: TextTrainConfig
    export_text: TextExportConfig


@dataclasses.dataclass(frozen=True)
class Graph:
    train_graph: GraphTrainConfig
    export_graph: GraphExportConfig


def text(base):
    (Path(base) / "config.json").write_text(json.dumps(hf_config(SMALL)))
    tower = TowerConfig(
        base=base, prompts="none", limits=LIMITS, param_dtype="bfloat16",
        compute_dtype="bfloat16", remat="full",
    )
    return tiny_text.config(
        tower=tower, mesh=MeshConfig(fsdp=4), batch_size=32, microbatch_size=16, pack_length=256
    )


def get_config():
    folder, mesh = Path(__file__).parent, MeshConfig(fsdp=4)
    if not (folder / "graph").exists():
        return Text(text(str(folder)), TextExportConfig(mesh=mesh, batch_tokens=512))
    return Graph(
        tiny_graph.config(mesh=mesh, engine=EngineConfig(kind="mesh"), tasks=("apply",)),
        GraphExportConfig(inference="layerwise", mesh=mesh),
    )
"""


class Said(NamedTuple):
    """What was printed for both halves."""

    codes: list[int]
    out: str
    err: str


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Of all stages on four chips."""
    text, graph = (tmp_path_factory.mktemp(name) for name in ("text", "graph"))
    graph_market.write(graph)
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "XLA_FLAGS": ""}
    runs = []
    for folder in (text, graph):
        config = folder / "config.py"
        config.write_text(PLANNED)
        command = [sys.executable, "-m", "star_jax", "plan", str(config), "--topology", "v5e:2x2"]
        runs.append(
            subprocess.run(
                [*command, "--workdir", str(folder)],
                capture_output=True,
                text=True,
                check=False,
                cwd=root,
                env=environment,
            )
        )
    out, err = ("".join(getattr(run, name) for run in runs) for name in ("stdout", "stderr"))
    return Said([run.returncode for run in runs], out, err)


def test_all_stages_fit(plan):
    assert plan.codes == [0, 0], plan.err
    stages = re.findall(r"^(\S+) on v5e:2x2 \(4 chips\)$", plan.out, re.MULTILINE)
    assert stages == ["train-text", "export-text", "train-graph", "export-graph"]
    assert plan.out.count("fits with 20% to spare") == 4


def test_nothing_is_copied_whole_to_be_split_anew(plan):
    assert "Involuntary full rematerialization" not in plan.err


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        ("train-text", "all-gather|all-reduce"),  # Weights, or what they are multiplied with.
        ("export-text", "all-gather|all-reduce"),
        ("train-graph", "all-to-all"),  # Requests between the shards of the graph.
    ],
)
def test_collectives_are_listed(plan, stage, kind):
    said = plan.out[plan.out.index(f"{stage} on ") :]
    said = said[: said.index(" predicted ")]
    assert re.search(rf"^  ({kind}): [\d,]+ a step, [\d.]+ GB to a chip$", said, re.MULTILINE)


def test_texts_go_through_the_tpu_s_kernel(plan):
    assert "attention by splash" in plan.out
