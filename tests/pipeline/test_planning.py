"""What a compiled program says of itself, and what a plan makes of it."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from star_jax.config import InputError
from star_jax.graph.batches import Role
from star_jax.graph.model import init_model
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline.graph_buckets import Shapes
from star_jax.pipeline.graph_embedding import Embedder, Wanted, split_view
from star_jax.pipeline.graph_engines import EngineConfig, make_engine
from star_jax.pipeline.graph_layers import LayerEncoder
from star_jax.pipeline.graph_model import open_training_store
from star_jax.pipeline.graph_programs import RowShards
from star_jax.pipeline.graph_states import StateFiles, complete
from star_jax.pipeline.graph_training import describe
from star_jax.pipeline.planning import graph, inference, memory, text
from star_jax.pipeline.planning.machines import parse_topology
from star_jax.pipeline.planning.prediction import Planned, described, fits, step_seconds
from star_jax.pipeline.planning.programs import (
    Program,
    Traffic,
    analyse,
    collectives,
    compiled,
    largest,
)
from star_jax.pipeline.tables.read import read_meta
from star_jax.text.attention_choice import this_machine
from tests.jobs import tiny_graph, tiny_text
from tests.pipeline import graph_market

CARRIED = """
%fused_computation.1 (p: f32[5]) -> f32[10] {
  %all-gather.1 = f32[10]{0} all-gather(%p), channel_id=7, replica_groups=[1,2]<=[2]
}

%async_collective_fusion.2 (p: f32[5]) -> f32[10] {
  %all-gather.2 = f32[10]{0} all-gather(%p), channel_id=7, replica_groups=[1,2]<=[2]
}

%condition (s: (u32[], f32[5])) -> pred[] {
  %limit = u32[]{:T(128)} constant(8)
  %at = u32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %less = pred[] compare(%at, %limit), direction=LT
}

%body (s: (u32[], f32[5])) -> (u32[], f32[5]) {
  %two = u32[]{:T(128)} constant(2)
  %at.2 = u32[]{:T(128)} get-tuple-element(%s), index=0
  %own = f32[5] get-tuple-element(%s), index=1
  %fusion.2 = f32[10] fusion(%own), kind=kCustom, calls=%async_collective_fusion.2
  %moved = (f32[5]{0}, f32[5]{0}, u32[], u32[]) collective-permute-start(%own), channel_id=9
  %part = f32[3]{0} reduce-scatter(%own), channel_id=11, replica_groups={{0,1,2}}, dimensions={0}
  %next = u32[]{:T(128)} add(%at.2, %two)
  ROOT %out = (u32[], f32[5]) tuple(%next, %own)
}

