"""Fitting a transform to ten million pairs: time, memory, and the digits of the solution.

Run, on Linux:
    OPENBLAS_NUM_THREADS=1 PYTHONPATH=. python bench/transform.py > bench/results/transform.md

One thread: where others use the cores too, several wait for each other most of the time.
Pairs of 200 and 200 dimensions are drawn block by block from a seed and never held: the time of
drawing is reported apart. A second process draws 1 million of them into memory and compares the
streamed solution with the one that it computes from all rows at once. Exit code 1: they differ by
more than 1e-6, or memory grew with the number of pairs.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from star_jax.embeddings.transforms.normal_equations import Moments, solve_ridge

WIDTH = 200
BLOCK = 8192  # As `TransformConfig`'s.
MANY, SOME = 10_000_000, 1_000_000
RIDGE = 1e-6
TOLERANCE = 1e-6
GROWTH_MIB = 16.0  # Between a tenth of the pairs and all of them.


class Pass(NamedTuple):
    """What it took to add up so many pairs and solve."""

    pairs: int
    drawing_s: float  # Of CPU time, of all threads.
    adding_s: float
    solving_s: float
    wall_s: float
    peak_mib: float  # Of the whole process, so far.


def blocks(num_pairs: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """New and old vectors: unit vectors with a decaying spectrum, and a noisy map of them."""
    fixed = np.random.default_rng(0)
    spectrum = (np.arange(1, WIDTH + 1) ** -0.5).astype(np.float32)
    matrix = (fixed.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
    for number, start in enumerate(range(0, num_pairs, BLOCK)):
        rng = np.random.default_rng([1, number])
        count = min(BLOCK, num_pairs - start)
        x = rng.standard_normal((count, WIDTH), np.float32) * spectrum
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        y = x @ matrix + 0.02 * rng.standard_normal((count, WIDTH), np.float32)
        yield x, y


def one_pass(num_pairs: int) -> tuple[Pass, np.ndarray]:
    """The streamed solution, in float64."""
    moments, adding = Moments(WIDTH, WIDTH), 0.0
    start, wall = time.process_time(), time.monotonic()
    for x, y in blocks(num_pairs):
        began = time.process_time()
        moments.add(x, y)
        adding += time.process_time() - began
    streamed = time.process_time()
    solution = solve_ridge(moments.second(centred=False), RIDGE)
    ended = time.process_time()
    assert moments.count == num_pairs
    times = streamed - start - adding, adding, ended - streamed, time.monotonic() - wall
    return Pass(num_pairs, *times, _peak_mib()), solution


def in_memory() -> float:
    """The greatest difference of an entry, relative to the greatest one, from all rows at once.

    All x are held in float64 and all y in float32, together 2.3 GiB; products are taken over all
    rows at once, and the equations are solved by LU, not by Cholesky.
    """
    _, streamed = one_pass(SOME)
    x, y = np.empty((SOME, WIDTH)), np.empty((SOME, WIDTH), np.float32)
    first = 0
    for block in blocks(SOME):
        rows = slice(first, first := first + len(block[0]))
        x[rows], y[rows] = block
    gram = x.T @ x
    cross = np.concatenate(
        [x.T @ y[:, own].astype(np.float64) for own in np.split(np.arange(WIDTH), 20)], axis=1
    )
    strength = RIDGE * np.trace(gram) / WIDTH
    whole = np.linalg.solve(gram + strength * np.eye(WIDTH), cross)
    return float(np.abs(streamed - whole).max() / np.abs(whole).max())


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _apart(what: str) -> str:
    """What a process of its own prints: its memory is its own too."""
    command = [sys.executable, __file__, what]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    """Prints the page; 1 when something is wrong."""
    if sys.argv[1:] == ["in-memory"]:
        print(in_memory())
        return 0
    if sys.argv[1:]:
        print(*one_pass(int(sys.argv[1]))[0])
        return 0
    print("# Fitting a transform\n")
    print("    OPENBLAS_NUM_THREADS=1 PYTHONPATH=. python bench/transform.py ", end="")
    print("> bench/results/transform.md\n")
    print(f"{os.cpu_count()} cores. Pairs of {WIDTH} and {WIDTH} dimensions in blocks of {BLOCK},")
    print(
        "added up in float64 in one pass; CPU seconds of all threads together; peak: of the whole"
    )
    print("process, Python included.\n")
    print("| pairs | drawing, CPU s | adding up, CPU s | solving, CPU s | wall, s | peak, MiB |")
    print("|---|---|---|---|---|---|")
    peaks = []
    for num_pairs in (SOME, MANY):
        pairs, *figures, peak = (float(word) for word in _apart(str(num_pairs)).split())
        cells = [f"{pairs:,.0f}", *(f"{each:.1f}" for each in figures)]
        print(f"| {' | '.join(cells)} | {peak:.0f} |", flush=True)
        peaks.append(peak)
    off = float(_apart("in-memory"))
    print(f"\nThe greatest difference to the solution from {SOME:,} rows at once, relative to")
    print(f"the greatest entry: {off:.1e}; ten times the pairs take {peaks[1] - peaks[0]:.1f} MiB")
    print("more.")
    return 1 if off > TOLERANCE or peaks[1] - peaks[0] > GROWTH_MIB else 0


if __name__ == "__main__":
    sys.exit(main())
