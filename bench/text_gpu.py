"""The text half at 7B on one NVIDIA GPU: training and bulk encoding, against transformers + PEFT.

Run (needs requirements-gpu.txt; the other side needs torch, transformers and peft):
    PYTHONPATH=. python bench/text_gpu.py > bench/results/text_gpu.md

The shape of e5-mistral-7b-instruct in bfloat16, random weights, random tokens. Training: jobs of
1,800 tokens and profiles of 248 in pairs; ours are packed into rows of 2,048 or stand in rows of
their own, theirs are two forward passes, one a side, so that neither side has padding. Ours is the
step of `star train-text` (BCE and semi-hard loss, AdamW on the adapters); theirs the adapters of
PEFT on the same maps, an in-batch softmax over cosines, and torch's fused AdamW. Encoding: texts
of 1,800 tokens; theirs is the forward pass alone, with torch's fused attention, without what
sentence-transformers does around it.

MFU counts what the real tokens need (star_jax/text/flops.py: LoRA 4 operations a parameter and
token, attention causal); HFU adds what is computed again. Both are shares of the data sheet's
dense bfloat16 rate. `--only` and `--sides` choose rows; `--shape tiny` runs the script on a CPU.
Exit code 1: a bar is missed, rows are missing, or ours do not agree.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.shapes import MISTRAL_7B
from bench.text_gpu_rows import (
    JOB,
    LEAST_EXPORT_MFU,
    LEAST_MFU,
    LEAST_RATIO,
    LEAST_REMAT_HFU,
    OUT_OF_MEMORY,
    PROFILE,
    REPEATS,
    ROUNDING,
    STAR,
    TORCH,
    Found,
    Kind,
    Row,
    Size,
    median_seconds,
    random_rows,
    shares,
)
from star_jax.losses.semi_hard import SemiHardConfig
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import FSDP_RULES
from star_jax.shapes import PyTree
from star_jax.text.bi_encoder import (
    BiEncoder,
    TextBatch,
    encode,
    init_scorer,
    make_loss,
    row_axes,
    trainable_split,
)
from star_jax.text.families import MistralShape, defaults
from star_jax.text.lora import COLLECTION, LoraConfig, init_lora
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.random_base import SHAPE as TINY
from star_jax.text.scorer import PairScorer, ScorerConfig
from star_jax.text.tower import TextTower, param_shapes
from star_jax.train.meter import peak_flops
from star_jax.train.optimizers import OptimizerConfig, make_optimizer
from star_jax.train.state import create_state
from star_jax.train.step import make_step


def star(rows: dict[str, Row], shape: MistralShape, shorter: int) -> Iterator[tuple[str, Found]]:
    """Our side; texts are `shorter` times shorter."""
    params = _params(shape)
    for key, row in rows.items():
        run = _train if row.kind == "train" else _export
        try:
            found = run(row, shape, params, shorter)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            found = OUT_OF_MEMORY
        yield key, found


def _params(shape: MistralShape) -> PyTree:
    """Random parameters in bfloat16, drawn on the device."""
    shapes = param_shapes(model_of(STAR["rows-full"], shape).tower)

    def draw(key: jax.Array) -> PyTree:
        leaves, tree = jax.tree.flatten(shapes)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            0.02 * jax.random.normal(k, s.shape, jnp.bfloat16)
            if len(s.shape) > 2 or s.shape[0] == shape.vocab_size
            else jnp.ones(s.shape, jnp.bfloat16)  # A norm.
            for k, s in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, drawn)

    return jax.block_until_ready(jax.jit(draw)(jax.random.key(0)))


def model_of(row: Row, shape: MistralShape) -> BiEncoder:
    """What a row trains or encodes with."""
    backend = row.backend if jax.default_backend() == "gpu" else "xla"
    return BiEncoder(
        tower=TextTower(shape, defaults(shape).pooling, "bfloat16", row.remat, backend),
        scorer=PairScorer(ScorerConfig()),
        lora=LoraConfig(targets=row.targets),
        objective=ObjectiveConfig(semi_hard=SemiHardConfig()),
    )


def _variables(model: BiEncoder, params: PyTree) -> PyTree:
    assert model.lora is not None
    adapters = init_lora(jax.random.key(1), params, model.lora)
    scorer = init_scorer(model, jax.random.key(2))
    return {"params": params, "scorer": scorer, COLLECTION: adapters}


def _train(row: Row, shape: MistralShape, params: PyTree, shorter: int) -> Found:
    model, mesh = model_of(row, shape), make_mesh(MeshConfig())
    trainable, frozen = trainable_split(_variables(model, params), "lora")
    optimizer = make_optimizer(OptimizerConfig())
    state = create_state(trainable, optimizer, seed=0, mesh=mesh, rules=FSDP_RULES)
    step = make_step(make_loss(model), optimizer, state=state, mesh=mesh, row_axes=row_axes)
    batch = step.place(batch_of(row, shape, shorter))
    begun = time.monotonic()
    state, metrics = step(state, frozen, batch, 1e-4)
    jax.block_until_ready(state)
    compile_s, loss = time.monotonic() - begun, float(metrics["loss"])
    assert np.isfinite(loss), f"{row.name}: loss {loss}"

    def again() -> None:
        nonlocal state
        state, _ = step(state, frozen, batch, 1e-4)
        jax.block_until_ready(state)

    return Found(median_seconds(again), loss, _gigabytes(), compile_s)


def _export(row: Row, shape: MistralShape, params: PyTree, shorter: int) -> Found:
    model = model_of(row, shape)
    variables = _variables(model, params)
    texts = random_rows(row.pairs, JOB // shorter, shape)
    forward = jax.jit(lambda variables, texts: encode(model, variables, texts, None))
    begun = time.monotonic()
    vectors = np.asarray(forward(variables, texts))
    compile_s = time.monotonic() - begun
    assert np.isfinite(vectors).all(), row.name
    seconds = median_seconds(lambda: jax.block_until_ready(forward(variables, texts)))
    return Found(seconds, float("nan"), _gigabytes(), compile_s)


def batch_of(row: Row, shape: MistralShape, shorter: int) -> TextBatch:
    """Pairs of job i and profile i, every second one positive."""
    each = row.pairs // row.chunks
    tables = tuple(random_rows(row.pairs, length // shorter, shape) for length in (JOB, PROFILE))
    if row.packed:
        tables = (jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *tables),)
    if row.chunks > 1:
        tables = jax.tree.map(lambda x: x.reshape(row.chunks, each, -1), tables)
    pair: Any = np.arange(row.pairs, dtype=np.int32)
    within, chunk = pair % each, pair // each
    first = 2 * each * chunk + (2 * within if row.packed else within)
    second = first + (1 if row.packed else each)
    missing: Any = np.full(row.pairs, -1, np.int32)
    label = (pair % 2 == 0).astype(np.float32)
    mask: Any = np.ones(row.pairs, bool)
    return TextBatch(tables, first, second, missing, label, mask, pair, pair)


def _gigabytes() -> float:
    """At the peak of this process: of all rows so far."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0) / 1e9