ENTRY %main (x: f32[5]) -> f32[5] {
  %fusion.1 = f32[10] fusion(%x), kind=kCustom, calls=%fused_computation.1
  %sum = f32[5] all-reduce(%x), channel_id=13, to_apply=%add
  %loop = (u32[], f32[5]) while(%start), condition=%condition, body=%body
}
"""


def test_what_fusions_carry_counts_once_and_loops_as_often_as_they_run():
    found, unknown = collectives(CARRIED)
    assert unknown == 0
    assert found == {
        "all-gather": Traffic(1, 40),
        "all-reduce": Traffic(1, 2 * 20),
        "collective-permute": Traffic(4, 4 * 20),  # From 0 to 8 by 2.
        "reduce-scatter": Traffic(4, 4 * 2 * 12),
    }


def test_loops_whose_length_depends_on_values_are_said():
    found, unknown = collectives(CARRIED.replace("constant(8)", "copy(%other)"))
    assert unknown == 1
    assert found["collective-permute"].number == 1


def scan_of(length, mesh):
    split = NamedSharding(mesh, PartitionSpec("fsdp"))

    def scanned(weights, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), ()), x, weights)[0]

    weights = jax.ShapeDtypeStruct(
        (length, 64, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=split)
    return jax.jit(scanned, out_shardings=split).lower(weights, x).compile()


def test_a_real_program_moves_its_weights_once_a_step():
    mesh = make_mesh(MeshConfig(fsdp=4), jax.devices()[:4])
    five, seven = (analyse(scan_of(length, mesh)) for length in (5, 7))
    assert five.unknown_loops == 0
    assert seven.link_bytes - five.link_bytes == 2 * 64 * 64 * 4
    assert five.argument_bytes == 5 * 64 * 16 * 4 + 2 * 64 * 4


def test_the_largest_arrays_are_named():
    program = scan_of(5, make_mesh(MeshConfig(fsdp=4), jax.devices()[:4])).as_text()
    assert program is not None
    sizes = [size for size, _ in largest(program, 3)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] >= 64 * 64 * 4


def test_the_planned_step_is_the_one_that_trains():
    """Its flops and bytes are those of arrays that really lie on the mesh."""
    config = tiny_text.config(microbatch_size=8, pack_length=96, mesh=MeshConfig(fsdp=4))
    mesh = make_mesh(config.mesh, jax.devices()[:4])
    batch = text.longest_batch(config, mesh.size)
    step = text.text_step(config, config.model_of(1.0), mesh, this_machine(), batch)
    program = analyse(step.lower().compile())
    assert step.counts.units == sum(int(table.lengths.sum()) for table in batch.texts)
    job, profile, resume = map(tiny_text.LIMITS.of, ("job", "profile", "resume"))
    groups = config.batch_size // config.group_size
    assert step.counts.units == groups * (config.group_size * job + profile + resume)
    held = step.frozen + step.trainable + step.optimizer
    assert held < program.argument_bytes < held + 2 * sum(a.nbytes for a in jax.tree.leaves(batch))
    assert program.link_bytes > 0


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """Tables, graph and text vectors."""
    return graph_market.write(tmp_path_factory.mktemp("market"))


@pytest.mark.parametrize("engine", ["host", "mesh"])
def test_the_planned_step_of_a_graph_holds_what_its_training_holds(market, engine):
    """By shape: what `MeshEngine` places, and the state that `create_state` makes."""
    config = tiny_graph.config(
        mesh=MeshConfig(fsdp=2), engine=EngineConfig(kind=engine), tasks=("apply",)
    )
    mesh = make_mesh(config.mesh, jax.devices()[:2])
    step = graph.graph_step(config, market, mesh)
    assert step.pairs == 48
    assert step.optimizer >= 2 * step.parameters > 0
    store = open_training_store(market, config.model.features, None)
    placed = getattr(make_engine(config.engine, store, mesh), "arrays", {})
    sizes = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed)]
    assert step.graph == sum(sizes)
    program = step.lower().as_text()
    assert ("all_to_all" in program) == (engine == "mesh")


class Counted:
    """Rows that say how often which function ran on them."""

    def __init__(self, mesh):
        self.mesh, self.rows, self.ran = mesh, RowShards(mesh), Counter()
        self.count, self.own, self.groups = self.rows.count, self.rows.own, self.rows.groups
        self.agreed = self.rows.agreed

    def run(self, of_part, model, variables, parts, **static):
        self.ran[of_part.__name__] += 1
        return self.rows.run(of_part, model, variables, parts, **static)


@pytest.fixture(scope="module")
def graph_of(market):
    """Model, how neighbours are drawn, view."""
    config, meta = tiny_graph.config(tasks=("apply",)), read_meta(market / "tables")
    store = open_training_store(market, config.model.features, None)
    file = describe(config, market, store, meta)
    return file.build(), file.sampling, split_view(store, "val")


@pytest.fixture
def rows():
    """On two devices."""
    return Counted(make_mesh(MeshConfig(), jax.devices()[:2]))


TARGET: tuple[Role, str] = ("receiver", "job")


def variables_of(model):
    return dict(zip(("params", "batch_stats"), init_model(model, 0), strict=True))


def test_the_planned_runs_of_an_export_are_those_it_does(graph_of, rows, tmp_path):
    model, sampling, view = graph_of
    num_nodes = view.store.num_nodes
    encoder = LayerEncoder(
        model, variables_of(model), sampling, view, rows, neighbours="fanout", shapes=Shapes()
    )
    sizes = {"num_nodes": num_nodes, "part_nodes": 16, "size": encoder.width}
    files = StateFiles(tmp_path, {}, **sizes, precision="bfloat16")
    outputs = encoder.outputs(*TARGET)
    complete(encoder, files, outputs)
    for nodes in files.of(outputs[-1]).parts:
        encoder.vectors(*TARGET, [files.read(state, nodes) for state in outputs])
    what = inference.Exported([TARGET], 16, "fanout", "bfloat16")
    export = inference.export_runs(model, sampling, view, rows.mesh, what, 1)
    assert sum(run.times for run in export.runs) == sum(rows.ran.values())
    ends = [run.times for run in export.runs if run.name.startswith("vectors")]
    assert sum(ends) == rows.ran["ending"] > 1
    assert export.nodes == num_nodes["job"]
    states = list(tmp_path.glob("*/*.npy"))
    assert export.state_bytes == sum(np.load(path).nbytes for path in states)
    halved = inference.export_runs(model, sampling, view, rows.mesh, what, 2)
    assert sum(run.times for run in halved.runs) < sum(run.times for run in export.runs)
    whole, half = inference.together(export), inference.together(halved)
    assert isinstance(whole, Program)
    assert isinstance(half, Program)
    assert whole.flops > half.flops > 0
    assert whole.peak_bytes == half.peak_bytes


def test_the_samples_of_an_export_are_planned(graph_of, rows, monkeypatch):
    monkeypatch.setattr("star_jax.pipeline.graph_embedding._MOST_SEEDS", 8)
    model, sampling, view = graph_of
    embedder, part_nodes = Embedder(model, sampling, rows), 24  # Two stacks, one half empty.
    everyone = np.arange(view.store.num_nodes["job"], dtype=np.int32)
    embedder.measure(Wanted.of_view(view, *TARGET, everyone))
    for start in range(0, len(everyone), part_nodes):
        nodes = everyone[start : start + part_nodes]
        embedder.embed(variables_of(model), Wanted.of_view(view, *TARGET, nodes))
    what = inference.Exported([TARGET], part_nodes, None, "float32")
    export = inference.export_runs(model, sampling, view, rows.mesh, what, 1)
    (run,) = export.runs
    assert run.times == rows.ran["embed"] > len(everyone) / part_nodes
    assert (export.nodes, export.state_bytes) == (len(everyone), 0)
    program, once = inference.together(export), compiled(lambda: run.lowered)
    assert isinstance(program, Program)
    assert isinstance(once, Program)
    assert program.flops == run.times * once.flops > 0
    assert program.peak_bytes == once.peak_bytes


def planned(peak, **fields):
    program = Program(peak, 0, 0, 1.0, 2, {"all-gather": Traffic(3, 10**9)}, 0)
    defaults = {
        "stage": "train-text",
        "parts": {"base": peak},
        "program": program,
        "working": {},
        "flops": 197e12,
        "unit": "tokens",
        "units": 1000.0,
        "steps": 3600,
        "memory_traffic": None,
        "notes": ("a note",),
        "remedy": "a larger mesh.fsdp",
    }
    return Planned(**defaults | fields)


def test_a_plan_says_time_and_what_to_change():
    topology = parse_topology("v5e:4x4")
    good, bad = planned(12 << 30), planned(13 << 30)
    assert fits(good, topology)
    assert not fits(bad, topology)  # 81 %.
    assert step_seconds(good, topology) == {"arithmetic": 2.0, "links": 0.01}
    lines = "\n".join(described(good, topology))
    assert "500 tokens/s" in lines
    assert "3,600 steps: 2.00 hours, 32.0 chip-hours" in lines
    assert "all-gather: 3 a step, 1.000 GB" in lines
    assert "a larger mesh.fsdp" not in lines
    assert "to make it fit: a larger mesh.fsdp" in "\n".join(described(bad, topology))
    slow = planned(1, memory_traffic=4 * 819e9)
    assert "250 tokens/s" in "\n".join(described(slow, topology))


def test_what_gpus_hold_is_an_estimate_by_its_parts():
    topology = parse_topology("h200:8")
    good, bad = (
        planned(peak << 30, working={"states for the backward pass": 3 << 20})
        for peak in (100, 106)
    )
    lines = "\n".join(described(good, topology))
    assert "estimates" in lines
    assert "states for the backward pass            3.00 MiB" in lines
    assert "activations" not in lines
    assert fits(good, topology)
    assert not fits(bad, topology)  # 81 %.
    assert "estimates" not in "\n".join(described(good, parse_topology("v5e:4x4")))


def test_a_twin_compiled_for_cpus_gathers_weights_twice_as_wide():
    program = Program(1, 2, 3, 4.0, 5, {kind: Traffic(3, 80) for kind in GATHERED}, 0)
    bfloat16, float32 = (memory.on_gpu(program, {"a": 5, "b": 6}, d) for d in TYPES)
    assert (bfloat16.peak_bytes, float32.peak_bytes) == (1 + 2 + 11, 1 + 2 + 11)
    assert bfloat16.collectives == {"all-gather": Traffic(3, 40), "all-reduce": Traffic(3, 80)}
    assert float32.collectives == program.collectives


GATHERED, TYPES = ("all-gather", "all-reduce"), ("bfloat16", "float32")


def test_what_the_compiler_has_no_room_for_does_not_fit():
    lines = refused("RESOURCE_EXHAUSTED: Ran out of memory on HBM, 33.54G exceeds 15.75G.\nMore.")
    assert "at least" in lines
    assert "does NOT fit" in lines
    assert "the compiler: Ran out of memory on HBM, 33.54G exceeds 15.75G.\n" in lines
    assert "to make it fit: a larger mesh.fsdp" in lines
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        refused("INTERNAL: broken")


def refused(said):
    def lower():
        raise jax.errors.JaxRuntimeError(said)

    plan = planned(1 << 30, program=compiled(lower))
    topology = parse_topology("v5e:4x4")
    assert not fits(plan, topology)
    return "\n".join(described(plan, topology))


@pytest.mark.parametrize("name", ["v5e", "v9:4x4", "h200:2x4", "v5e:0x4", "v5e:4x"])
def test_a_wrong_topology_is_named(name):
    with pytest.raises(InputError, match=f"--topology '{name}'.*v5e:4x4.*h200:8"):
        parse_topology(name)


def test_topologies_count_their_chips():
    assert [parse_topology(name).count for name in ("v5p:4x4x4", "h200:8")] == [64, 8]
    assert parse_topology("v6e:8x8").chip.memory == 32 << 30
