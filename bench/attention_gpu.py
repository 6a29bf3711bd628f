"""Attention back ends on an NVIDIA GPU: the same results as `xla`, and how long they take.

The shapes are those of the 7B text base, unless said otherwise. A back end that cannot do a case
has no row in it; Tokamax has one for the kernel that it is asked for first, and one for the other.

Run (needs requirements-gpu.txt; Python 3.12 or newer for Tokamax):
    PYTHONPATH=. python bench/attention_gpu.py > bench/results/attention_gpu.md
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.config import InputError
from star_jax.text import attention_kernels as kernels
from star_jax.text.attention import Visibility, attention
from star_jax.text.attention_choice import Case, Machine, choose_backend, this_machine
from star_jax.text.pooling import AttentionSpan

REPEATS = 20
LIMITS = {"float32": 5e-3, "bfloat16": 2e-2}
"""Largest difference that is rounding, of the largest value; float32 is computed in TF32."""

Attend = Callable[..., jax.Array]


class Size(NamedTuple):
    """Of the states; `groups` are heads of keys and values."""

    rows: int
    length: int
    heads: int
    groups: int
    head_width: int


class Result(NamedTuple):
    """What one back end made of one case."""

    mixed: np.ndarray
    grads: tuple[np.ndarray, ...]
    forward_ms: float
    backward_ms: float


def main() -> int:
    """Prints the table; 1 where a back end computes something else, 2 without a GPU."""
    parser = argparse.ArgumentParser(description="Attention back ends on an NVIDIA GPU.")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--heads", type=int, nargs=2, default=(32, 8), help="of queries, of keys")
    parser.add_argument("--head-width", type=int, default=128)
    parser.add_argument("--dtypes", nargs="+", default=tuple(LIMITS), choices=tuple(LIMITS))
    options = parser.parse_args()
    heads, groups = options.heads
    size = Size(options.rows, options.length, heads, groups, options.head_width)
    machine = this_machine()
    if machine.platform != "cuda":
        print(f"attention_gpu: this machine has platform {machine.platform}, needed an NVIDIA GPU")
        return 2
    print("# Attention back ends on an NVIDIA GPU\n")
    print(f"    PYTHONPATH=. python {' '.join(sys.argv)}\n")
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}; {size}.\n"
        "The reference is xla; float32 is computed in TF32.\n"
    )
    print(
        "| dtype | rows | span | back end | largest difference: result | gradients "
        "| forward ms | forward + backward ms |\n|---|---|---|---|---|---|---|---|"
    )
    wrong = False
    spans: tuple[AttentionSpan, ...] = ("causal", "bidirectional")
    for dtype, packed, span in itertools.product(options.dtypes, (False, True), spans):
        case = Case(size.head_width, dtype, span, None, packed, biased=False)
        wrong |= compare(case, machine, size)
    print("\nA back end computes something else." if wrong else "\nAll compute the same.")
    return int(wrong)


def compare(case: Case, machine: Machine, size: Size) -> bool:
    """Prints the rows of a case; whether a back end differs by more than rounding."""
    inputs, visible = draw(case, size)
    reference, wrong = None, False
    for name, attend in back_ends(case, machine):
        result = run(attend, inputs, visible)
        reference = reference or result
        pairs = zip((result.mixed, *result.grads), (reference.mixed, *reference.grads), strict=True)
        apart = [float(np.abs(got - wanted).max() / np.abs(wanted).max()) for got, wanted in pairs]
        bad = not max(apart) <= LIMITS[case.dtype]  # NaN is bad.
        wrong |= bad
        print(
            f"| {case.dtype} | {'packed' if case.packed else 'one text'} | {case.span} | {name} "
            f"| {apart[0]:.1e} | {max(apart[1:]):.1e} | {result.forward_ms:.2f} "
            f"| {result.backward_ms:.2f} |{' WRONG' if bad else ''}",
            flush=True,
        )
    return wrong


def back_ends(case: Case, machine: Machine) -> Iterator[tuple[str, Attend]]:
    """Name and function of all that can do a case; the reference comes first."""
    for backend in ("xla", "cudnn", "tokamax"):
        try:
            choose_backend(backend, case, machine)
        except InputError:
            continue
        if backend != "tokamax":
            yield backend, partial(attention, span=case.span, window=None, backend=backend)
            continue
        scale = case.head_width**-0.5
        options: dict[str, Any] = {"span": case.span, "window": None, "scale": scale}
        yield "tokamax", unpacked(partial(kernels.tokamax, **options))
        if machine.compute_capability >= 9.0 and case.dtype == "bfloat16":
            triton = partial(kernels.tokamax, **options, implementation=("triton",))
            yield "tokamax (triton)", unpacked(triton)


def unpacked(kernel: Attend) -> Attend:
    """The kernel, taking mask and segments as one."""
    return lambda query, key, value, visible: kernel(query, key, value, *visible)


def draw(case: Case, size: Size) -> tuple[list[jax.Array], Visibility]:
    """Random states, and rows that end in padding: of four texts each, or of one."""
    num_rows, length = size.rows, size.length
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = [
        jax.random.normal(key, (num_rows, length, heads, size.head_width), case.dtype)
        for key, heads in zip(keys, (size.heads, size.groups, size.groups), strict=True)
    ]
    place = jnp.arange(length)[None, :]
    mask = place < length - 16 - jnp.arange(num_rows)[:, None]
    segments = jnp.broadcast_to(place // (length // 4), mask.shape)
    return inputs, Visibility(mask, segments if case.packed else None)


def run(attend: Attend, inputs: list[jax.Array], visible: Visibility) -> Result:
    """Result and gradients on the real tokens, and the median times."""

    def loss(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixed = attend(query, key, value, visible).astype(jnp.float32)
        real = jnp.where(visible.mask[:, :, None, None], mixed, 0.0)
        return jnp.sum(jnp.sin(real)), real

    forward = jax.jit(lambda *states: loss(*states)[1])
    backward = jax.jit(jax.grad(lambda *states: loss(*states)[0], argnums=(0, 1, 2)))
    mixed, grads = forward(*inputs), backward(*inputs)
    return Result(
        np.asarray(mixed),
        tuple(np.asarray(grad, np.float32) for grad in grads),
        milliseconds(lambda: forward(*inputs)),
        milliseconds(lambda: backward(*inputs)),
    )


def milliseconds(call: Callable[[], Any]) -> float:
    """Median over calls that are compiled already."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


if __name__ == "__main__":
    sys.exit(main())
