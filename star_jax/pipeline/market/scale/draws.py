"""Random numbers that are functions of a seed, a purpose, an entity and a slot.

What one entity is does not depend on which others are drawn beside it, before it or in which
process.
"""

from hashlib import blake2b
from typing import no_type_check

import numpy as np
from jaxtyping import Float64, Int, Shaped

from star_jax.graph.samplers.compiled import kernel
from star_jax.graph.samplers.draws import GOLDEN, mix

_TO_UNIT = 2.0**-53


class Draws:
    """Draws for one purpose."""

    def __init__(self, seed: int, purpose: str) -> None:
        digest = blake2b(purpose.encode(), key=seed.to_bytes(8, "little"), digest_size=16).digest()
        self._key = np.frombuffer(digest[:8], np.uint64)[0]
        self._block_key = int.from_bytes(digest[8:], "little")

    def uniform(
        self, entity: Int[np.ndarray, " N"], num_slots: int
    ) -> Float64[np.ndarray, "num_slots N"]:
        """Numbers in [0, 1) per slot and entity, 53 bits."""
        found = np.empty((num_slots, len(entity)))
        _fill(self._key, entity.astype(np.uint64, copy=False), found)
        return found

    def generator(self, block: int) -> np.random.Generator:
        """The random stream of a block, for what has many numbers per entity."""
        return np.random.Generator(np.random.Philox(key=self._block_key, counter=[0, 0, 0, block]))


def choose(
    uniform: Float64[np.ndarray, "*N"], shares: Shaped[np.ndarray, " K"]
) -> Int[np.ndarray, "*N"]:
    """Which of some kinds a number in [0, 1) stands for, by their shares up to a factor."""
    upto = np.cumsum(shares) / np.sum(shares)
    return np.searchsorted(upto[:-1], uniform, side="right")


def below(uniform: Float64[np.ndarray, "*N"], size: Shaped[np.ndarray, "*_"] | int) -> np.ndarray:
    """The whole number below a size that a number in [0, 1) stands for."""
    return np.floor(uniform * size).astype(np.int64)


@kernel
@no_type_check
def _fill(key: np.uint64, entity: np.ndarray, found: np.ndarray) -> None:
    for i in range(entity.size):
        start = mix(key + entity[i] * GOLDEN)
        for slot in range(found.shape[0]):
            word = mix(start + np.uint64(slot + 1) * GOLDEN)
            found[slot, i] = (word >> np.uint64(11)) * _TO_UNIT
