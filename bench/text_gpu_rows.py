"""What bench/text_gpu.py times, on both sides, and what share of the peak a time is."""

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from star_jax.text.attention import Backend
from star_jax.text.families import MistralShape
from star_jax.text.flops import attention_flops, hardware_flops, model_flops
from star_jax.text.packing import Tokens
from star_jax.text.stack import Remat

JOB, PROFILE = 1800, 248
REPEATS = 5
NAMES = ("q_proj", "k_proj", "v_proj")
QKV = rf".*/({'|'.join(NAMES)})"
ROUNDING = 0.05
"""Of the loss between rows of the same pairs: bfloat16 in 32 random blocks, and a temperature."""
LEAST_MFU, LEAST_REMAT_HFU, LEAST_EXPORT_MFU, LEAST_RATIO = 0.48, 0.52, 0.55, 1.5

Kind = Literal["train", "export"]


class Row(NamedTuple):
    """One thing that is timed."""

    name: str
    kind: Kind
    pairs: int  # Of a job and a profile; texts of a job's length in an export.
    remat: Remat = "none"
    backend: Backend = "cudnn"
    packed: bool = False
    targets: str = QKV
    chunks: int = 1  # More than one is a gradient cache.


STAR = {
    "rows": Row("a text a row, cudnn", "train", 4),
    "rows-full": Row("a text a row, cudnn, remat full", "train", 4, "full"),
    "export": Row("a text a row, cudnn", "export", 8),
    "packed": Row("packed, tokamax", "train", 4, backend="tokamax", packed=True),
    "packed-full": Row("packed, tokamax, remat full", "train", 4, "full", "tokamax", True),
    "rows-8-full": Row("8 pairs, cudnn, remat full", "train", 8, "full"),
    "rows-8": Row("8 pairs, cudnn", "train", 8),
    "cache": Row("8 pairs in 2 chunks, cudnn, gradient cache", "train", 8, chunks=2),
    "all": Row("adapters on all 7 maps, cudnn", "train", 4, targets=r".*_proj"),
    "rows-dots": Row("a text a row, cudnn, remat dots", "train", 4, "dots"),
    "packed-xla": Row("packed, xla, remat full", "train", 4, "full", "xla", True),
    "packed-8": Row("8 pairs packed, tokamax", "train", 8, backend="tokamax", packed=True),
    "packed-dots": Row("packed, tokamax, remat dots", "train", 4, "dots", "tokamax", True),
    "export-16": Row("16 texts, cudnn", "export", 16),
}
TORCH = {
    "rows": Row("transformers + PEFT, sdpa", "train", 4),
    "rows-full": Row("transformers + PEFT, sdpa, checkpointing", "train", 4, "full"),
    "rows-8-full": Row("8 pairs, checkpointing", "train", 8, "full"),
    "export": Row("transformers, sdpa", "export", 8),
}


class Found(NamedTuple):
    """What a row measured; seconds is NaN where it did not fit."""

    seconds: float
    loss: float
    gigabytes: float  # At the peak.
    compile_s: float
    note: str = ""


_NAN = float("nan")
OUT_OF_MEMORY = Found(_NAN, _NAN, _NAN, _NAN, "out of memory")


class Size(NamedTuple):
    """What is computed, and on what."""

    shape: MistralShape
    shorter: int  # Texts are so many times shorter.
    peak: float  # FLOP/s.

    def lengths(self, row: Row) -> Int[np.ndarray, " U"]:
        """Tokens of each text of a row."""
        texts = (JOB, PROFILE) if row.kind == "train" else (JOB,)
        return np.repeat(np.array(texts) // self.shorter, row.pairs)


def shares(row: Row, seconds: float, size: Size) -> tuple[float, float]:
    """MFU and HFU of a row."""
    shape, peak, lengths = size.shape, size.peak, size.lengths(row)
    mode = "lora" if row.kind == "train" else "frozen"
    model = model_flops(shape, mode, lengths, "causal")
    if row.kind == "export":  # Nothing is computed again.
        return model / seconds / peak, model / seconds / peak
    # Rows of one token have no attention to speak of: what remains are the linear maps.
    ones, cached = np.ones(int(lengths.sum()), np.int64), row.chunks > 1
    once = hardware_flops(shape, mode, ones, "none", cached=False)
    linear = hardware_flops(shape, mode, ones, row.remat, cached=cached) - once
    again = {"none": 0.0, "dots": 0.5, "full": 1.0}[row.remat] + cached
    attention = again * attention_flops(shape, lengths, "causal", None)
    return model / seconds / peak, (model + linear + attention) / seconds / peak


def median_seconds(call: Callable[[], Any]) -> float:
    """Median over calls that wait for the device."""
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


def random_rows(count: int, length: int, shape: MistralShape) -> Tokens:
    """Texts of one length, one a row, the same in every call."""
    tokens: Any = np.random.default_rng(length).integers(3, shape.vocab_size, (count, length))
    lengths: Any = np.full((count, 1), length, np.int32)
    return Tokens(tokens.astype(np.int32), lengths)
