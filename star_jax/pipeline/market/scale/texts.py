"""Text vectors from the planted latents, in the place of sentences and of an encoder.

A vector is the sum of a code per field of work, place and level, as texts tell of them, and noise.
Cultures are in no vector, nor is anything of the members whose texts say nothing. Those of whom
texts say all that decides have less noise.
"""

import numpy as np
from jaxtyping import Float32, Int, Int8

from star_jax.embeddings.quantise import quantise
from star_jax.pipeline.market.fields import FIELDS
from star_jax.pipeline.market.places import CITIES, SENIORITY
from star_jax.pipeline.market.scale.draws import Draws
from star_jax.pipeline.market.world import STRUCTURE, TEXT, Members, Offer

_SECOND, _CITY, _LEVEL = 0.35, 0.4, 0.4  # Lengths of their codes; that of the main field is 1.
_NOISE, _CLEAR_NOISE = 2.0, 1.0  # Lengths.
_RANGE = 4.0  # Deviations of an entry of a unit vector; codes beyond are held at the ends.


class TextVectors:
    """Vectors of one market."""

    def __init__(self, seed: int, size: int) -> None:
        self.size = size
        draw = Draws(seed, "text codes").generator(0)
        codes = draw.standard_normal((len(FIELDS) + len(CITIES) + len(SENIORITY), size), np.float32)
        codes /= np.linalg.norm(codes, axis=1, keepdims=True)
        self._fields, self._cities, self._levels = np.split(
            codes, [len(FIELDS), len(FIELDS) + len(CITIES)]
        )
        self._noise = {name: Draws(seed, f"text noise of {name}") for name in ("member", "job")}

    @property
    def ranges(self) -> Float32[np.ndarray, "2 E"]:
        """Of all dimensions."""
        end = np.full(self.size, _RANGE / np.sqrt(self.size), np.float32)
        return np.stack([-end, end])

    def of_members(
        self, block: int, members: Members, rows: Int[np.ndarray, " N"], state: int
    ) -> Int8[np.ndarray, "N E"]:
        """Codes of the texts of members of a block.

        Args:
          block: Its number.
          members: All of the block.
          rows: Whose texts are wanted.
          state: 0 before they moved, 1 after.
        """
        city, level = members.city[rows, state], members.seniority[rows, state]
        told = self._told(members.field[rows], members.second_field[rows], city, level)
        speaks = members.speaks[rows]
        told[speaks == STRUCTURE] = 0.0
        length = np.where(speaks == TEXT, _CLEAR_NOISE, _NOISE).astype(np.float32)
        return self._coded("member", 2 * block + state, told, length)

    def of_jobs(self, block: int, offer: Offer) -> Int8[np.ndarray, "N E"]:
        """Codes of the texts of all jobs of a block."""
        told = self._told(offer.field, offer.second_field, offer.city, offer.seniority)
        return self._coded("job", block, told, np.full(len(told), _NOISE, np.float32))

    def _told(
        self, field: np.ndarray, second: np.ndarray, city: np.ndarray, level: np.ndarray
    ) -> Float32[np.ndarray, "N E"]:
        told = self._fields[field]
        for length, codes in (
            (_SECOND, self._fields[second]),
            (_CITY, self._cities[city]),
            (_LEVEL, self._levels[level]),
        ):
            told += np.float32(length) * codes
        return told

    def _coded(
        self, kind: str, block: int, told: np.ndarray, noise: Float32[np.ndarray, " N"]
    ) -> Int8[np.ndarray, "N E"]:
        draw = self._noise[kind].generator(block)
        vectors = draw.standard_normal(told.shape, np.float32)
        vectors *= noise[:, None] / np.float32(np.sqrt(self.size))
        vectors += told
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return quantise(vectors, "int8", self.ranges)
