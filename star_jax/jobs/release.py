"""`star release`: makes a new version of embeddings active, with whatever its consumers need.

For every version that a live consumer of the name was trained on, it fits a map of the new version
to it and scores frozen consumers through the map, unless the registry has both; it adds them, as
`NAME-map` and `NAME-contract`, and promotes the new version. Where a contract is broken nothing is
promoted, and all tables are printed. The same command again goes on with what is missing.

What it does one by one: `star fit-transform`, `star check-consumers`, `star registry add` and
`promote`.
"""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

from star_jax.embeddings.registry.chains import has_passed, map_between
from star_jax.embeddings.registry.registry import Registry
from star_jax.embeddings.registry.state import ACTIVE, Version
from star_jax.embeddings.transforms.fit import TransformConfig
from star_jax.jobs import check_consumers, fit_transform
from star_jax.jobs.check_consumers import ContractConfig
from star_jax.parallel import processes

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """How old consumers are kept going.

    Attributes:
      transform: Of the maps to the old versions.
      contract: What frozen consumers may lose on mapped vectors.
    """

    transform: TransformConfig = dataclasses.field(default_factory=TransformConfig)
    contract: ContractConfig = dataclasses.field(default_factory=ContractConfig)


def run(config: ReleaseConfig, workdir: Path, *, new: str, registry: str) -> dict[str, Any]:
    """Fits, checks, adds and promotes; all processes call it.

    Args:
      config: Of maps and contracts.
      workdir: Whose tables have the labels; what is made stands in its `release` too.
      new: Version of the registry that is to become active.
      registry: Path or URL.

    Returns:
      As `check_consumers.run`, of all old versions; nothing was promoted where there are breaks.

    Raises:
      InputError: There is no such version, or a map or a contract cannot be made.
    """
    found: dict[str, Any] = {"breaks": [], "tables": {}}
    for old in processes.by_the_first(lambda: _old_versions(registry, new)):
        folder = workdir / "release" / old
        if not processes.by_the_first(functools.partial(_has_map, registry, new, old)):
            made = str(folder / "map")
            fit_transform.run(config.transform, old=old, new=new, output=made, registry=registry)
            processes.by_the_first(functools.partial(_add, registry, folder / "map", old, "map"))
        check = functools.partial(_check, config.contract, workdir, registry, new, old, folder)
        _gather(found, old, processes.by_the_first(check))
    if not found["breaks"]:
        processes.by_the_first(lambda: _promote(registry, new))
    return found


def _old_versions(registry: str, new: str) -> list[str]:
    """Those of other content that consumers of the name were trained on, as far as they live."""
    state = Registry(registry).state()
    version = state.find(new)
    trained_on = {
        state.versions[consumer.version].digest
        for (_, name), consumer in state.consumers.items()
        if name == version.name
    }
    return [
        each.ref
        for each in state.of_name(version.name)
        if each.digest in trained_on - {version.digest} and each.state != "retired"
    ]


def _map(registry: str, new: str, old: str) -> Version | None:
    state = Registry(registry).state()
    return map_between(state, state.find(new), state.find(old))


def _has_map(registry: str, new: str, old: str) -> bool:
    return _map(registry, new, old) is not None


def _check(
    config: ContractConfig, workdir: Path, registry: str, new: str, old: str, folder: Path
) -> dict[str, Any]:
    """A contract of the map, unless one holds already."""
    through = _map(registry, new, old)
    assert through is not None
    if has_passed(Registry(registry).state(), through):
        _log.info("%s is served through %s, whose contract holds", old, through.ref)
        return {"breaks": [], "tables": {}}
    output = folder / "contract"
    made = check_consumers.run(
        config,
        workdir,
        old=old,
        new=new,
        transform=through.ref,
        registry=registry,
        output=str(output),
    )
    _add(registry, output, old, "contract")
    return made


def _add(registry: str, folder: Path, old: str, kind: str) -> None:
    name = old.partition("@")[0]
    added = Registry(registry).add(folder, f"{name}-{kind}")
    _log.info("added %s", added.ref)


def _gather(found: dict[str, Any], old: str, made: dict[str, Any]) -> None:
    found["breaks"] += [f"{old}: {line}" for line in made["breaks"]]
    found["tables"] |= {f"{old}: {title}": rows for title, rows in made["tables"].items()}


def _promote(registry: str, new: str) -> None:
    opened = Registry(registry)
    version = opened.version(new)
    if version.state != ACTIVE:
        opened.promote(new)
    _log.info("%s is active", version.ref)
