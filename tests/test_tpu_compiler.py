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


ROWS = """
import jax
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import batch_shardings, placed
from star_jax.pipeline.planning.machines import parse_topology, planned_devices
from star_jax.pipeline.planning.programs import largest
from star_jax.train.state import shapes_of_state
from star_jax.train.step import make_step
from tests.train import lookups

NUM_ROWS, WIDTH = 2_000_000, 200  # More than fits into the vector memory of a chip.
devices = planned_devices(parse_topology("v5e:2x2"))
mesh = make_mesh(MeshConfig(fsdp=4), devices)
optimizer = lookups.optimizer_of("adam", NUM_ROWS)
shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, "float32")
params = {"head": {"kernel": shape(WIDTH)}, "table": {"vectors": shape(NUM_ROWS, WIDTH)}}
state = shapes_of_state(params, optimizer, mesh=mesh, rules=lookups.RULES)
step = make_step(lookups.loss_fn, optimizer, state=state, mesh=mesh)
batch = lookups.batch_of(0)
lowered = step.lower(state, {}, placed(batch, batch_shardings(batch, mesh)))
for size, name in largest(lowered.compile().as_text(), 100):
    print(size, name)
"""


def test_tables_that_are_updated_by_rows_are_not_turned_around():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "XLA_FLAGS": ""}
    command = [sys.executable, "-c", ROWS]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    of_table = [line for line in ran.stdout.splitlines() if " f32[500000,200] " in line]
    assert of_table  # They are updated in place,
    assert not [line for line in of_table if " copy" in line]  # and stay as they lie.
