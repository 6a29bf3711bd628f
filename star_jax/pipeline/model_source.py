"""What `star export-model` exports: the parts of `W/text`, and our own vectors of some texts."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from star_jax.config import InputError
from star_jax.parallel.rules import put, shardings
from star_jax.pipeline.tables.read import read_meta, read_texts
from star_jax.pipeline.text_encoder import TextEncoder
from star_jax.pipeline.text_model import TrainedText, open_trained, read_config
from star_jax.shapes import PyTree
from star_jax.text.bi_encoder import POOLER, BiEncoder
from star_jax.text.families import MistralShape
from star_jax.text.lora import COLLECTION, LoraConfig, of_tower
from star_jax.text.pooling import PoolingConfig
from star_jax.text.prompts import KINDS, Kind, clean, kind_of, named_prompts
from star_jax.text.tokenizer import Tokenizer, Truncation
from star_jax.text.tower import (
    Base,
    TowerConfig,
    build_tokenizer,
    build_tower,
    load_params,
    read_base,
    tower_rules,
)

_PUBLISHED = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}
_CHOSEN_FROM = 1000


class Source(NamedTuple):
    """A trained model on the host, in float32."""

    model: BiEncoder
    tower: TowerConfig
    base: Base
    folder: Path
    """Of the base."""
    lora: LoraConfig | None
    adapters: PyTree | None
    """Of the encoder; None where there are none."""
    params: PyTree | None
    """Trained parameters of the encoder; None where the base's are frozen."""
    scorer: PyTree
    tokenizer: Tokenizer
    prompts: dict[str, str]
    quantised: bool
    """Whether it was trained on rounded weights of the base; it is compared on the published."""

    @property
    def base_name(self) -> str:
        """What other libraries call the base."""
        if self.tower.base in _PUBLISHED:
            return _PUBLISHED[self.tower.base]
        local = Path(self.tower.base)
        return str(local.resolve()) if local.is_dir() else self.tower.base

    @property
    def max_length(self) -> int:
        """Longest text in tokens, special ones included; formats know one limit alone."""
        return max(vars(self.base.limits).values())

    @property
    def weights_pooling(self) -> PoolingConfig:
        """Mean over all tokens and blocks: how formats of mere weights are compared."""
        causal = isinstance(self.base.shape, MistralShape)
        attention = "causal" if causal else "bidirectional"
        return PoolingConfig(token="mean", layers="all", attention=attention)


class Sample(NamedTuple):
    """Texts to compare with."""

    kinds: list[str]
    texts: list[str]
    """Cleaned, without prompt."""
    rows: list[Int[np.ndarray, " _"]]
    """Token ids with prompt and special tokens."""


class Vectors(NamedTuple):
    """Of the same texts, by the same pooling."""

    trained: Float32[np.ndarray, "N E"]
    base: Float32[np.ndarray, "N E"]


def read_source(folder: Path, mesh: Mesh, kinds: Iterable[str], tower: Kind | None) -> Source:
    """The best checkpoint of `W/text`, for float32 arithmetic.

    Args:
      folder: `W/text`.
      mesh: Where it is read to.
      kinds: Kinds of texts that get a prompt.
      tower: Kind of text whose adapters to take, where every tower has its own.

    Raises:
      InputError: Training has not finished, its base has no files to export, its pooling is
        learned, or the tower does not say which adapters.
    """
    trained = open_trained(folder, mesh)
    config = dataclasses.replace(
        trained.tower,
        param_dtype="float32",
        base_quantisation="none",
        compute_dtype="float32",
        remat="none",
    )
    base = read_base(config)
    if base.folder is None:
        raise InputError(f"base {config.base} has no files, needed a base that can be exported")
    lora = trained.model.lora
    _check_exportable(trained, tower)
    model = dataclasses.replace(trained.model, tower=build_tower(config))
    adapters, params = None, None
    if lora is not None:
        adapters = jax.device_get(trained.variables[COLLECTION]["encoder"])
        if tower is not None:
            adapters, lora = of_tower(adapters, lora, tower)
    elif read_config(folder).mode == "full":
        params = jax.device_get(trained.variables["params"]["encoder"])
    return Source(
        model=model,
        tower=config,
        base=base,
        folder=base.folder,
        lora=lora,
        quantised=trained.tower.base_quantisation != "none",
        adapters=adapters,
        params=params,
        scorer=jax.device_get(trained.variables["scorer"]),
        tokenizer=build_tokenizer(config),
        prompts={
            name: words
            for name, words in named_prompts(base.prompts, kinds).items()
            if tower in (None, kind_of(name))
        },
    )


