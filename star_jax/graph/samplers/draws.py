"""Counter-based random integers: functions of a key, a relation, a node and a slot."""

from typing import no_type_check

import numpy as np
from jaxtyping import UInt64

from star_jax.graph.samplers.compiled import Compiled, kernel

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


@no_type_check
def mix_all(x: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """The output function of splitmix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


mix: Compiled = kernel(mix_all)
"""`mix_all` of one word, inside compiled functions."""


@kernel
@no_type_check
def stream(key: np.uint64, salt: np.uint64, node: int) -> np.uint64:
    """Start of the draws of one node and relation."""
    return mix(mix(key ^ salt) + np.uint64(node) * GOLDEN)


@kernel
@no_type_check
def below(start: np.uint64, slot: int, n: int) -> tuple[int, int]:
    """An exactly uniform integer below n < 2^31, and the next slot (Lemire's multiplication)."""
    size = np.uint64(n)
    while True:
        slot += 1
        product = (mix(start + np.uint64(slot) * GOLDEN) >> _32) * size
        low = product & _LOW
        if low >= size or low >= (np.uint64(1 << 32) - size) % size:
            return np.int64(product >> _32), slot
