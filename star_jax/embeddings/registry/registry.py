"""Versions of embeddings and models, their aliases, states and consumers, at one place.

A registry is plain files:

    registry.json            that it is one
    objects/DIGEST/...       artefacts, each stored once
    records/..., reports/... what is known of a version: lineage, config; metrics, cohorts, ablation
    journal/00000001.json    what happened: everything else follows from it

Objects and files are written first and never again; a change is one event of the journal, so that
readers see all of it or nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.registry import objects
from star_jax.embeddings.registry.chains import MAX_CHAIN, find_chain, unserved
from star_jax.embeddings.registry.files import Files, open_files
from star_jax.embeddings.registry.journal import (
    ConflictError,
    Event,
    append,
    begin,
    check_is_registry,
    read_events,
)
from star_jax.embeddings.registry.lineage import read_lineage
from star_jax.embeddings.registry.state import Consumer, State, Stored, Version, check_name, fold
from star_jax.embeddings.registry.verify import Findings, read_again


class Registry:
    """A registry, read anew for every question."""

    def __init__(self, url: str | Path, *, max_chain: int = MAX_CHAIN) -> None:
        """Opens it; nothing is read or made yet.

        Args:
          url: A local path, or a URL that fsspec knows.
          max_chain: Most transforms in a row that serve a consumer.

        Raises:
          InputError: Nothing can be stored there.
        """
        self._files: Files = open_files(str(url))
        self._max_chain = max_chain
        self._events: list[Event] = []
        self._state = State()

    @property
    def url(self) -> str:
        """What the user calls it."""
        return self._files.url

    def state(self) -> State:
        """What it holds now.

        Raises:
          InputError: There is no registry, or an event is damaged.
        """
        check_is_registry(self._files)
        events = read_events(self._files, self._events)
        self._state = fold(self._state, events[len(self._events) :])
        self._events = events
        return self._state

    def events(self) -> list[Event]:
        """All that happened."""
        self.state()
        return self._events

    def version(self, ref: str) -> Version:
        """The version of NAME@NUMBER, NAME@ALIAS, or of NAME, which is NAME@active.

        Raises:
          InputError: There is none; with those that there are.
        """
        return self.state().find(ref)

    def folder(self, ref: str) -> Path:
        """A local folder of a version's artefact; a remote one is fetched once, and verified.

        Raises:
          InputError: There is none, it is retired, or it is damaged.
        """
        version = self.version(ref)
        if version.state == "retired":
            raise InputError(f"{version.ref} is retired; its vectors serve nobody")
        return objects.fetch(self._files, version.digest)

    def chain(self, new_ref: str, old_ref: str) -> list[Path]:
        """Folders of the transforms that lead from one version to another, in their order.

        Raises:
          InputError: There is no way that is short enough.
        """
        state = self.state()
        found = find_chain(state, state.find(new_ref), state.find(old_ref), self._max_chain)
        return [objects.fetch(self._files, version.digest) for version in found]

    def record(self, ref: str) -> dict[str, Any]:
        """What was written down of a version when it was added."""
        return self._read(self.version(ref).record)

    def reports(self, ref: str) -> dict[str, Any]:
        """Report -> its content: metrics, cohorts, ablation."""
        return {name: self._read(file) for name, file in self.version(ref).reports.items()}

    def add(
        self,
        folder: Path,
        name: str,
        *,
        code_version: str | None = None,
        reports: Mapping[str, Any] | None = None,
    ) -> Version:
        """Adds an artefact as the next version of a name; makes the registry where there is none.

        Content that the name has, not retired, stays the version it is, and gets those reports
        that it lacks.

        Args:
          folder: The artefact.
          name: Of the versions.
          code_version: Of the code around star_jax, e.g. a commit.
          reports: JSON by name.

        Raises:
          InputError: The artefact is not whole, or of another kind than the name's others.
        """
        check_name(name, "name")
        lineage, digest = read_lineage(folder), artefacts.digest(folder)
        begin(self._files)
        while True:
            state = self.state()
            same = [v for v in state.of_name(name) if v.digest == digest and v.state != "retired"]
            if same:
                return self._as_before(same[-1], code_version, reports or {})
            ref = f"{name}@{len(state.of_name(name)) + 1}"
            change = {
                "do": "add",
                "version": ref,
                "kind": lineage.kind,
                "digest": digest,
                "parents": lineage.parents,
                "facts": lineage.facts,
            }
            unknown = {"manifest_sha256": "", "record": ("", ""), "reports": {}}
            state.after(change | unknown)  # Refused before anything is copied.
            change["manifest_sha256"] = objects.store(self._files, folder, digest)
            known = {"digest": digest, "files": artefacts.read_files(folder), "code": code_version}
            change["record"] = self._write("records", f"{name}-", lineage._asdict() | known)
            change["reports"] = {
                report: self._write("reports", f"{name}-{report}-", content)
                for report, content in (reports or {}).items()
            }
            try:
                self._change(change)
            except ConflictError:
                continue  # What others did does not matter to an addition, but for its number.
            return self.version(ref)

    def attach(self, ref: str, report: str, content: Any) -> None:
        """Adds a report to a version, which then never changes.

        Raises:
          InputError: The version has that report.
        """
        check_name(report, "report")
        version = self.version(ref)
        stored = self._write("reports", f"{version.name}-{report}-", content)
        self._change({"do": "attach", "version": version.ref, "report": report, "stored": stored})

    def promote(self, ref: str, *, force_reason: str | None = None) -> Version:
        """Makes a version active in one step; the one that was becomes deprecated.

        Args:
          ref: Which.
          force_reason: Why consumers may break; stays in the journal.

        Raises:
          InputError: A live consumer would not be served; with what to do.
          ConflictError: Somebody else changed the registry meanwhile.
        """
        version = self.version(ref)
        change = {"do": "promote", "version": version.ref, "reason": force_reason, "broken": []}
        own = {
            consumer
            for (_, name), consumer in self._state.consumers.items()
            if name == version.name
        }
        return self._guarded(change, version, own)

    def deprecate(self, ref: str, *, reason: str | None = None) -> Version:
        """Tells that a candidate should not be used.

        Raises:
          InputError: It is no candidate, or a live consumer is served by way of it.
        """
        version = self.version(ref)
        change = {"do": "deprecate", "version": version.ref, "reason": reason}
        if lost := self._left_unserved(change, set()):
            raise InputError(f"{version.ref} is needed: {'; '.join(lost)}")
        self._change(change)
        return self.version(version.ref)

    def retire(
        self, ref: str, *, delete_files: bool = False, force_reason: str | None = None
    ) -> Version:
        """Ends a version for good; its record stays.

        Args:
          ref: Which: a deprecated one.
          delete_files: Frees its files, unless another version has the same content.
          force_reason: As for `promote`.

        Raises:
          InputError: It made a version that lives, or a live consumer would not be served.
        """
        version = self.version(ref)
        change = {
            "do": "retire",
            "version": version.ref,
            "reason": force_reason,
            "delete": delete_files,
            "broken": [],
        }
        own = {each for each in self._state.consumers.values() if each.version == version.ref}
        found = self._guarded(change, version, own)
        same = [v for v in self._state.versions.values() if v.digest == version.digest]
        if delete_files and not any(v.has_files for v in same):
            objects.delete(self._files, version.digest)
        return found

    def alias(self, ref: str, alias: str) -> None:
        """Gives a version another name; one that another version has moves."""
        change = {"do": "alias", "version": self.version(ref).ref, "alias": alias, "reason": None}
        self._change(change)

    def unalias(self, name: str, alias: str) -> None:
        """Takes an alias away."""
        self.state()
        self._change({"do": "unalias", "name": name, "alias": alias})

    def add_consumer(self, consumer: str, ref: str, owner: str) -> None:
        """Notes what a consumer was trained on; it lives until it is removed.

        A consumer of several names is noted once for each; one that was trained anew, again.
        """
        self._change(
            {
                "do": "add-consumer",
                "consumer": consumer,
                "version": self.version(ref).ref,
                "owner": owner,
            }
        )

    def remove_consumer(self, consumer: str, name: str) -> None:
        """Forgets a consumer of a name."""
        self.state()
        self._change({"do": "remove-consumer", "consumer": consumer, "name": name})

    def verify(self, ref: str | None = None) -> Findings:
        """Reads one version or all, and every event, to the last byte.

        Raises:
          InputError: An event is not what was written.
        """
        check_is_registry(self._files)
        self._events, self._state = [], State()
        known = list(self.state().versions.values())
        return read_again(self._files, known if ref is None else [self.version(ref)], known)

    def unserved(self) -> dict[Consumer, str]:
        """Consumers that the active version of their name does not serve, with the reason."""
        return unserved(self.state(), self._max_chain)

    def _guarded(self, change: dict[str, Any], version: Version, own: set[Consumer]) -> Version:
        broken = self._left_unserved(change, own)
        if broken and change["reason"] is None:
            raise InputError(
                f"{version.ref} cannot be {change['do']}d: {'; '.join(broken)}; or give --force "
                "--reason TEXT, which the journal keeps"
            )
        self._change(change | {"broken": broken})
        return self.version(version.ref)

    def _left_unserved(self, change: dict[str, Any], own: set[Consumer]) -> list[str]:
        """Reasons of those consumers, and of all that are served now, which would not be."""
        kept = unserved(self._state, self._max_chain).keys() - own
        after = unserved(self._state.after(change), self._max_chain)
        return [reason for consumer, reason in after.items() if consumer not in kept]

    def _change(self, change: dict[str, Any]) -> None:
        """Checks a change against what was read last, and makes it if nobody came between."""
        self._state.after(change)
        append(self._files, self._events, change)

    def _as_before(
        self, version: Version, code_version: str | None, reports: Mapping[str, Any]
    ) -> Version:
        """A version that is added again: it gets the reports that it lacks, nothing changes."""
        known_code = self._read(version.record)["code"]
        if code_version not in (None, known_code):
            raise InputError(
                f"{version.ref} was added with code {known_code}, got {code_version}, and never "
                "changes; give another name"
            )
        for report, content in reports.items():
            known = version.reports.get(report)
            if known is None:
                self.attach(version.ref, report, content)
            elif self._read(known) != json.loads(json.dumps(content)):
                raise InputError(
                    f"{version.ref} has another report {report}, which never changes; is it of "
                    "the same content?"
                )
        return self.version(version.ref)

    def _write(self, folder: str, prefix: str, content: Any) -> Stored:
        """Writes JSON under a name that holds its digest."""
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        data = f"{text}\n".encode()
        sha256 = artefacts.content_digest(data)
        stored = Stored(f"{folder}/{prefix}{sha256[:16]}.json", sha256)
        try:
            self._files.create(stored.name, data)
        except FileExistsError:
            self._read(stored)  # The same content, or it is damaged.
        return stored

    def _read(self, stored: Stored) -> Any:
        content = self._files.read(stored.name)
        if artefacts.content_digest(content) != stored.sha256:
            raise InputError(
                f"{self.url}/{stored.name} does not have the sha256 it was stored with; restore it "
                "from a backup"
            )
        return json.loads(content)


def locate(ref: str, registry: str | None) -> Path:
    """The folder of an artefact: the path of one is itself, anything else a version's ref.

    Raises:
      InputError: It is neither, or a ref without a registry.
    """
    if (Path(ref) / artefacts.MANIFEST).is_file():
        return Path(ref)
    if registry is None:
        raise InputError(
            f"{ref} is no folder of an artefact; as a version, NAME@NUMBER, it needs --registry"
        )
    return Registry(registry).folder(ref)
