"""`star export-model`: the trained text model for other libraries, reloaded before it counts.

Reads `W/tables` and `W/text`, writes `W/model_export`: `peft` (adapter), `huggingface` (merged),
`sentence-transformers` (with pooling and prompts) and `scorer`. Texts are given to the exported
models as `star_jax.text.prompts.clean` leaves them: composed Unicode, no markup, single blanks.
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline import interop
from star_jax.pipeline.model_source import (
    Source,
    make_sample,
    read_source,
    texts_by_kind,
)
from star_jax.pipeline.model_verification import Check, Verifier
from star_jax.text.formats.adapter import Form, write_adapter
from star_jax.text.formats.merged import (
    Update,
    full_updates,
    lora_updates,
    write_config,
    write_weights,
)
from star_jax.text.formats.pair_scorer import write_scorer
from star_jax.text.formats.sentences import check_expressible, config_changes, write_modules
from star_jax.text.formats.tokenizer_files import write_tokenizer
from star_jax.text.prompts import Kind

KIND = "model_export"

Format = Literal["peft", "huggingface", "sentence-transformers"]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelExportConfig:
    """Which formats, and how they are verified."""

    formats: tuple[Format, ...] = ("peft", "huggingface", "sentence-transformers")
    adapter_form: Form = "encoder"  # Or `causal_lm`, for servers that load the base as one.
    shard_bytes: int = 4 << 30  # Largest file of weights; one is in memory at a time.
    verify: Literal["libraries", "self"] = "libraries"  # `self`: by our own reader alone.
    num_texts: int = 8  # Real texts whose vectors are compared.
    # Whose adapters, for a model of lora.tower_adapters: other libraries know shared ones alone.
    tower: Kind | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(data=1))

    def __post_init__(self) -> None:
        if not self.formats or len(set(self.formats)) < len(self.formats):
            raise ValueError(f"formats {self.formats} needs at least one, and each once")
        for name in ("shard_bytes", "num_texts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be >= 1")


def run(config: ModelExportConfig, workdir: Path) -> None:
    """Writes every format and verifies it; nothing takes its place unless all are right."""
    with jax.default_matmul_precision("highest"):  # Accelerators round float32 without it.
        _run(config, workdir)


def _run(config: ModelExportConfig, workdir: Path) -> None:
    own = config.verify == "self"
    model = artefacts.digest(workdir / "text")
    versions = {} if own else interop.check_installed(config.formats)
    mesh = make_mesh(config.mesh)
    texts = texts_by_kind(workdir / "tables")
    source = read_source(workdir / "text", mesh, texts, config.tower)
    sample = make_sample(source, texts, config.num_texts)
    _check_possible(config, source)
    verifier = Verifier(source, sample, mesh, libraries=not own)
    with artefacts.writing(workdir / KIND, KIND) as partial:
        checks = {}
        meta: dict[str, object] = {
            "model": model,
            "base": source.base_name,
            "tower": config.tower,
            "trained_on_rounded_base": source.quantised,
        }
        for name in config.formats:
            (partial / name).mkdir()
            _log.info("%s: writing", name)
            check, described = _EXPORTS[name](config, source, verifier, partial / name)
            checks[name] = check._asdict()
            meta[name] = described
            _log.info("%s: %s", name, _told(check))
        (partial / "scorer").mkdir()
        write_scorer(
            partial / "scorer",
            source.scorer,
            source.model.scorer.config,
            source.model.tower.embedding_size,
        )
        checks["scorer"] = {"reread": verifier.scorer(partial / "scorer")}
        meta |= {"verified_by": versions or "self", "num_texts": len(sample.rows), "checks": checks}
        artefacts.set_meta(partial, meta)
    if own:
        _log.warning("%s was verified by our own reader alone, by no other library", workdir / KIND)


def _check_possible(config: ModelExportConfig, source: Source) -> None:
    """Refuses before anything is written.

    Raises:
      InputError: A format cannot hold this model.
    """
    if "peft" in config.formats and source.adapters is None:
        raise InputError(
            "formats: peft holds adapters, and W/text was trained without any (mode is not lora); "
            "give --formats huggingface sentence-transformers"
        )
    if source.quantised and set(config.formats) != {"peft"}:
        raise InputError(
            f"formats {', '.join(config.formats)}: the adapters were trained on the rounded "
            "weights of tower.base_quantisation, into which nothing can be merged; give "
            "--formats peft"
        )
    if "sentence-transformers" in config.formats:
        check_expressible(source.base.pooling, source.base.shape)


def _export_adapter(
    config: ModelExportConfig, source: Source, verifier: Verifier, folder: Path
) -> tuple[Check, object]:
    assert source.lora is not None
    write_adapter(
        folder,
        shape=source.base.shape,
        adapters=source.adapters,
        config=source.lora,
        base=source.folder,
        base_name=source.base_name,
        form=config.adapter_form,
    )
    return verifier.adapter(folder), {"form": config.adapter_form}


def _export_merged(
    config: ModelExportConfig, source: Source, verifier: Verifier, folder: Path
) -> tuple[Check, object]:
    described = _write_model(config, source, folder)
    write_config(folder, source.folder)
    return verifier.merged(folder, exact=described["exact"]), described


def _export_sentences(
    config: ModelExportConfig, source: Source, verifier: Verifier, folder: Path
) -> tuple[Check, object]:
    base = source.base
    described = _write_model(config, source, folder)
    write_config(folder, source.folder, **config_changes(base.pooling))
    write_modules(
        folder,
        pooling=base.pooling,
        shape=base.shape,
        prompts=source.prompts,
        max_length=source.max_length,
    )
    return verifier.sentences(folder, exact=described["exact"]), described


_EXPORTS: dict[
    Format,
    Callable[[ModelExportConfig, Source, Verifier, Path], tuple[Check, object]],
] = {
    "peft": _export_adapter,
    "huggingface": _export_merged,
    "sentence-transformers": _export_sentences,
}


def _write_model(config: ModelExportConfig, source: Source, folder: Path) -> dict:
    """Merged weights and the tokenizer."""
    shape = source.base.shape
    updates: dict[str, Update] = {}
    if source.adapters is not None:
        assert source.lora is not None
        updates = lora_updates(shape, source.adapters, source.lora)
    elif source.params is not None:
        updates = full_updates(shape, source.params)
    dtypes = write_weights(folder, source.folder, updates, shard_bytes=config.shard_bytes)
    added = write_tokenizer(folder, source.folder, source.tokenizer, source.max_length)
    exact = dtypes <= {"F32", "F64"}
    return {"trained_dtypes": sorted(dtypes), "exact": exact, "tokenizer_additions": added}


def _told(check: Check) -> str:
    library = "not asked" if check.library is None else f"{check.library:.1e}"
    return (
        f"differs from the base by {check.effect:.1e}, from W/text by {check.reread:.1e}, "
        f"from its library by {library}"
    )
