"""AUC of the text model on a fixed part of the val pairs."""

import logging

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int, Shaped

from star_jax.config import InputError
from star_jax.evaluation.auc import roc_auc
from star_jax.pipeline.text_encoding import BulkEncoder, bulk_lengths
from star_jax.pipeline.text_pairs import PairRecords, has_both_sides, with_both_sides
from star_jax.pipeline.text_records import TextRecords
from star_jax.pipeline.text_scoring import PairLogits, PairRows
from star_jax.shapes import PyTree
from star_jax.text.bi_encoder import BiEncoder
from star_jax.text.pooling import truncate

_log = logging.getLogger(__name__)


class TextValidation:
    """Encodes the different texts of the chosen pairs once, then scores the pairs."""

    def __init__(
        self,
        model: BiEncoder,
        records: TextRecords,
        mesh: Mesh,
        pairs: PairRecords,
        negative: Shaped[np.ndarray, " B"],
        *,
        max_pairs: int,
        batch_tokens: int | None,
        num_lengths: int,
        seed: int,
    ) -> None:
        """Chooses the pairs.

        Args:
          model: What is validated.
          records: All texts.
          mesh: Where the variables are.
          pairs: Of the val split.
          negative: Kind of each negative, "" for positives.
          max_pairs: Whole groups are drawn while they fit.
          batch_tokens: Of the encoder's batches,
          num_lengths: and how many padded lengths they have.
          seed: Of the draw.

        Raises:
          InputError: No group fits into the pairs.
        """
        chosen = _draw(with_both_sides(pairs), pairs, max_pairs, seed)
        self._label = pairs.label[chosen] == 1
        self._negative = negative[chosen]
        columns = [c[chosen] for c in (pairs.document, pairs.profile, pairs.resume)]
        joined = np.concatenate(columns)
        self._texts = np.unique(joined[joined >= 0])
        self._rows = PairRows(
            *(
                np.where(c >= 0, np.searchsorted(self._texts, c), -1).astype(np.int32)
                for c in columns
            )
        )
        self._kinds = sorted(set(self._negative[~self._label].tolist()))
        self._encoder = BulkEncoder(
            model,
            records,
            mesh,
            lengths=bulk_lengths(records.lengths[self._texts], num_lengths),
            batch_tokens=batch_tokens,
        )
        self._logits = PairLogits(model)
        self._widths = [w for w in model.objective.widths if w < model.tower.embedding_size]
        self.possible = bool(self._label.any()) and bool(self._kinds)
        _log.info("validation: %d pairs of %d texts", len(chosen), len(self._texts))
        if not self.possible:
            _log.warning("no val pair has texts on both sides: the last checkpoint will be taken")

    def __call__(self, variables: PyTree, step: int) -> dict[str, float]:
        """`auc_<kind>` per kind of negative, `bce`, and `score`, the mean of the AUCs.

        With the widths that the objective trains, `auc_<kind>@<width>` of vectors cut to each.

        Args:
          variables: Of the model.
          step: Stands in for the score where there is nothing to validate on.
        """
        if not self.possible:
            return {"score": float(step)}
        vectors = self._encoder(variables, self._texts, lambda _, __: None)
        logits = self._logits(variables, vectors, vectors, self._rows)
        signs = np.where(self._label, -1.0, 1.0)
        metrics = {"bce": float(np.logaddexp(0.0, signs * logits).mean())}
        metrics |= {f"auc_{kind}": auc for kind, auc in self._aucs(logits).items()}
        score = float(np.mean([metrics[f"auc_{kind}"] for kind in self._kinds]))
        for width in self._widths:
            narrow = np.asarray(truncate(jnp.asarray(vectors), width))
            aucs = self._aucs(self._logits(variables, narrow, narrow, self._rows))
            metrics |= {f"auc_{kind}@{width}": auc for kind, auc in aucs.items()}
        return metrics | {"score": score}

    def _aucs(self, logits: Float32[np.ndarray, " B"]) -> dict[str, float]:
        """By kind of negative."""
        aucs = {}
        for kind in self._kinds:
            compared = self._label | (self._negative == kind)
            aucs[kind] = roc_auc(self._label[compared], logits[compared])
        return aucs


def _draw(
    usable: PairRecords, pairs: PairRecords, max_pairs: int, seed: int
) -> Int[np.ndarray, " V"]:
    """Rows of the usable pairs of randomly drawn groups, in their order."""
    groups, sizes = np.unique(usable.group, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(groups))
    kept = groups[order[np.cumsum(sizes[order]) <= max_pairs]]
    if len(groups) and not len(kept):
        raise InputError(
            f"validation_pairs {max_pairs} is below the size of a group of val pairs, "
            f"{sizes[order[0]]}; raise it"
        )
    complete = has_both_sides(pairs.document, pairs.profile, pairs.resume)
    return np.flatnonzero(complete & np.isin(pairs.group, kept))
