"""Memory and arithmetic of a graph step whose texts are encoded in it, as compiled: nothing runs.

Run:
    PYTHONPATH=. python bench/text_in_graph.py > bench/results/text_in_graph.md

One task over one hop: as many seeds as pairs on both sides, each with as many neighbours, and a
text of its own for every node, as at worst; encoded in chunks (`chunk_rows`) or in one pass.
Encoders of published shapes, float32. Memory is what
the compiled gradient needs beside its arguments (activations, gradients), plus parameters and
AdamW's two moments of what trains. Operations of the encoder are by formula (`text/flops.py`),
those of the graph model as compiled. Exit code 1: the modes do not stand in their order.
"""

import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.shapes import E5_SMALL, FLAN_T5_BASE, FLAN_T5_SMALL
from star_jax import trees
from star_jax.graph.batches import Neighbours, NodeTable, PairBatch, Subgraph
from star_jax.graph.decoders import DecoderConfig
from star_jax.graph.encoder import GraphEncoderConfig
from star_jax.graph.features import NodeFeatures
from star_jax.graph.match import MatchConfig
from star_jax.graph.model import GraphBatch, GraphModel, GraphModelConfig, LinkTask, init_model
from star_jax.graph.objective import make_loss
from star_jax.losses.semi_hard import SemiHardConfig
from star_jax.pipeline.graph_text import (
    BatchTexts,
    GraphTextConfig,
    TextInStep,
    joined,
    with_text,
)
from star_jax.shapes import PyTree
from star_jax.text.bi_encoder import BiEncoder, Mode
from star_jax.text.families import Shape, defaults
from star_jax.text.flops import hardware_flops
from star_jax.text.lora import COLLECTION, LoraConfig, init_lora
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.packing import Tokens
from star_jax.text.scorer import PairScorer, ScorerConfig
from star_jax.text.tower import TextTower, TowerConfig, param_shapes

ENCODERS = {"E5-small": E5_SMALL, "Flan-T5-small": FLAN_T5_SMALL, "Flan-T5-base": FLAN_T5_BASE}
_TYPES = ("job", "member")
_KEYS = ("job__rev_apply__member", "member__apply__job")


class Row(NamedTuple):
    """What is compiled; mode None reads vectors."""

    name: str
    mode: Mode | None
    trained: int | None = None
    chunk_rows: int = GraphTextConfig.chunk_rows


class Case(NamedTuple):
    """Sizes of a step."""

    encoder: str
    length: int
    neighbours: int
    pairs: int = 96

    @property
    def num_texts(self) -> int:
        """Of both roles."""
        return 2 * self.pairs * (1 + self.neighbours)


class Cost(NamedTuple):
    """Of one step."""

    memory_bytes: float
    flops: float


ROWS = (
    Row("embedding", None),
    Row("frozen encoder", "frozen"),
    Row("co-train, 32 texts", "full", 32),
    Row("co-train + LoRA, 32 texts", "lora", 32),
    Row("co-train + LoRA", "lora"),
    Row("co-train", "full"),
    Row("co-train, one pass", "full", None, 1 << 30),
)
CASES = (
    *(Case(name, 64, 10) for name in ENCODERS),
    Case("E5-small", 100, 100),
    Case("Flan-T5-small", 64, 100),
    Case("Flan-T5-small", 100, 10),
    Case("Flan-T5-small", 128, 10),
)


def cost(case: Case, row: Row) -> Cost:
    """Compiles the gradient of a step from shapes alone."""
    shape = ENCODERS[case.encoder]
    model = _graph_model(shape.width)
    params, statistics = jax.eval_shape(lambda: init_model(model, 0))
    loss: Any = make_loss(model, task_weights={"apply": 1.0}, positive_weight={"apply": 1.0})
    frozen: PyTree = {}
    batch = _batch(case, shape.width if row.mode is None else 1)
    if row.mode is not None:
        text = jax.eval_shape(lambda: _parts(shape, row.mode))
        encoder = _encoder(shape, row)
        loss, params, frozen = with_text(loss, encoder), joined(params, text[0]), text[1]
        batch = batch._replace(texts=_texts(case, row))

    def step(params: PyTree, frozen: PyTree, batch: GraphBatch, key: Any) -> Any:
        return jax.value_and_grad(
            lambda p: loss(p, jax.tree.map(jnp.zeros_like, statistics), frozen, batch, key)[0]
        )(params)

    key = jax.eval_shape(lambda: jax.random.key(0))
    program = jax.jit(step).lower(params, frozen, batch, key).compile()
    memory, found = program.memory_analysis(), program.cost_analysis()
    assert memory is not None
    assert found is not None
    states = 3 * 4 * trees.count(params) + trees.size_bytes(frozen)
    needed = memory.temp_size_in_bytes + memory.output_size_in_bytes + states
    return Cost(float(needed), float(found["flops"]) if row.mode is None else _flops(case, row))


def _flops(case: Case, row: Row) -> float:
    """Of the encoder."""
    shape, total = ENCODERS[case.encoder], 0.0
    assert row.mode is not None
    trained, read = _rows(case, row)
    parts: tuple[tuple[Mode, int], ...] = ((row.mode, trained), ("frozen", read))
    for mode, num_texts in parts:
        lengths = np.full(num_texts, case.length)
        cached = num_texts > row.chunk_rows
        total += hardware_flops(shape, mode, lengths, "none", cached=cached)
    return total


