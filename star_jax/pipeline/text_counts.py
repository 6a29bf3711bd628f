"""Sizes and arithmetic of the batches of the text half, for the log."""

import numpy as np

from star_jax.pipeline.text_loader import count_tokens
from star_jax.text.bi_encoder import BiEncoder, Mode, TextBatch, is_chunked
from star_jax.text.flops import hardware_flops, model_flops
from star_jax.train.loop import Arithmetic, Counts


class TextCounts:
    """Counts the tokens of a host batch and the operations of a step on it."""

    def __init__(self, model: BiEncoder, mode: Mode) -> None:
        self._tower = model.tower
        self._mode: Mode = mode

    def __call__(self, batch: TextBatch) -> Counts:
        """Real and padded tokens; FLOPs of the real ones and of all that is computed."""
        tower, mode = self._tower, self._mode
        real, padded = text_lengths(batch)
        span = tower.pooling.attention
        assert span is not None
        arithmetic = Arithmetic(
            model=model_flops(tower.shape, mode, real, span),
            hardware=hardware_flops(
                tower.shape, mode, padded, tower.remat, cached=is_chunked(batch)
            ),
        )
        return count_tokens(batch)._replace(arithmetic=arithmetic)


def text_lengths(batch: TextBatch) -> tuple[np.ndarray, np.ndarray]:
    """(real tokens of every text, padded length of every row), of all microbatches."""
    real = np.concatenate([np.asarray(table.lengths).reshape(-1) for table in batch.texts])
    rows = [
        (table.tokens.size // table.tokens.shape[-1], table.tokens.shape[-1])
        for table in batch.texts
    ]
    return real, np.concatenate([np.full(count, length) for count, length in rows])
