"""Versions as lines: one of them, two compared, all of them."""

import json
import time
from collections.abc import Mapping
from typing import Any

from star_jax.config import difference
from star_jax.embeddings.registry.journal import Event
from star_jax.embeddings.registry.registry import Registry
from star_jax.embeddings.registry.state import State, Version
from star_jax.pipeline.columns import columns
from star_jax.pipeline.releases.gather import ABLATION, COHORTS, METRICS

_DIGEST_LENGTH = 12  # Characters of a digest that are shown.
_PARTS = ("_warm_", "_cold_", "_slice_")  # Metrics of some of the pairs: in the record alone.


def list_lines(registry: Registry, name: str | None) -> list[str]:
    """All versions in a table, then the live consumers, and why one is not served."""
    state, times = registry.state(), _times(registry.events())
    versions = state.of_name(name) if name else list(state.versions.values())
    rows = [["version", "kind", "state", "aliases", "added (UTC)", "digest", "consumers"]]
    for version in versions:
        using = [c.consumer for c in state.consumers.values() if c.version == version.ref]
        rows.append(
            [
                version.ref,
                version.kind,
                version.state,
                ", ".join(_aliases(state, version)) or "-",
                times[version.ref],
                version.digest[:_DIGEST_LENGTH],
                ", ".join(using) or "-",
            ]
        )
    unserved = [f"not served: {reason}" for reason in registry.unserved().values()]
    return [*columns(rows), *unserved]


def show_lines(registry: Registry, ref: str) -> list[str]:
    """All that is known of a version, but its config, which its record holds."""
    state = registry.state()
    version = state.find(ref)
    record, reports = registry.record(version.ref), registry.reports(version.ref)
    num_bytes = sum(file["bytes"] for file in record["files"].values())
    aliases = [each for each in _aliases(state, version) if each != version.state]
    code = f", {record['code']}" if record["code"] else ""
    words = [version.kind, version.state, *aliases]
    words += [] if version.has_files else ["its files are deleted"]
    lines = [
        f"{version.ref}: {', '.join(words)}",
        f"digest    {version.digest}",
        f"added     {_times(registry.events())[version.ref]} UTC",
        f"files     {len(record['files'])}, {num_bytes} bytes",
        f"code      star_jax {record['star_jax']}{code}",
        f"record    {registry.url}/{version.record.name}",
    ]
    for role, digest in version.parents.items():
        lines.append(f"made from {role} {_named(state, digest)}")
    for other in state.versions.values():
        roles = [role for role, digest in other.parents.items() if digest == version.digest]
        lines += [f"used by   {other.ref} as {role}" for role in roles]
    for consumer in state.consumers.values():
        if consumer.version == version.ref:
            lines.append(f"consumer  {consumer.consumer} of {consumer.owner}")
    lines += [f"forced    {note}" for note in version.notes]
    return [*lines, *_metric_lines(reports), *_cohort_lines(reports), *_ablation_lines(reports)]


def diff_lines(registry: Registry, a: str, b: str) -> list[str]:
    """What differs, field by field, as `what.path: old -> new`."""
    state = registry.state()
    before, after = (_comparable(registry, state, state.find(ref)) for ref in (a, b))
    for part in ("config", METRICS, COHORTS):
        if (before[part] is None) != (after[part] is None):  # One line, not all that the other has.
            for side in (before, after):
                side[part] = "not recorded" if side[part] is None else "recorded"
    lines = difference(json.dumps(before), json.dumps(after))
    same = [f"{state.find(a).ref} and {state.find(b).ref} differ in nothing that was recorded"]
    return [_with_change(line) for line in lines] or same


def _comparable(registry: Registry, state: State, version: Version) -> dict[str, Any]:
    record, reports = registry.record(version.ref), registry.reports(version.ref)
    metrics, cohorts = reports.get(METRICS), reports.get(COHORTS)
    ends = set(version.parents.values())
    return {
        "kind": version.kind,
        "star_jax": record["star_jax"],
        "code": record["code"],
        "made from": {role: _named(state, digest) for role, digest in version.parents.items()},
        "config": record["config"],
        "meta": {
            name: value
            for name, value in record["meta"].items()
            if not isinstance(value, str) or value not in ends
        },
        "bytes": sum(file["bytes"] for file in record["files"].values()),
        METRICS: metrics and {name: metrics[name] for name in ("dataset", "model", "tasks")},
        COHORTS: cohorts
        and {f"{each['column']}={each['value']}": each for each in cohorts["cohorts"]},
    }


def _with_change(line: str) -> str:
    """Adds the difference where both sides are numbers."""
    old, _, new = line.rpartition(": ")[2].partition(" -> ")
    try:
        return f"{line} ({float(new) - float(old):+.4g})"
    except ValueError:  # Of anything else there is none.
        return line


def _metric_lines(reports: Mapping[str, Any]) -> list[str]:
    if METRICS not in reports:
        return []
    found = reports[METRICS]
    lines = [f"metrics of {found['model']} on {found['dataset']}, {found['split']} split"]
    for task, values in found["tasks"].items():
        for name in _whole(values):
            interval = found["intervals"].get(name) if task == found["main_task"] else None
            around = f"  [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""
            lines.append(f"  {task} {name} {values[name]:.4f}{around}")
    return lines


def _cohort_lines(reports: Mapping[str, Any]) -> list[str]:
    cohorts = reports.get(COHORTS, {"cohorts": []})["cohorts"]
    if not cohorts:
        return []
    rows = [["cohort", "members", "auc", "gap", "beyond bound"]]
    for each in cohorts:
        cells = [str(each["num_members"]), f"{each['auc']:.4f}", f"{each['gap']:+.4f}"]
        beyond = "yes" if each["beyond_bound"] else "no"
        rows.append([f"  {each['column']} {each['value']}", *cells, beyond])
    return columns(rows)


def _ablation_lines(reports: Mapping[str, Any]) -> list[str]:
    """What is lost, of each metric, without a signal."""
    if ABLATION not in reports:
        return []
    found = reports[ABLATION]
    whole = found["all"]["metrics"]
    names = _whole(whole)
    rows = [
        ["without signal", "owner", *names, "seconds"],
        [
            "  (all)",
            "",
            *(f"{whole[name]:.4f}" for name in names),
            f"{found['all']['seconds']:.0f}",
        ],
    ]
    for signal, row in found["signals"].items():
        changes = [f"{row['metrics'][name] - whole[name]:+.4f}" for name in names]
        rows.append([f"  {signal}", row["owner"], *changes, f"{row['seconds']:.0f}"])
    return columns(rows)


def _whole(values: Mapping[str, Any]) -> list[str]:
    """Metrics of all pairs, as far as they are numbers."""
    return [
        name
        for name, value in values.items()
        if isinstance(value, float) and not any(part in name for part in _PARTS)
    ]


def _times(events: list[Event]) -> dict[str, str]:
    return {
        event.change["version"]: time.strftime("%Y-%m-%d %H:%M", time.gmtime(event.time))
        for event in events
        if event.change["do"] == "add"
    }


def _aliases(state: State, version: Version) -> list[str]:
    found = state.aliases.get(version.name, {})
    return [alias for alias, ref in found.items() if ref == version.ref]


def _named(state: State, digest: str) -> str:
    """A digest's first characters, and the versions that have it."""
    refs = [version.ref for version in state.versions.values() if version.digest == digest]
    short = digest[:_DIGEST_LENGTH]
    return f"{short} ({', '.join(refs)})" if refs else short