def _check_exportable(trained: TrainedText, tower: Kind | None) -> None:
    """Refuses what no format can hold, and a tower where there is none to choose, or none chosen.

    Raises:
      InputError: With the remedy.
    """
    if POOLER in trained.variables:
        pooling = trained.tower.pooling
        raise InputError(
            f"pooling (token {pooling.token}, layers {pooling.layers}) has learned parameters, "
            "which no format of other libraries holds; `star export-text` exports its vectors"
        )
    lora = trained.model.lora
    if (tower is not None) != (lora is not None and lora.tower_adapters):
        raise InputError(
            f"tower {tower}: needed one of {', '.join(KINDS)} for a model of lora.tower_adapters, "
            "none for any other"
        )


def texts_by_kind(tables: Path) -> dict[str, list[str]]:
    """The first different texts of every kind, cleaned, the shortest first.

    Raises:
      InputError: The tables hold none.
    """
    found: dict[str, set[str]] = {}
    for name in read_meta(tables).node_types:
        texts = read_texts(tables, name)
        for kind, text in zip(texts.kind, texts.text, strict=True):
            of_kind = found.setdefault(kind, set())
            if len(of_kind) < _CHOSEN_FROM:
                cleaned = clean(text)
                # It is cleaned again where we encode it: the same, but for markup in markup.
                if clean(cleaned) == cleaned:
                    of_kind.add(cleaned)
    if not found:
        raise InputError(f"{tables} holds no text, needed some to verify the export")
    return {
        kind: sorted(texts, key=lambda text: (len(text), text))
        for kind, texts in sorted(found.items())
    }


def make_sample(source: Source, by_kind: Mapping[str, list[str]], num_texts: int) -> Sample:
    """Texts of every kind, from the shortest to the longest, at least `num_texts` where there are.

    Args:
      source: Whose tokenizer and prompts are used; other kinds than it has prompts for are left.
      by_kind: The shortest first.
      num_texts: Of all kinds together.

    Raises:
      InputError: There is no text of these kinds.
    """
    sample = Sample([], [], [])
    read = {kind: texts for kind, texts in by_kind.items() if kind in source.prompts}
    each = -(-num_texts // max(len(read), 1))
    for kind, ordered in read.items():
        at = np.unique(np.linspace(0, len(ordered) - 1, each).round().astype(int))
        chosen = [ordered[i] for i in at]
        sample.kinds.extend([kind] * len(chosen))
        sample.texts.extend(chosen)
        sample.rows.extend(token_rows(source.tokenizer, source, kind, chosen))
    if not sample.rows:
        raise InputError(
            f"no text of kinds {', '.join(source.prompts)}, needed some to verify the export"
        )
    return sample


def token_rows(
    tokenizer: Tokenizer, source: Source, kind: str, texts: list[str]
) -> list[Int[np.ndarray, " _"]]:
    """Ids of texts of a kind under the one limit that formats know."""
    before = source.prompts[kind]
    return tokenizer.encode_after(before, texts, source.max_length, Truncation())


def own_vectors(
    source: Source, sample: Sample, mesh: Mesh, pooling: PoolingConfig, variables: PyTree
) -> Float32[np.ndarray, "N E"]:
    """Vectors of the sample.

    Args:
      source: Whose model encodes.
      sample: The texts.
      mesh: Where.
      pooling: Instead of the model's.
      variables: {"params"}, and "lora" where adapters are to act.
    """
    lora = source.lora if COLLECTION in variables else None
    tower = source.model.tower.clone(pooling=pooling)
    model = dataclasses.replace(source.model, tower=tower, lora=lora)
    encoder = TextEncoder(
        model,
        put(variables, shardings(variables, mesh, tower_rules(tower, base=True))),
        source.tokenizer,
        mesh,
        prompts=source.prompts,
        limits=source.base.limits,
    )
    return encoder.encode_rows(sample.rows, batch_size=len(sample.rows))


def reference_vectors(
    source: Source, sample: Sample, mesh: Mesh, pooling: PoolingConfig
) -> Vectors:
    """Of the trained model, and of its base."""
    params = load_params(source.tower, source.model.tower, mesh)
    base = own_vectors(source, sample, mesh, pooling, {"params": params})
    variables = {"params": params if source.params is None else {"encoder": source.params}}
    if source.adapters is not None:
        variables[COLLECTION] = {"encoder": source.adapters}
    return Vectors(own_vectors(source, sample, mesh, pooling, variables), base)
