"""How the vectors of one version become those of another, and which consumers that serves."""

from collections import deque

from star_jax.config import InputError
from star_jax.embeddings.registry.state import Consumer, State, Version

MAX_CHAIN = 5  # Transforms in a row: every one adds its error.


def find_chain(state: State, new: Version, old: Version, max_chain: int) -> list[Version]:
    """The shortest way from a version's vectors to another's.

    Of equal ones, the latest that passed its contract, so that a transform which is added serves
    nobody before it passes; without any, the latest. Deprecated and retired ones lead nowhere.

    Args:
      state: Of the registry.
      new: Whose vectors there are.
      old: Whose vectors are wanted.
      max_chain: Most transforms.

    Returns:
      Transforms in the order to apply them; none where both have the same content.

    Raises:
      InputError: There is no way.
    """
    leaving: dict[str, list[Version]] = {}
    latest_first = reversed(_in_use(state, "transform"))
    for version in sorted(latest_first, key=lambda each: not has_passed(state, each)):
        leaving.setdefault(version.facts["new"], []).append(version)
    found: dict[str, list[Version]] = {new.digest: []}
    left = deque([new.digest])
    while left and old.digest not in found:
        digest = left.popleft()
        for transform in leaving.get(digest, []) if len(found[digest]) < max_chain else []:
            if transform.facts["old"] not in found:
                found[transform.facts["old"]] = [*found[digest], transform]
                left.append(transform.facts["old"])
    if old.digest not in found:
        raise InputError(
            f"no chain of at most {max_chain} transforms leads from {new.ref} to {old.ref}; run "
            f"`star fit-transform CONFIG --registry R --old {old.ref} --new {new.ref} --output MAP`"
            f" and {_added('MAP', old, 'map')}"
        )
    return found[old.digest]


def why_unserved(state: State, consumer: Consumer, max_chain: int) -> str | None:
    """Why the active version does not serve a consumer; None where it does.

    It does where the consumer was trained on the same content; where a contract says that the
    consumer's metrics hold on the vectors as they are; or where a transform leads back and a
    contract says that they hold on its results. Several transforms in a row are first written as
    one, which then is the shortest way.
    """
    old = state.versions[consumer.version]
    new = state.active(old.name)
    who = f"consumer {consumer.consumer} ({consumer.owner}), trained on {old.ref}"
    if new is None:
        return f"{who}, which is retired" if old.state == "retired" else None
    if old.state == "retired":  # Its vectors are not handed out.
        who += f" (once {old.ref} is retired, add its artefact again and take that version)"
    if new.digest == old.digest or _breaks(state, old.digest, new.digest, None) == []:
        return None
    try:
        chain = find_chain(state, new, old, max_chain)
    except InputError as error:
        return f"{who}: {error}"
    by = ", ".join(transform.ref for transform in chain)
    if len(chain) > 1:
        return (
            f"{who}: {new.ref} leads there by {by}; write them as one by `star registry chain "
            f"{new.ref} {old.ref} --registry R --output MAP` and {_added('MAP', old, 'map')}"
        )
    breaks = _breaks(state, old.digest, new.digest, chain[0].digest)
    if breaks is None:
        return (
            f"{who}: no contract says that {new.ref} serves it through {by}; run `star "
            f"check-consumers CONFIG --workdir W --registry R --old {old.ref} --new {new.ref} "
            f"--transform {by} --output CONTRACT` and {_added('CONTRACT', old, 'contract')}"
        )
    if breaks:
        return f"{who}: {new.ref} through {by} breaks its contract: {'; '.join(breaks)}"
    return None


def unserved(state: State, max_chain: int) -> dict[Consumer, str]:
    """Every live consumer that the active version of its name does not serve, with the reason."""
    found = {each: why_unserved(state, each, max_chain) for each in state.consumers.values()}
    return {consumer: reason for consumer, reason in found.items() if reason is not None}


def map_between(state: State, new: Version, old: Version) -> Version | None:
    """The transform of one version's vectors to another's that is to be used, if there is one.

    The latest that passed its contract; else the latest that no contract was made for.
    """
    ends = {"new": new.digest, "old": old.digest}
    found = [each for each in _in_use(state, "transform") if each.facts == ends]
    passed = [each for each in found if has_passed(state, each)]
    untried = [
        each for each in found if _breaks(state, old.digest, new.digest, each.digest) is None
    ]
    return next(reversed([*untried, *passed]), None)


def has_passed(state: State, transform: Version) -> bool:
    """Whether its latest contract holds."""
    facts = transform.facts
    return _breaks(state, facts["old"], facts["new"], transform.digest) == []


def _breaks(state: State, old: str, new: str, transform: str | None) -> list[str] | None:
    """What the latest contract of two contents says is broken; None without one."""
    for version in reversed(_in_use(state, "contract")):
        facts = version.facts
        if (facts["old"], facts["new"], facts["transform"]) == (old, new, transform):
            return [] if facts["passed"] else facts["breaks"] or ["it did not pass"]
    return None


def _added(folder: str, old: Version, kind: str) -> str:
    return f"`star registry add --registry R --artefact {folder} --name {old.name}-{kind}`"


def _in_use(state: State, kind: str) -> list[Version]:
    return [
        version
        for version in state.versions.values()
        if version.kind == kind and version.state in ("candidate", "active")
    ]
