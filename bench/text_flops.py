"""Arithmetic and memory of the LoRA step, as compiled: nothing is executed.

Run:
    PYTHONPATH=. python bench/text_flops.py > bench/results/text_flops.md

Blocks of the shape of e5-mistral-7b-instruct, float32, rank 8 on all seven linear maps, the whole
loss with its gradient. XLA's cost analysis counts the body of a loop over blocks once, whatever
the number of blocks: the script checks that, so what it reports are operations of one block. ND
is N parameters of a block times the tokens; attention (whole squares) is subtracted by formula.
Exit code 1: a bar is missed.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.shapes import MISTRAL_7B
from star_jax.losses.semi_hard import SemiHardConfig
from star_jax.shapes import PyTree
from star_jax.text.bi_encoder import (
    BiEncoder,
    Mode,
    TextBatch,
    bi_encoder_loss,
    init_scorer,
    trainable_split,
)
from star_jax.text.families import Shape, defaults
from star_jax.text.flops import attention_flops, layer_matmuls
from star_jax.text.lora import COLLECTION, LoraConfig, init_lora, merge_lora
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.packing import Tokens
from star_jax.text.scorer import PairScorer, ScorerConfig
from star_jax.text.stack import Remat
from star_jax.text.tower import TextTower, param_shapes

LAYER_7B = dataclasses.replace(MISTRAL_7B, num_layers=3)

Kind = Literal["forward", "lora", "merged", "full"]


class Compiled(NamedTuple):
    """What the compiler says of a step."""

    flops: float  # Of one block, attention included.
    temp_bytes: int  # Of all blocks.


class Row(NamedTuple):
    """A step, and the bars of its linear maps in ND."""

    name: str
    kind: Kind
    remat: Remat
    least: float
    most: float
    chunks: int = 1  # Of the texts; more than one is a gradient cache.


ROWS = (
    Row("forward only", "forward", "none", 1.9, 2.1),
    Row("LoRA on activations", "lora", "none", 3.8, 4.1),
    Row("LoRA on activations, remat dots", "lora", "dots", 3.8, 4.1),
    Row("LoRA on activations, remat full", "lora", "full", 5.0, 5.6),
    Row("LoRA, gradient cache of 2 chunks", "lora", "none", 5.5, 6.0, 2),
    Row("LoRA, gradient cache, remat full", "lora", "full", 6.5, 7.6, 2),
    Row("LoRA merged into W inside the loss", "merged", "none", 5.8, math.inf),
    Row("LoRA merged, remat full", "merged", "full", 7.0, math.inf),
    Row("full fine-tuning", "full", "none", 5.8, 6.1),
)


def compile_step(
    shape: Shape,
    kind: Kind,
    remat: Remat,
    *,
    rows: int,
    length: int,
    rank: int = 8,
    chunks: int = 1,
) -> Compiled:
    """Compiles loss and gradient from shapes alone.

    Args:
      shape: Of the encoder, with two blocks or more.
      kind: What trains, and how.
      remat: What the blocks compute again.
      rows: Texts of a chunk; half as many pairs of all.
      length: Tokens of each text.
      rank: Of the adapters.
      chunks: Of a gradient cache; their loop is counted once, like that over the blocks.
    """
    lora = LoraConfig(rank=rank, dropout=0.0, targets=r".*_proj")
    model = BiEncoder(
        tower=TextTower(shape, defaults(shape).pooling, "float32", remat, "xla"),
        scorer=PairScorer(ScorerConfig(hidden=())),
        lora=lora if kind == "lora" else None,
        objective=ObjectiveConfig(semi_hard=SemiHardConfig()),
    )
    variables = jax.eval_shape(lambda: _variables(model, lora, kind))
    step, arguments = _step(model, lora, kind, variables, _batch(rows, length, chunks))
    program = jax.jit(step).lower(*arguments).compile()
    cost, memory = program.cost_analysis(), program.memory_analysis()
    assert cost is not None
    assert memory is not None
    return Compiled(float(cost["flops"]), memory.temp_size_in_bytes)


def linear_nd(compiled: Compiled, row: Row, shape: Shape, *, rows: int, length: int) -> float:
    """Operations of a block beside attention, in units of its parameters times the tokens."""
    one = dataclasses.replace(shape, num_layers=1)
    square = attention_flops(one, np.full(rows, length), "bidirectional", None)
    # As in text/flops.py: forward, backward, and what the policy computes again.
    again = {"none": 0.0, "dots": 0.5, "full": 1.0}[row.remat] + (row.chunks > 1)
    times = 1.0 if row.kind == "forward" else 3.0 + again
    tokens = rows * length
    return (compiled.flops - times * square) / (sum(layer_matmuls(shape).values()) * tokens)


def _variables(model: BiEncoder, lora: LoraConfig, kind: Kind) -> PyTree:
    params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), param_shapes(model.tower))
    variables = {"params": params, "scorer": init_scorer(model, jax.random.key(0))}
    if kind in ("lora", "merged"):
        variables[COLLECTION] = init_lora(jax.random.key(0), params, lora)
    return variables


def _step(
    model: BiEncoder, lora: LoraConfig, kind: Kind, variables: PyTree, batch: PyTree
) -> tuple[Callable[..., Any], tuple[PyTree, ...]]:
    def loss(trainable: PyTree, frozen: PyTree, batch: TextBatch) -> jax.Array:
        joined = {**frozen, **trainable}
        if kind == "merged":
            merged = merge_lora(joined["params"], joined[COLLECTION], lora)
            joined = {"params": merged, "scorer": joined["scorer"]}
        return bi_encoder_loss(joined, batch, model, None)[0]

    modes: dict[Kind, Mode] = {
        "forward": "frozen",
        "lora": "lora",
        "merged": "lora",
        "full": "full",
    }
    mode = modes[kind]
    split = jax.eval_shape(lambda v: trainable_split(v, mode), variables)
    step = loss if kind == "forward" else jax.value_and_grad(loss)
    return step, (*split, batch)


def _batch(rows: int, length: int, chunks: int) -> PyTree:
    def like(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    pairs = rows // 2
    axes = (chunks, rows) if chunks > 1 else (rows,)
    texts = Tokens(like(*axes, length), like(*axes, 1))
    index, label = like(pairs), like(pairs, dtype=jnp.float32)
    mask = like(pairs, dtype=jnp.bool_)
    return TextBatch((texts,), index, index, index, label, mask, index, index)


def _bar(row: Row) -> str:
    return f">= {row.least}" if row.most == math.inf else f"{row.least} to {row.most}"


def main() -> int:
    """Prints the table; 1 when a bar is missed."""
    size = {"rows": 4, "length": 256}
    shorter = dataclasses.replace(LAYER_7B, num_layers=2)
    two = compile_step(shorter, "lora", "none", **size)
    found = {
        row: compile_step(LAYER_7B, row.kind, row.remat, **size, chunks=row.chunks) for row in ROWS
    }
    print("# Compiled arithmetic of the LoRA step\n")
    print("    PYTHONPATH=. python bench/text_flops.py > bench/results/text_flops.md\n")
    print(f"jax {jax.__version__}, CPU, {LAYER_7B.num_layers} blocks of the 7B shape, ", end="")
    print(f"{size['rows']} texts of {size['length']} tokens; nothing was executed.\n")
    print("| step | ND | bar | temporary memory, GB |\n|---|---|---|---|")
    missed = []
    for row, compiled in found.items():
        nd = linear_nd(compiled, row, LAYER_7B, **size)
        print(f"| {row.name} | {nd:.2f} | {_bar(row)} | {compiled.temp_bytes / 1e9:.2f} |")
        if not row.least <= nd <= row.most:
            missed.append(f"{row.name}: {nd:.2f} ND misses {_bar(row)}")
    none, dots, full = (found[ROWS[i]] for i in (1, 2, 3))
    if abs(two.flops - none.flops) > 1e-3 * none.flops:
        missed.append(f"2 blocks {two.flops:.4g}, 3 blocks {none.flops:.4g}: the body counts twice")
    if not full.temp_bytes < dots.temp_bytes < none.temp_bytes:
        missed.append("remat does not lower the temporary memory")
    print("\nMerging itself (A times B and its gradients) is within the rows of merged LoRA.")
    print("Operations of one chunk where there is a gradient cache; memory of all of it.\n")
    print("\n".join(missed) if missed else "All bars are met.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
