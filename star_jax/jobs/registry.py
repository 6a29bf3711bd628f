"""`star registry`: versions of embeddings and models, who uses them, and which one is active.

    star registry add --registry R --workdir runs/market --name market
    star registry promote market-graph@1 --registry R
    star registry consumer add ads market-graph@1 --owner ads-team --registry R

R is a local path or a URL that fsspec knows. The first line adds `market-text-model`,
`market-text`, `market-graph-model` and `market-graph`, with config, lineage, metrics and cohorts.
A later run adds their next versions; promoting one is refused while a live consumer of the name,
trained on another version, is not served:

    star registry add --registry R --artefact MAP --name market-graph-map
    star registry add --registry R --artefact CONTRACT --name market-graph-contract
    star registry promote market-graph@2 --registry R

MAP is what `star fit-transform` writes from version 2 to version 1, and CONTRACT what
`star check-consumers` found with it; `star registry chain` writes several maps in a row as one.
What was active is deprecated then: still readable, and promoted again it is the way back
(`market-graph@previous`). Transforms that are deprecated or retired lead nowhere.
"""

from pathlib import Path

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.registry.journal import describe
from star_jax.embeddings.registry.registry import Registry
from star_jax.embeddings.registry.state import PREVIOUS, Version
from star_jax.embeddings.transforms.files import KIND, read_chain, write_transform
from star_jax.pipeline.columns import columns
from star_jax.pipeline.releases import mlflow_run
from star_jax.pipeline.releases.gather import ABLATION, gather, read_ablation
from star_jax.pipeline.releases.show import diff_lines, list_lines, show_lines


def add(
    registry: str,
    name: str,
    workdir: Path | None = None,
    artefact: Path | None = None,
    code: str | None = None,
    ablation: Path | None = None,
) -> list[str]:
    """Adds the embeddings and models of a run, or one artefact."""
    if (workdir is None) == (artefact is None):
        raise InputError("star registry add needs --workdir of a run, or --artefact FOLDER")
    report = {} if ablation is None else {ABLATION: read_ablation(ablation)}
    opened = Registry(registry)
    if artefact is not None:
        return [_line(opened.add(artefact, name, code_version=code, reports=report))]
    assert workdir is not None
    return [
        _line(opened.add(p.folder, p.name, code_version=code, reports=p.reports | report))
        for p in gather(workdir, name)
    ]


def attach(registry: str, ref: str, ablation: Path) -> list[str]:
    """Stores the ablation report of a version's signals with it."""
    opened = Registry(registry)
    opened.attach(ref, ABLATION, read_ablation(ablation))
    return [_line(opened.version(ref))]


def versions(registry: str, name: str | None = None) -> list[str]:
    """All versions."""
    return list_lines(Registry(registry), name)


def show(registry: str, ref: str) -> list[str]:
    """One version."""
    return show_lines(Registry(registry), ref)


def diff(registry: str, a: str, b: str) -> list[str]:
    """What two versions differ in."""
    return diff_lines(Registry(registry), a, b)


def log(registry: str) -> list[str]:
    """All that happened."""
    lines = []
    for event in Registry(registry).events():
        lines += [describe(event), *(f"  broke: {line}" for line in event.change.get("broken", ()))]
    return lines


def promote(
    registry: str, ref: str, force: bool, reason: str | None = None, max_chain: int | None = None
) -> list[str]:
    """Makes a version the active one."""
    opened = _open(registry, max_chain)
    version = opened.promote(ref, force_reason=_forced(force, reason))
    previous = opened.state().aliases[version.name].get(PREVIOUS)
    return [_line(version), *([_line(opened.version(previous))] if previous else [])]


def deprecate(
    registry: str, ref: str, reason: str | None = None, max_chain: int | None = None
) -> list[str]:
    """Marks a candidate as not to be used."""
    return [_line(_open(registry, max_chain).deprecate(ref, reason=reason))]