def _rows(case: Case, row: Row) -> tuple[int, int]:
    """Texts that the gradient flows through, and the others."""
    if row.mode == "frozen":
        return 0, case.num_texts
    trained = case.num_texts if row.trained is None else row.trained
    return trained, case.num_texts - trained


def _graph_model(width: int) -> GraphModel:
    config = GraphModelConfig(
        encoder=GraphEncoderConfig(layers=1),
        decoder=DecoderConfig(match=MatchConfig(enabled=False)),
    )
    features = tuple(NodeFeatures(name, 0, width, (), 0) for name in _TYPES)
    return GraphModel(config, features, _KEYS, (LinkTask("apply", "member", "job"),))


def _encoder(shape: Shape, row: Row) -> TextInStep:
    tower = TextTower(shape, defaults(shape).pooling, "float32", "none", "xla")
    model = BiEncoder(
        tower=tower,
        scorer=PairScorer(ScorerConfig()),
        lora=LoraConfig() if row.mode == "lora" else None,
        objective=ObjectiveConfig(semi_hard=SemiHardConfig()),
    )
    return TextInStep(
        model=model,
        tower=TowerConfig(),
        trainable={},
        frozen={},
        digest="",
        chunk_rows=row.chunk_rows,
    )


def _parts(shape: Shape, mode: Mode | None) -> tuple[PyTree, PyTree]:
    """Trainable and frozen variables."""
    tower = TextTower(shape, defaults(shape).pooling, "float32", "none", "xla")
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), param_shapes(tower))
    if mode == "full":
        return {"params": params}, {}
    if mode == "lora":
        return {COLLECTION: init_lora(jax.random.key(0), params, LoraConfig())}, {"params": params}
    return {}, {"params": params}


def _like(*shape: int, dtype: Any = jnp.int32) -> Any:
    return jax.ShapeDtypeStruct((1, *shape), dtype)  # One device.


def _batch(case: Case, width: int) -> GraphBatch:
    def subgraph(seed_type: str) -> Subgraph:
        (other,) = (name for name in _TYPES if name != seed_type)
        key = next(key for key in _KEYS if key.endswith(f"__{seed_type}"))
        sizes = {seed_type: case.pairs, other: case.pairs * case.neighbours}
        table = (case.pairs, case.neighbours)
        real = {"dtype": jnp.float32}
        edges = Neighbours(
            _like(*table),
            _like(*table, dtype=jnp.bool_),
            _like(*table, **real),
            _like(*table, **real),
        )
        return Subgraph({n: _table(size, width) for n, size in sizes.items()}, ({key: edges},))

    index, mask = _like(case.pairs), _like(case.pairs, dtype=jnp.bool_)
    label = _like(case.pairs, dtype=jnp.float32)
    pairs = PairBatch(subgraph("member"), subgraph("job"), index, index, label, mask)
    return GraphBatch({"apply": pairs}, mask)


def _table(rows: int, width: int) -> NodeTable:
    flag = _like(rows, dtype=jnp.bool_)
    texts = _like(rows, width, dtype=jnp.int32 if width == 1 else jnp.float32)
    dense = _like(rows, 0, dtype=jnp.float32)
    return NodeTable(_like(rows), flag, flag, _like(rows), texts, _like(rows, 0), dense)


def _texts(case: Case, row: Row) -> BatchTexts:
    trained, read = (
        Tokens(_like(size, case.length), _like(size, 1)) if size else None
        for size in _rows(case, row)
    )
    return BatchTexts(trained, read)


def misordered(costs: dict[str, Cost]) -> list[str]:
    """Which of the orders that the modes are offered for does not hold."""
    orders = (
        ("embedding", "frozen encoder"),
        ("frozen encoder", "co-train, 32 texts"),
        ("co-train, 32 texts", "co-train"),
        ("co-train + LoRA, 32 texts", "co-train + LoRA"),
        ("co-train + LoRA", "co-train"),
    )
    found = []
    for less, more in orders:
        for field in Cost._fields:
            a, b = getattr(costs[less], field), getattr(costs[more], field)
            if not a < b:
                found.append(f"{field} of {less} {a:.3g} is not below that of {more} {b:.3g}")
    if not costs["co-train"].memory_bytes < costs["co-train, one pass"].memory_bytes:
        found.append("chunks do not lower the memory")
    return found


def main() -> int:
    """Prints a table per case; 1 where an order does not hold."""
    print("# A graph step that encodes its texts\n")
    print("    PYTHONPATH=. python bench/text_in_graph.py > bench/results/text_in_graph.md\n")
    print(f"jax {jax.__version__}, compiled for the CPU, float32, one device, nothing executed.")
    print("Every node has a text of its own; attention keeps its scores (back end `xla`).\n")
    wrong = []
    for case in CASES:
        costs = {row.name: cost(case, row) for row in ROWS}
        graph = costs["embedding"].flops
        print(f"## {case.encoder}, {case.length} tokens, {case.neighbours} neighbours\n")
        print(f"{case.pairs} pairs, {case.num_texts:,} texts.\n")
        print("| mode | memory, GB | TFLOP, encoder | times the graph's |\n|---|---|---|---|")
        for name, each in costs.items():
            flops = 0.0 if name == "embedding" else each.flops
            print(
                f"| {name} | {each.memory_bytes / 1e9:.2f} | {flops / 1e12:.3f} "
                f"| {flops / graph:,.0f} |"
            )
        print()
        wrong += [f"{case.encoder} {case.length} {case.neighbours}: {w}" for w in misordered(costs)]
    print("\n".join(wrong) if wrong else "All modes stand in their order.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