def _table(side: str, rows: dict[str, Row], found: dict[str, Found], size: Size) -> None:
    for key, result in found.items():
        row, seconds = rows[key], result.seconds
        tokens = int(size.lengths(row).sum())
        mfu, hfu = shares(row, seconds, size)
        cells = [side, row.kind, row.name]
        if result.note:
            cells += [result.note, *["-"] * 6]
        else:
            cells += [f"{seconds * 1e3:.0f}", f"{tokens / seconds:,.0f}", f"{100 * mfu:.1f} %"]
            cells += [f"{100 * hfu:.1f} %", f"{result.loss:.4f}", f"{result.gigabytes:.0f}"]
            cells += [f"{result.compile_s:.0f}"]
        print("| " + " | ".join(cells) + " |")


def _bars(star: dict[str, Found], torch: dict[str, Found], size: Size) -> bool:
    """Prints the best of each kind beside its bar; whether all are met."""

    def best(found: dict[str, Found], rows: dict[str, Row], kind: Kind, column: int) -> float:
        kept = [k for k, f in found.items() if rows[k].kind == kind and not f.note]
        return max((shares(rows[k], found[k].seconds, size)[column] for k in kept), default=0.0)

    full, plain = (
        {k: f for k, f in star.items() if STAR[k].remat == remat} for remat in ("full", "none")
    )
    bars = [
        ("training without remat, MFU", best(plain, STAR, "train", 0), LEAST_MFU),
        ("training with full remat, HFU", best(full, STAR, "train", 1), LEAST_REMAT_HFU),
        ("encoding, MFU", best(star, STAR, "export", 0), LEAST_EXPORT_MFU),
    ]
    if torch:
        for kind in ("train", "export"):
            ratio = best(star, STAR, kind, 0) / best(torch, TORCH, kind, 0)
            bars.append((f"{kind}, times the other side's best", ratio, LEAST_RATIO))
    print("\n| | best | bar |\n|---|---|---|")
    for name, value, least in bars:
        print(f"| {name} | {value:.3f} | {least} |{'' if value >= least else ' MISSED'}")
    return all(value >= least for _, value, least in bars)