def retire(
    registry: str,
    ref: str,
    delete_vectors: bool,
    force: bool,
    reason: str | None = None,
    max_chain: int | None = None,
) -> list[str]:
    """Ends a deprecated version."""
    opened = _open(registry, max_chain)
    forced = _forced(force, reason)
    return [_line(opened.retire(ref, delete_files=delete_vectors, force_reason=forced))]


def alias(registry: str, ref: str, alias: str) -> list[str]:
    """Names a version."""
    opened = Registry(registry)
    opened.alias(ref, alias)
    version = opened.version(ref)
    return [f"{version.name}@{alias} is {version.ref}"]


def unalias(registry: str, name: str, alias: str) -> list[str]:
    """Takes a name away."""
    Registry(registry).unalias(name, alias)
    return [f"{name}@{alias} is no more"]


def consumer(
    registry: str,
    what: str,
    consumer: str | None = None,
    ref: str | None = None,
    owner: str | None = None,
) -> list[str]:
    """Adds, removes or lists consumers."""
    opened = Registry(registry)
    if what == "list":
        rows = [["consumer", "trained on", "owner", "served"]]
        unserved = opened.unserved()
        for (name, _), each in opened.state().consumers.items():
            served = "no" if each in unserved else "yes"
            rows.append([name, each.version, each.owner, served])
        return columns(rows)
    if consumer is None or ref is None or (what == "add" and owner is None):
        needed = "CONSUMER REF --owner OWNER" if what == "add" else "CONSUMER NAME"
        raise InputError(f"star registry consumer {what} needs {needed}")
    if what == "remove":
        opened.remove_consumer(consumer, ref)
        return [f"{consumer} of {ref} is no more"]
    assert owner is not None
    opened.add_consumer(consumer, ref, owner)
    return [f"{consumer} was trained on {opened.version(ref).ref}"]


def chain(
    registry: str, new: str, old: str, output: Path | None = None, max_chain: int | None = None
) -> list[str]:
    """Folders of the transforms from one version to another; writes them as one if asked to."""
    folders = _open(registry, max_chain).chain(new, old)
    if output is not None:
        artefacts.check_replaceable(output, KIND)
        if not folders:
            raise InputError(f"{new} and {old} have the same content, needed two that differ")
        made_from = [artefacts.digest(folder) for folder in folders]
        write_transform(output, read_chain(folders), {"made_from": made_from})
    return [str(path) for path in folders]


def verify(registry: str, ref: str | None = None) -> list[str]:
    """Reads everything again.

    Raises:
      InputError: Naming every file that is not as it was written.
    """
    opened = Registry(registry)
    found = opened.verify(ref)
    if found.problems:
        raise InputError(
            f"{len(found.problems)} files are damaged: {'; '.join(found.problems)}; restore them "
            "from a backup"
        )
    left = [f"{name} belongs to no version: a killed command left it" for name in found.left_over]
    return [
        f"{found.num_versions} versions and {len(opened.events())} events are as written; "
        f"{found.num_bytes} bytes in all",
        *left,
    ]


def mlflow(registry: str, ref: str, tracking_uri: str, experiment: str | None = None) -> list[str]:
    """Logs a version as a run of MLflow and a version of a registered model."""
    return [mlflow_run.log(Registry(registry), ref, tracking_uri, experiment)]


def _open(registry: str, max_chain: int | None) -> Registry:
    if max_chain is None:
        return Registry(registry)
    if max_chain < 1:
        raise InputError(f"--max-chain {max_chain}, needed at least 1")
    return Registry(registry, max_chain=max_chain)


def _forced(force: bool, reason: str | None) -> str | None:
    if force != (reason is not None):
        raise InputError("--force and --reason TEXT go together: the journal keeps why")
    return reason


def _line(version: Version) -> str:
    return f"{version.ref}: {version.kind}, {version.state}, {version.digest[:12]}"
