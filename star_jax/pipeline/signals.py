"""Signals: named groups of what a graph is built from, and the manifests that list them.

A manifest is a JSON file. A branch of signal development is one manifest: it differs from another
by the signals it adds, removes or changes, and two of them are merged into their union. Every part
of the tables belongs to one signal at most:

    node:member                 a node type
    edge:member__apply__job     an edge type, with its reverse
    text:job                    the texts of a node type
    categorical:job.industry    a categorical column
    dense:member.age            a column of numbers
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from star_jax import artefacts
from star_jax.config import InputError, difference, from_json, to_json
from star_jax.graph.schema import EdgeType, GraphSchema, NodeType, parse_key
from star_jax.pipeline.tables.read import TablesMeta

_NAME = re.compile(r"\w[\w.-]*")
_KINDS = ("node", "edge", "text", "categorical", "dense")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signal:
    """One signal.

    Attributes:
      owner: Whom to ask.
      description: What it tells, in a sentence.
      parts: What it stands for, as the module's docstring names it.
    """

    owner: str
    description: str
    parts: tuple[str, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            kind, colon, name = part.partition(":")
            if kind not in _KINDS or not colon or not name:
                raise ValueError(f"part {part!r} is none of {', '.join(f'{k}:' for k in _KINDS)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signals:
    """A manifest: the signals that a graph is built from, by name."""

    signals: dict[str, Signal]

    def __post_init__(self) -> None:
        for name in self.signals:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"signal {name!r}, needed a name of letters, digits, '_', '.', '-'"
                )
        twice = claimed_twice(self.signals)
        if twice:
            raise ValueError("; ".join(twice))


class Chosen(NamedTuple):
    """What of the tables the signals of a manifest take."""

    schema: GraphSchema
    texts: tuple[str, ...]  # Node types.


class Merged(NamedTuple):
    """Signals of both sides, and what only a person can decide."""

    signals: dict[str, Signal]
    conflicts: list[str]


def read_signals(path: Path) -> Signals:
    """Reads a manifest.

    Raises:
      InputError: It is missing or says what no manifest may say.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, needed signals; `star branch init` writes them")
    try:
        return from_json(Signals, path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def write_signals(signals: Signals, path: Path) -> None:
    """Writes a manifest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    artefacts.write_text(path, to_json(signals) + "\n")


def everything(meta: TablesMeta, owner: str = "") -> Signals:
    """One signal per node type, with all of its features, and one per edge type."""
    signals = {}
    for name, node in meta.node_types.items():
        parts = (
            f"node:{name}",
            *((f"text:{name}",) if node.has_texts else ()),
            *(f"categorical:{name}.{column}" for column in node.categorical),
            *(f"dense:{name}.{column}" for column in node.dense),
        )
        about = f"{name} nodes and their features"
        signals[name] = Signal(owner=owner, description=about, parts=parts)
    for edge in meta.edge_types:
        about = f"{edge.relation} edges from {edge.sender} to {edge.receiver}"
        parts = (f"edge:{edge.name}",)
        signals[edge.name] = Signal(owner=owner, description=about, parts=parts)
    return Signals(signals=signals)


def parts_by_signal(manifest: Signals) -> dict[str, tuple[str, ...]]:
    """Signal -> its parts."""
    return {name: signal.parts for name, signal in manifest.signals.items()}


def claimed_twice(signals: dict[str, Signal]) -> list[str]:
    """A line for every part that more than one signal names."""
    lines = []
    for part, count in Counter(p for s in signals.values() for p in s.parts).items():
        owners = sorted(name for name, signal in signals.items() if part in signal.parts)
        if count > len(owners):
            lines.append(f"part {part} is twice in signal {owners[0]}")
        elif count > 1:
            lines.append(f"part {part} is claimed by the signals {' and '.join(owners)}")
    return lines


def choose(manifest: Signals, meta: TablesMeta) -> Chosen:
    """The graph of a manifest's signals.

    Node types that no part needs are left out. What stays: a type that is named, an end of an edge
    type, the owner of a feature, and the ends of the tasks, between which pairs are scored.

    Raises:
      InputError: A signal names what the tables do not have.
    """
    known = {part for signal in everything(meta).signals.values() for part in signal.parts}
    named: dict[str, set[str]] = {kind: set() for kind in _KINDS}
    for name, signal in manifest.signals.items():
        for part in signal.parts:
            if part not in known:
                kind = part.partition(":")[0]
                needed = sorted(p for p in known if p.startswith(f"{kind}:"))
                raise InputError(
                    f"signal {name} has the part {part}, which was not imported, needed one of "
                    f"{', '.join(needed) or 'another kind'}"
                )
            kind, _, rest = part.partition(":")
            named[kind].add(rest)
    types = named["node"] | named["text"]
    types |= {end for key in named["edge"] for end in parse_key(key)[::2]}
    types |= {end for task in meta.tasks.values() for end in (task.sender, task.receiver)}
    for name, node in meta.node_types.items():
        columns = {*named["categorical"], *named["dense"]}
        if any(f"{name}.{column}" in columns for column in (*node.categorical, *node.dense)):
            types.add(name)
    nodes = {
        name: NodeType(
            count=node.count,
            categorical={
                column: cardinality
                for column, cardinality in node.categorical.items()
                if f"{name}.{column}" in named["categorical"]
            },
            dense=tuple(column for column in node.dense if f"{name}.{column}" in named["dense"]),
        )
        for name, node in meta.node_types.items()
        if name in types
    }
    edges = tuple(
        EdgeType(sender=each.sender, relation=each.relation, receiver=each.receiver, kind=each.kind)
        for each in meta.edge_types
        if each.name in named["edge"]
    )
    texts = tuple(name for name in nodes if name in named["text"])
    return Chosen(GraphSchema(nodes=nodes, edges=edges), texts)


def diff(a: Signals, b: Signals) -> list[str]:
    """A line for every signal that is in one of them alone, and for every field that differs."""
    lines = []
    for name, signal in a.signals.items():
        if name not in b.signals:
            lines.append(f"- {_summary(name, signal)}")
    for name, signal in b.signals.items():
        if name not in a.signals:
            lines.append(f"+ {_summary(name, signal)}")
        elif signal != a.signals[name]:
            lines += [f"~ {name}: {change}" for change in _changes(a.signals[name], signal)]
    return lines


def merge(base: Signals, a: Signals, b: Signals) -> Merged:
    """The union of what two branches made of a base.

    A change of one side alone is taken, its removals too. Signals that both sides changed, each in
    its own way, are conflicts; where both did the same there is none.
    """
    signals: dict[str, Signal] = {}
    conflicts = []
    for name in dict.fromkeys([*base.signals, *a.signals, *b.signals]):
        old, left, right = (each.signals.get(name) for each in (base, a, b))
        taken = left if right == old or left == right else right
        if left != right and old not in (left, right):
            conflicts.append(_conflict(name, old, left, right))
        elif taken is not None:
            signals[name] = taken
    return Merged(signals, [*conflicts, *claimed_twice(signals)])


def without_each(manifest: Signals) -> dict[str, Signals]:
    """Signal -> the manifest without it."""
    return {
        left_out: Signals(
            signals={name: each for name, each in manifest.signals.items() if name != left_out}
        )
        for left_out in manifest.signals
    }


def _conflict(name: str, old: Signal | None, a: Signal | None, b: Signal | None) -> str:
    if a is None or b is None:
        sides = ("A", "B") if a is None else ("B", "A")
        return f"signal {name} was removed by {sides[0]} and changed by {sides[1]}"
    how = "added" if old is None else "changed"
    return f"signal {name} was {how} by both, differently ({'; '.join(_changes(a, b))})"


def _changes(a: Signal, b: Signal) -> list[str]:
    """Lines for the fields that differ; of the parts, those that came and went."""
    same_parts = dataclasses.replace(b, parts=a.parts)
    lines = difference(to_json(a), to_json(same_parts))
    gone, came = _beyond(a.parts, b.parts), _beyond(b.parts, a.parts)
    lines += [f"-{part}" for part in gone] + [f"+{part}" for part in came]
    return lines or ["its parts are in another order"]


def _beyond(parts: Iterable[str], others: tuple[str, ...]) -> list[str]:
    return [part for part in parts if part not in others]


def _summary(name: str, signal: Signal) -> str:
    owner = f" ({signal.owner})" if signal.owner else ""
    return f"{name}{owner}: {signal.description} [{', '.join(signal.parts)}]"
