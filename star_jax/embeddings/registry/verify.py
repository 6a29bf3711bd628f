"""Reads a registry again, to the last byte."""

from collections.abc import Iterator
from typing import NamedTuple

from star_jax import artefacts
from star_jax.embeddings.registry import journal, objects
from star_jax.embeddings.registry.files import Files
from star_jax.embeddings.registry.state import Stored, Version


class Findings(NamedTuple):
    """What was found by reading everything."""

    problems: list[str]  # A line for every file that is not as it was written.
    left_over: list[str]  # Files that belong to no version: a killed command left them.
    num_versions: int
    num_bytes: int


def read_again(files: Files, versions: list[Version], known: list[Version]) -> Findings:
    """Reads records, reports and artefacts; events were checked by reading them.

    Args:
      files: Where the registry is.
      versions: What is read.
      known: All versions that there are.
    """
    problems = [line for version in versions for line in _problems(files, version)]
    kept = {f"{objects.FOLDER}/{version.digest}" for version in known if version.has_files}
    written = {stored.name for version in known for stored in _stored(version)}
    num_bytes, left_over = 0, []
    for name in files.names(""):
        top, _, rest = name.partition("/")
        folder = f"{top}/{rest.partition('/')[0]}"
        if top in (journal.FOLDER, journal.MARK) or name in written or folder in kept:
            num_bytes += files.size(name)
        else:
            left_over.append(f"{files.url}/{name}")
    return Findings(list(dict.fromkeys(problems)), left_over, len(versions), num_bytes)


def _problems(files: Files, version: Version) -> Iterator[str]:
    for stored in _stored(version):
        try:
            content = files.read(stored.name)
        except FileNotFoundError:
            yield f"{files.url}/{stored.name} is missing"
            continue
        if artefacts.content_digest(content) != stored.sha256:
            yield f"{files.url}/{stored.name} does not have the sha256 it was stored with"
    if version.has_files:
        yield from objects.problems(files, version.digest, version.manifest_sha256)


def _stored(version: Version) -> list[Stored]:
    return [version.record, *version.reports.values()]
