"""GradCache: the exact gradient of a loss over a large batch at the memory of one chunk.

Encoding goes chunk by chunk and keeps each chunk's vectors alone; the loss sees all of them; the
backward pass encodes each chunk again (Gao et al., arXiv 2101.06983; here as a scan over
rematerialised chunks, SPEC 2.4).
"""

from collections.abc import Callable
from typing import TypeVar

import jax
from jaxtyping import Array, Float

Chunk = TypeVar("Chunk")


def encode_chunks(
    encode: Callable[[Chunk], Float[Array, "..."]], chunks: Chunk
) -> Float[Array, "C ..."]:
    """Encodes one chunk after the other; what differentiates the result encodes them again.

    Args:
      encode: A chunk's arrays -> its vectors; what it closes over gets gradients too, summed over
        the chunks in the dtype of what it closes over.
      chunks: A tree of arrays whose leading axis counts the chunks.

    Returns:
      The vectors of all chunks, stacked.
    """
    # prevent_cse=False is right inside a scan, which already keeps the passes apart.
    again = jax.checkpoint(
        encode, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False
    )
    return jax.lax.scan(lambda _, chunk: (None, again(chunk)), None, chunks)[1]
