"""The journal of a registry: numbered events, each a file that is created once.

Who changes a registry reads all events, decides, and creates the next number: of two that decided
on the same events one gets the number. Every event holds the digest of the one before and its own,
so that a changed byte anywhere is found by reading.
"""

import getpass
import json
import os
import socket
import time
from typing import Any, NamedTuple

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.registry.files import Files

FOLDER = "journal"
MARK = "registry.json"
_LAYOUT = b'{"layout": 1}\n'


class Event(NamedTuple):
    """One change of a registry."""

    number: int  # From 1 on.
    previous: str  # Digest of the event before; "" of the first one.
    time: int  # Unix seconds.
    by: str  # USER@HOST.
    change: dict[str, Any]  # As `star_jax.embeddings.registry.state` reads it.
    digest: str


class ConflictError(InputError):
    """Somebody else changed the registry while this change was decided on."""


def begin(files: Files) -> None:
    """Makes a registry where there is none; proves that files are created exclusively.

    Raises:
      InputError: They are not, or this is a registry of another layout.
    """
    for _ in range(2):
        try:
            files.create(MARK, _LAYOUT)
        except FileExistsError:
            check_is_registry(files)
            return
    raise InputError(
        f"registry {files.url}: {MARK} was created twice; its file system does not create files "
        "exclusively, needed where several may write at once"
    )


def check_is_registry(files: Files) -> None:
    """Refuses a place without a registry.

    Raises:
      InputError: There is none, or one of another layout.
    """
    try:
        content = files.read(MARK)
    except FileNotFoundError as error:
        raise InputError(
            f"{files.url} is no registry; `star registry add --registry {files.url}` makes one"
        ) from error
    if content != _LAYOUT:
        raise InputError(f"{files.url}/{MARK} holds {content[:80]!r}, needed {_LAYOUT!r}")


def read_events(files: Files, known: list[Event]) -> list[Event]:
    """All events of a registry.

    Args:
      files: Where it is.
      known: The first ones, read before.

    Raises:
      InputError: An event is damaged or missing, by its file.
    """
    names = files.names(FOLDER)
    for number, name in enumerate(names, start=1):
        if name != _name(number):
            raise InputError(f"{files.url}/{_name(number)} is missing, there is {name}")
    events = list(known)
    new = names[len(known) :]
    for name, content in zip(new, files.read_all(new), strict=True):
        events.append(_decode(content, events, f"{files.url}/{name}"))
    return events


def append(files: Files, events: list[Event], change: dict[str, Any]) -> Event:
    """Adds the next event.

    Args:
      files: Where the registry is.
      events: All that the change was decided on.
      change: What is to happen.

    Raises:
      ConflictError: Another event has the number already: nothing is changed.
    """
    event = Event(
        number=len(events) + 1,
        previous=events[-1].digest if events else "",
        time=int(time.time()),
        by=_who(),
        change=change,
        digest="",
    )
    event = event._replace(digest=_digest(event))
    try:
        files.create(_name(event.number), _encode(event))
    except FileExistsError as error:
        other = read_events(files, events)[len(events)]
        raise ConflictError(
            f"registry {files.url} was changed meanwhile: {describe(other)}; nothing of this was "
            f"done; look at `star registry list --registry {files.url}` and try again"
        ) from error
    return event


def describe(event: Event) -> str:
    """An event in a line: number, time, who, what."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event.time))
    what = " ".join(
        str(event.change[key])
        for key in ("do", "consumer", "version", "name", "alias", "report")
        if event.change.get(key) is not None
    )
    reason = f" ({event.change['reason']})" if event.change.get("reason") else ""
    return f"event {event.number} at {when} UTC by {event.by}: {what}{reason}"


def _name(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"


def _encode(event: Event) -> bytes:
    text = json.dumps(event._asdict(), indent=1, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode()


def _digest(event: Event) -> str:
    return artefacts.content_digest(_encode(event._replace(digest="")))


def _decode(content: bytes, before: list[Event], where: str) -> Event:
    """Reads an event; its bytes must be those that were written."""
    try:
        event = Event(**json.loads(content))
    except (ValueError, TypeError):  # Damaged so that it is no event.
        event = None
    expected = (before[-1].digest if before else "", len(before) + 1)
    if (
        event is None
        or (event.previous, event.number) != expected
        or (_encode(event), _digest(event)) != (content, event.digest)
    ):
        raise InputError(
            f"{where} is not what was written there; restore it from a backup: what a registry "
            "holds follows from all events"
        )
    return event


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # A user id without a name, as in many containers.
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}"
