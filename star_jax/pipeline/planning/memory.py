"""What programs of the text half hold beside their arguments, on chips without a compiler here.

The most of it is what the backward pass reads again, and JAX decides that before any compiler is
asked: `jax.vjp` of the encoder says it array by array, with the states that a flash kernel keeps
in the place of L x L logits. The rest is summed from terms whose factors are those of programs
compiled for the CPU in float32, of 4,096 tokens and more (tests/pipeline/test_memory_model.py);
of fewer tokens, the CPU's working sets are relatively larger with remat and smaller without:

    kept        states between the passes, of what is encoded at a time
    block       the working set of one block's backward pass: what one block keeps without remat,
                times `_SHARE`, and its weights, whole, as they are taken from the stack
    update      gradients of what trains, their sum over chunks, and the vectors and the
                pair-by-pair matrices of the loss

On one H200 the sum with the arguments was within 3 % of the peaks of the 7B step
(bench/results/text_gpu.md).
"""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from star_jax.parallel.mesh import TENSOR, num_row_shards
from star_jax.pipeline.planning.programs import Program
from star_jax.pipeline.text_model import Split, TextModelConfig, initial_shapes
from star_jax.shapes import PyTree
from star_jax.text.bi_encoder import BiEncoder, TextBatch, encode, is_chunked
from star_jax.text.families import BertShape, MistralShape
from star_jax.text.packing import Tokens
from star_jax.text.stack import Remat

_SHARE: dict[Remat, float] = {"none": 0.93, "dots": 0.55, "full": 0.6}
_FORWARD_SHARE = 0.4  # Of the same where nothing is kept.
_PAIR_MATRICES = 2  # B x B, in float32: logits and their gradients.
_VECTORS = 2  # Of each of a pair's three: the vectors and their gradients.
_WORD = 4  # Bytes of a float32.
_LANES = 128  # The stand-in for flash kernels fills lengths and heads up to it.


def training_bytes(
    config: TextModelConfig, model: BiEncoder, batch: TextBatch, mesh: Mesh, trainable: int
) -> dict[str, int]:
    """What an update holds beside its arguments on one device, by name.

    Args:
      config: What trains.
      model: Its build for the machine.
      batch: On the host: all its rows.
      mesh: The devices.
      trainable: Bytes of a device.
    """
    mine, shards = _of_device(model, mesh), num_row_shards(mesh)
    tables = [_rows_of_device(table, shards) for table in batch.texts]
    kept = sum(_kept(mine, initial_shapes(config, mine), table) for table in tables)
    summed = is_chunked(batch) or batch.mask.ndim > 1
    pairs, width = batch.mask.shape[-1], model.tower.embedding_size
    loss = _PAIR_MATRICES * pairs**2 // shards + 3 * _VECTORS * pairs * width
    share = _SHARE[model.tower.remat] if kept else _FORWARD_SHARE
    return {
        "states for the backward pass": kept,
        "working set of a block": max(_working(config, mine, table, share) for table in tables),
        "gradients": trainable * (2 if summed else 1),
        "vectors and logits of the loss": _WORD * loss,
    }


def encoding_bytes(
    config: TextModelConfig, model: BiEncoder, texts: Tokens, mesh: Mesh
) -> dict[str, int]:
    """As `training_bytes`, of an encoding, which keeps nothing."""
    table, mine = _rows_of_device(texts, num_row_shards(mesh)), _of_device(model, mesh)
    return {"working set of a block": _working(config, mine, table, _FORWARD_SHARE)}


def on_gpu(program: Program, working: dict[str, int], compute_dtype: str) -> Program:
    """A program compiled for CPUs, with the memory and the traffic that a GPU is expected to have.

    Args:
      program: Its twin, whose attention makes L x L logits.
      working: From `training_bytes` or `encoding_bytes`.
      compute_dtype: Of the tower. The CPU multiplies in float32 and gathers weights so.
    """
    share = jnp.dtype(compute_dtype).itemsize / _WORD
    moved = {
        kind: each._replace(bytes=int(each.bytes * share)) if kind == "all-gather" else each
        for kind, each in program.collectives.items()
    }
    return program._replace(temporary_bytes=sum(working.values()), collectives=moved)


def _of_device(model: BiEncoder, mesh: Mesh) -> BiEncoder:
    """The model whose inner widths are a device's share, with a kernel that can be traced here."""
    parts, shape, tower = mesh.shape[TENSOR], model.tower.shape, model.tower
    inner: dict[str, int] = {"mlp_width": shape.mlp_width // parts}
    if not isinstance(shape, BertShape):  # Its heads are cut from its width.
        inner["num_heads"] = shape.num_heads // parts
    if isinstance(shape, MistralShape):
        inner["num_kv_heads"] = max(shape.num_kv_heads // parts, 1)
    backend = "xla" if tower.attention_backend == "xla" else "splash"
    tower = tower.clone(shape=replace(shape, **inner), attention_backend=backend)
    return replace(model, tower=tower)


def _rows_of_device(texts: Tokens, shards: int) -> Tokens:
    """Shapes of a device's part of a table, one chunk of it where there are several."""

    def part(array: Any) -> jax.ShapeDtypeStruct:
        rows, *others = array.shape[-2:]
        return jax.ShapeDtypeStruct((-(-rows // shards), *others), array.dtype)

    return jax.tree.map(part, texts)


def _working(config: TextModelConfig, model: BiEncoder, texts: Tokens, share: float) -> int:
    """A share of what one block keeps without remat, and its weights."""
    plain = replace(model, tower=model.tower.clone(remat="none"))
    split, num_layers = initial_shapes(config, plain), model.tower.shape.num_layers
    if config.mode == "frozen":
        split = Split(split.frozen, split.trainable)
    params = {**split.frozen, **split.trainable}["params"]["encoder"]["layers"]
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return int(share * _kept(plain, split, texts) / num_layers) + weights // num_layers


def _kept(model: BiEncoder, split: Split, texts: Tokens) -> int:
    """Bytes of what `jax.vjp` of an encoding keeps that was not there before."""
    found: list[int] = []

    def encoded(trainable: PyTree, frozen: PyTree, texts: Tokens) -> Array:
        key = jax.random.key(0)
        given = {id(leaf) for leaf in jax.tree.leaves((trainable, frozen, texts))}
        vectors, backward = jax.vjp(
            lambda tree: encode(model, {**frozen, **tree}, texts, key), trainable
        )
        kept = [leaf for leaf in jax.tree.leaves(backward) if id(leaf) not in given]
        found.append(sum(_real_bytes(leaf, model, texts) for leaf in kept))
        return vectors

    jax.eval_shape(encoded, split.trainable, split.frozen, texts)
    return found[0]


def _real_bytes(leaf: Any, model: BiEncoder, texts: Tokens) -> int:
    """Of an array, without what the stand-in filled up of heads and lengths."""
    size = leaf.size * leaf.dtype.itemsize
    length, shape = texts.tokens.shape[-1], model.tower.shape
    width = shape.width // shape.num_heads if isinstance(shape, BertShape) else shape.head_width
    filled = (length + -length % _LANES, width + -width % _LANES)
    if model.tower.attention_backend != "splash" or leaf.shape[-2:] != filled or leaf.ndim != 5:
        return size
    return size * length * width // math.prod(filled)
