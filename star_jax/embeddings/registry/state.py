"""What a registry holds: folded from its events, by the same rules that refuse a change.

States of a version: candidate -> active -> deprecated -> retired. `promote` makes a version active
and the one that was active deprecated, which stays readable and can be promoted again; a retired
one cannot. A name has one active version at most, the alias `active`; `previous` is what was active
before it.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from star_jax.config import InputError
from star_jax.embeddings.registry.journal import Event, describe

ACTIVE = "active"
PREVIOUS = "previous"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_ALIAS = re.compile(r"[A-Za-z][\w.-]*")


class Stored(NamedTuple):
    """A file of the registry that is never written again."""

    name: str
    sha256: str


class Version(NamedTuple):
    """One version of a name."""

    name: str
    number: int  # From 1 on.
    kind: str  # Of the artefact.
    digest: str  # Of the artefact.
    manifest_sha256: str
    parents: dict[str, str]  # What it was made from -> digest.
    facts: dict[str, Any]  # What rules read of the artefact's meta data.
    state: str
    record: Stored
    reports: dict[str, Stored]
    notes: tuple[str, ...]  # What was forced, and when the vectors were deleted.
    has_files: bool  # False: they were deleted with its retirement.

    @property
    def ref(self) -> str:
        """How a user names it."""
        return f"{self.name}@{self.number}"


class Consumer(NamedTuple):
    """Something trained on vectors of one name."""

    consumer: str
    version: str  # Ref of what it was trained on.
    owner: str


class State:
    """Versions by ref, aliases by name, and live consumers by consumer and name."""

    def __init__(self) -> None:
        """A registry without events."""
        self.versions: dict[str, Version] = {}
        self.aliases: dict[str, dict[str, str]] = {}
        self.consumers: dict[tuple[str, str], Consumer] = {}

    def find(self, ref: str) -> Version:
        """The version of NAME@NUMBER, NAME@ALIAS, or of NAME, which is NAME@active.

        Raises:
          InputError: There is none; with those that there are.
        """
        name, at, which = ref.partition("@")
        which = which if at else ACTIVE
        found = self.aliases.get(name, {}).get(which, f"{name}@{which}")
        if found in self.versions:
            return self.versions[found]
        numbers = [each.ref for each in self.of_name(name)]
        if not numbers:
            names = sorted({each.name for each in self.versions.values()})
            raise InputError(f"version {ref}: needed one of the names {', '.join(names) or '-'}")
        aliases = [f"{name}@{alias}" for alias in self.aliases.get(name, {})]
        raise InputError(f"version {ref} is none of {', '.join([*numbers, *aliases])}")

    def of_name(self, name: str) -> list[Version]:
        """All versions of a name, by number."""
        return [each for each in self.versions.values() if each.name == name]

    def active(self, name: str) -> Version | None:
        """The active version of a name, if there is one."""
        ref = self.aliases.get(name, {}).get(ACTIVE)
        return None if ref is None else self.versions[ref]

    def after(self, change: dict[str, Any]) -> "State":
        """What the registry holds after one more change.

        Raises:
          InputError: It may not be.
        """
        state = self._copy()
        state._apply(change, "")
        return state

    def _copy(self) -> "State":
        state = State()
        state.versions = dict(self.versions)
        state.aliases = {name: dict(aliases) for name, aliases in self.aliases.items()}
        state.consumers = dict(self.consumers)
        return state

    def _apply(self, change: dict[str, Any], when: str) -> None:
        _RULES[change["do"]](self, change, when)

    def _set(self, ref: str, **fields: Any) -> None:
        self.versions[ref] = self.versions[ref]._replace(**fields)


def fold(state: State, events: Iterable[Event]) -> State:
    """The state after more events.

    Raises:
      InputError: An event does what may not be: it was not written by this package.
    """
    state = state._copy()
    for event in events:
        try:
            state._apply(event.change, describe(event))
        except (InputError, KeyError, TypeError) as error:
            raise InputError(f"{describe(event)}: {error}, which no command writes") from error
    return state


def check_name(name: str, what: str, pattern: re.Pattern[str] = _NAME) -> None:
    """Refuses names that a ref cannot hold.

    Raises:
      InputError: It is one.
    """
    if not pattern.fullmatch(name):
        raise InputError(f"{what} {name!r}, needed letters, digits, '_', '.', '-'")


def _add(state: State, change: dict[str, Any], _: str) -> None:
    name, number = change["version"].rsplit("@", 1)
    check_name(name, "name")
    before = state.of_name(name)
    if before and before[0].kind != change["kind"]:
        raise InputError(f"{name} is of kind {before[0].kind}, got {change['kind']}; give another")
    if int(number) != len(before) + 1:
        raise InputError(f"{change['version']} is not the next version of {name}")
    state.versions[change["version"]] = Version(
        name=name,
        number=int(number),
        kind=change["kind"],
        digest=change["digest"],
        manifest_sha256=change["manifest_sha256"],
        parents=change["parents"],
        facts=change["facts"],
        state="candidate",
        record=Stored(*change["record"]),
        reports={report: Stored(*stored) for report, stored in change["reports"].items()},
        notes=(),
        has_files=True,
    )


def _attach(state: State, change: dict[str, Any], _: str) -> None:
    version = state.versions[change["version"]]
    report = change["report"]
    if report in version.reports:
        raise InputError(f"{version.ref} has a report {report}, which never changes")
    reports = version.reports | {report: Stored(*change["stored"])}
    state._set(version.ref, reports=reports)


def _promote(state: State, change: dict[str, Any], when: str) -> None:
    version = state.versions[change["version"]]
    if version.state == "active":
        raise InputError(f"{version.ref} is active already")
    _check_not_retired(version)
    old = state.active(version.name)
    aliases = state.aliases.setdefault(version.name, {})
    if old is not None:
        state._set(old.ref, state="deprecated")
        aliases[PREVIOUS] = old.ref
    aliases[ACTIVE] = version.ref
    notes = (when, *change["broken"]) if change["broken"] else ()
    state._set(version.ref, state="active", notes=(*version.notes, *notes))


def _alias(state: State, change: dict[str, Any], _: str) -> None:
    version = state.versions[change["version"]]
    check_name(change["alias"], "alias", _ALIAS)
    _check_not_own(change["alias"])
    _check_not_retired(version)
    state.aliases.setdefault(version.name, {})[change["alias"]] = version.ref


def _unalias(state: State, change: dict[str, Any], _: str) -> None:
    _check_not_own(change["alias"])
    aliases = state.aliases.get(change["name"], {})
    if change["alias"] not in aliases:
        raise InputError(f"{change['name']} has no alias {change['alias']}")
    del aliases[change["alias"]]


def _deprecate(state: State, change: dict[str, Any], _: str) -> None:
    version = state.versions[change["version"]]
    if version.state == "active":
        raise InputError(f"{version.ref} is active; promote another version, which deprecates it")
    if version.state != "candidate":
        raise InputError(f"{version.ref} is {version.state} already")
    state._set(version.ref, state="deprecated")


def _retire(state: State, change: dict[str, Any], when: str) -> None:
    version = state.versions[change["version"]]
    if version.state == "retired" and version.has_files and change["delete"]:
        state._set(version.ref, has_files=False)
        return
    _check_not_retired(version)
    if version.state != "deprecated":
        raise InputError(f"{version.ref} is {version.state}, needed deprecated; deprecate it first")
    aliases = state.aliases.get(version.name, {})
    named = [alias for alias, ref in aliases.items() if ref == version.ref and alias != PREVIOUS]
    if named:
        raise InputError(
            f"{version.ref} is {version.name}@{named[0]}; run `star registry unalias` first"
        )
    same = [v for v in state.versions.values() if v.digest == version.digest and v != version]
    if all(v.state == "retired" for v in same):
        for other in state.versions.values():
            made = [role for role, digest in other.parents.items() if digest == version.digest]
            if made and other.kind not in LINKS and other.state != "retired":
                raise InputError(
                    f"{version.ref} is the {made[0]} of {other.ref}, which is {other.state}; "
                    "retire that first"
                )
    if aliases.get(PREVIOUS) == version.ref:
        del aliases[PREVIOUS]
    broken = (when, *change["broken"]) if change["broken"] else ()
    state._set(
        version.ref,
        state="retired",
        has_files=version.has_files and not change["delete"],
        notes=(*version.notes, *broken),
    )


def _add_consumer(state: State, change: dict[str, Any], _: str) -> None:
    version = state.versions[change["version"]]
    check_name(change["consumer"], "consumer")
    _check_not_retired(version)
    key = (change["consumer"], version.name)
    known = state.consumers.get(key)
    if known is not None and known.owner != change["owner"]:
        raise InputError(
            f"consumer {key[0]} of {key[1]} is owned by {known.owner}, got {change['owner']}; "
            "give another name, or remove that one"
        )
    state.consumers[key] = Consumer(change["consumer"], version.ref, change["owner"])


def _remove_consumer(state: State, change: dict[str, Any], _: str) -> None:
    key = (change["consumer"], change["name"])
    if key not in state.consumers:
        known = ", ".join(f"{name} of {of}" for name, of in state.consumers) or "none"
        raise InputError(f"consumer {key[0]} of {key[1]} is not registered; there are {known}")
    del state.consumers[key]


def _check_not_retired(version: Version) -> None:
    if version.state == "retired":
        raise InputError(f"{version.ref} is retired; add its artefact again to use it")


def _check_not_own(alias: str) -> None:
    if alias in (ACTIVE, PREVIOUS):
        raise InputError(f"alias {alias} follows from `star registry promote`; give another")


LINKS = ("transform", "contract")  # Kinds that say how versions relate.
_RULES: dict[str, Callable[[State, dict[str, Any], str], None]] = {
    "add": _add,
    "attach": _attach,
    "promote": _promote,
    "alias": _alias,
    "unalias": _unalias,
    "deprecate": _deprecate,
    "retire": _retire,
    "add-consumer": _add_consumer,
    "remove-consumer": _remove_consumer,
}
