"""What an artefact says about how it came to be: code, config, and what it was made from."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from star_jax import artefacts

_JOB = "job.json"  # What a training wrote when it began.
_ROLES = {  # Kind -> what its meta data names by digest -> what that is called here.
    "graph_embeddings": {"model": "model", "graph": "graph_version"},
    "text_embeddings": {"model": "model"},
    "transform": {"new": "new", "old": "old"},
    "contract": {"new": "new", "old": "old", "transform": "transform"},
}
_FACTS = {  # Kind -> what the rules of a registry read of its meta data.
    "transform": ("new", "old"),
    "contract": ("new", "old", "transform", "passed", "breaks"),
}


class Lineage(NamedTuple):
    """How an artefact came to be, as far as it says."""

    kind: str
    star_jax: str  # The version of the code.
    config: dict[str, Any] | None  # None: it was not made by `star run`, and is no training.
    parents: dict[str, str]  # What it was made from -> digest.
    meta: dict[str, Any]
    facts: dict[str, Any]


def read_lineage(folder: Path) -> Lineage:
    """Reads the manifest, and what `star run` or a training noted beside it.

    Raises:
      InputError: It is no complete artefact, or lacks what its kind must say.
    """
    manifest = artefacts.read_any(folder)
    kind, meta = manifest.kind, manifest.meta
    content = artefacts.read_json(folder / artefacts.MANIFEST, "star_jax")
    noted = _noted(folder)
    roles, facts = _ROLES.get(kind, {}), _FACTS.get(kind, ())
    artefacts.check_meta(folder, meta, *roles, *facts)
    parents = {role: meta[key] for key, role in roles.items() if meta[key] is not None}
    for name, digest in noted.get("inputs", {}).items():
        if digest not in parents.values():
            parents[name] = digest
    return Lineage(
        kind=kind,
        star_jax=content["star_jax"],
        config=noted.get("config"),
        parents=parents,
        meta=meta,
        facts={name: meta[name] for name in facts},
    )


def _noted(folder: Path) -> dict[str, Any]:
    """Config and inputs; a stage's record counts for the content that it names."""
    path = folder / artefacts.STAGE
    if path.is_file():
        record = artefacts.read_json(path, "config")
        if record.get("output") == artefacts.digest(folder):
            return record
    path = folder / _JOB
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