def _agree(star: dict[str, Found]) -> bool:
    """Whether our rows of the same pairs have the same first loss; prints how far they differ."""
    losses: dict[int, list[float]] = {}
    for key, found in star.items():
        if STAR[key].kind == "train" and not found.note:
            losses.setdefault(STAR[key].pairs, []).append(found.loss)
    spread = {pairs: max(found) - min(found) for pairs, found in losses.items()}
    for pairs, apart in spread.items():
        print(f"\nFirst losses of our {pairs} pairs are within {apart:.1e}, at most {ROUNDING}.")
    return all(apart <= ROUNDING for apart in spread.values())


def _measure(
    side: str, keys: list[str], arguments: list[str], limit_s: float
) -> tuple[dict[str, Found], str]:
    """Runs a side in a process of its own; rows, and why some are missing."""
    command = [sys.executable, __file__, "--side", side, "--only", *keys, *arguments]
    environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    found: dict[str, Found] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("["):
                key, values = json.loads(line)
                found[key] = Found(*values)
                print(f"{side} {key}: {found[key]}", file=sys.stderr, flush=True)
        timer.cancel()
    ended = process.returncode
    return found, f"{side} ended with code {ended}: rows are missing. " if ended else ""


def main() -> int:
    """Measures both sides."""
    parser = argparse.ArgumentParser(description="The text half at 7B on one NVIDIA GPU.")
    parser.add_argument("--side", choices=("star", "torch"), help="only measure, in this process")
    parser.add_argument("--sides", nargs="+", default=["star", "torch"])
    parser.add_argument("--limit-s", type=float, default=3600.0, help="of a side")
    parser.add_argument("--only", nargs="+", default=list(STAR), help="keys of rows")
    parser.add_argument("--layers", type=int, default=MISTRAL_7B.num_layers)
    parser.add_argument("--shape", choices=("7b", "tiny"), default="7b")
    options = parser.parse_args()
    tiny = options.shape == "tiny"
    shorter = 8 if tiny else 1
    shape = TINY if tiny else replace(MISTRAL_7B, num_layers=options.layers)
    rows = {"star": STAR, "torch": TORCH}
    if options.side:
        chosen = {k: rows[options.side][k] for k in options.only if k in rows[options.side]}
        measure = star if options.side == "star" else import_module("bench.text_gpu_torch").measure
        for key, found in measure(chosen, shape, shorter):
            print(json.dumps([key, found]), flush=True)
        return 0
    arguments = ["--layers", str(options.layers), "--shape", options.shape]
    measured = {
        side: _measure(side, options.only, arguments, options.limit_s) for side in options.sides
    }
    found = {side: rows for side, (rows, _) in measured.items()}
    missing = "".join(why for _, why in measured.values())
    device = jax.devices()[0]
    peak = peak_flops([device], 1e12 if tiny else None)
    assert peak is not None, f"no peak FLOP/s is known of {device.device_kind}"
    size = Size(shape, shorter, peak)
    print("# The text half at 7B on one GPU\n")
    print(f"    PYTHONPATH=. python {' '.join(sys.argv)}\n")
    print(f"{device.device_kind}, jax {jax.__version__}; shape {options.shape}, ", end="")
    print(
        f"{shape.num_layers} blocks; median of {REPEATS} steps; peak {peak / 1e12:.0f} TFLOP/s.\n"
    )
    print("| side | what | how | ms | tokens/s | MFU | HFU | first loss | peak GB | compile s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for side in options.sides:
        _table(side, rows[side], found[side], size)
    star_rows = found.get("star", {})
    met, agree = _bars(star_rows, found.get("torch", {}), size), _agree(star_rows)
    print(f"\n{missing}{'All bars are met.' if met else 'A bar is missed.'}")
    return 0 if met and agree and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
