"""Proof that an exported folder is the trained model: reloaded, and its vectors compared.

First our own reader reads what was written: its vectors must be those of `W/text`. Then, unless
the user asked for that alone, the library that others will load it with: its vectors must be ours
of the files. And the trained vectors must not be the base's: a wrong adapter is silently the base.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from star_jax.config import InputError
from star_jax.pipeline import interop
from star_jax.pipeline.model_source import (
    Sample,
    Source,
    Vectors,
    own_vectors,
    reference_vectors,
    token_rows,
)
from star_jax.text.formats import adapter, pair_scorer, sentences
from star_jax.text.lora import COLLECTION
from star_jax.text.pooling import PoolingConfig
from star_jax.text.tokenizer import Tokenizer
from star_jax.text.tower import load_params

TOLERANCE = 1e-5
_EFFECT = 10 * TOLERANCE


class Check(NamedTuple):
    """Largest differences between numbers of unit vectors."""

    effect: float
    """Of the trained model to its base."""
    reread: float
    """Of the written files to the trained model, by our reader."""
    library: float | None
    """Of the written files by the library to the same by our reader; None: not asked for."""


class Verifier:
    """Compares exported folders with the model they were made from."""

    def __init__(self, source: Source, sample: Sample, mesh: Mesh, *, libraries: bool) -> None:
        """Remembers what to compare.

        Args:
          source: What was exported.
          sample: Texts to compare.
          mesh: Where our vectors are computed.
          libraries: Whether the formats' libraries reload them.
        """
        self._source, self._sample, self._mesh = source, sample, mesh
        self._libraries = libraries
        self._references: dict[PoolingConfig, Vectors] = {}

    def adapter(self, folder: Path) -> Check:
        """Of a PEFT folder."""
        source, sample, pooling = self._source, self._sample, self._source.weights_pooling
        adapters, config = adapter.read_adapter(folder, source.base.shape, source.adapters)
        params = load_params(source.tower, source.model.tower, self._mesh)
        variables = {"params": params, COLLECTION: {"encoder": adapters}}
        reread = own_vectors(source._replace(lora=config), sample, self._mesh, pooling, variables)
        found = (
            interop.adapter_vectors(folder, source.folder, sample.rows) if self._libraries else None
        )
        return self._check("peft", pooling, reread, found, exact=True)

    def merged(self, folder: Path, *, exact: bool) -> Check:
        """Of a Hugging Face folder.

        Args:
          folder: Of the model.
          exact: Whether it holds float32; else its dtype may round.
        """
        source, sample, pooling = self._source, self._sample, self._source.weights_pooling
        self._check_rows("huggingface", folder, source.max_length)
        reread = self._reread(folder, pooling)
        found = None
        if self._libraries:
            texts = [source.prompts[k] + t for k, t in zip(sample.kinds, sample.texts, strict=True)]
            ids, found = interop.model_vectors(folder, texts, source.max_length)
            for kind, row, got in zip(sample.kinds, sample.rows, ids, strict=True):
                if got != row.tolist():
                    raise InputError(
                        f"huggingface: a {kind} text is {got} by AutoTokenizer, "
                        f"{row.tolist()} by star_jax: not exported"
                    )
        return self._check("huggingface", pooling, reread, found, exact=exact)

    def sentences(self, folder: Path, *, exact: bool) -> Check:
        """Of a sentence-transformers folder; arguments as above."""
        source, sample = self._source, self._sample
        pooling, prompts, limit = sentences.read_modules(folder, source.base.shape)
        if prompts != source.prompts:
            raise InputError(f"{folder}: prompts {prompts}, needed {source.prompts}")
        self._check_rows("sentence-transformers", folder, limit)
        reread = self._reread(folder, pooling)
        found = None
        if self._libraries:
            found = interop.sentence_vectors(folder, sample.kinds, sample.texts)
        own = source.base.pooling
        return self._check("sentence-transformers", own, reread, found, exact=exact)

    def scorer(self, folder: Path) -> float:
        """Largest relative difference of logits, computed from the files and by our scorer."""
        source = self._source
        rng = np.random.default_rng(0)
        shape = (3, len(self._sample.rows), source.model.tower.embedding_size)
        vectors = rng.standard_normal(shape).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        has_resume, has_profile = (np.arange(shape[1]) % step > 0 for step in (2, 3))
        inputs = (vectors[0], vectors[1], vectors[2], has_resume, has_profile)
        score = jax.jit(source.model.scorer.apply)
        expected = np.asarray(score({"params": source.scorer}, *inputs))
        logits = pair_scorer.read_logits(folder, *inputs)
        error = float(np.max(np.abs(logits - expected) / np.maximum(np.abs(expected), 1.0)))
        if not error <= TOLERANCE:
            raise InputError(f"scorer: logits differ by {error:.2g}, needed <= {TOLERANCE}")
        return error

    def _check(
        self,
        name: str,
        pooling: PoolingConfig,
        reread: Float32[np.ndarray, "N E"],
        found: Float32[np.ndarray, "N E"] | None,
        *,
        exact: bool,
    ) -> Check:
        """The differences.

        Raises:
          InputError: One is too large, or the trained model is its base.
        """
        if pooling not in self._references:
            self._references[pooling] = reference_vectors(
                self._source, self._sample, self._mesh, pooling
            )
        trained, base = self._references[pooling]
        effect, rounding = _largest(trained, base), _largest(reread, trained)
        frozen = self._source.adapters is None and self._source.params is None
        if not frozen and not effect > _EFFECT:
            raise InputError(
                f"{name}: training moved no vector by more than {effect:.2g}, so W/text is its "
                "base: not exported"
            )
        # Where the published dtype rounds, at least half of what was learnt must survive.
        allowed = TOLERANCE if exact or frozen else effect / 2
        if not rounding <= allowed:
            reason = "" if exact else "; its dtype rounds the training away, needed another format"
            raise InputError(
                f"{name}: what was written differs from W/text by {rounding:.2g}, "
                f"needed <= {allowed:.2g}: not exported{reason}"
            )
        if found is None:
            return Check(effect, rounding, None)
        difference = _largest(found, reread)
        if not difference <= TOLERANCE:
            raise InputError(
                f"{name}: the library's vectors differ from ours by {difference:.2g}, "
                f"needed <= {TOLERANCE}: not exported"
            )
        return Check(effect, rounding, difference)

    def _reread(self, folder: Path, pooling: PoolingConfig) -> Float32[np.ndarray, "N E"]:
        tower = dataclasses.replace(self._source.tower, base=str(folder))
        params = load_params(tower, self._source.model.tower, self._mesh)
        return own_vectors(self._source, self._sample, self._mesh, pooling, {"params": params})

    def _check_rows(self, name: str, folder: Path, limit: int) -> None:
        """The written tokenizer gives the ids of the base's under our rules."""
        source, sample = self._source, self._sample
        base = source.base
        tokenizer = Tokenizer.read(folder, prompts=base.prompts, limits=base.limits, eos_id=None)
        assert limit == source.max_length
        for kind, text, row in zip(*sample, strict=True):
            (got,) = token_rows(tokenizer, source, kind, [text])
            if got.tolist() != row.tolist():
                raise InputError(f"{name}: the written tokenizer gives {kind} texts other ids")


def _largest(a: Float32[np.ndarray, "N E"], b: Float32[np.ndarray, "N E"]) -> float:
    """NaN where any is NaN, which no bound admits."""
    return float(np.max(np.abs(a - b)))
