"""The ready schema of the layout star-tidy-1, derived from what a folder holds.

nodes/<type>, edges/<sender>__<relation>__<receiver>, texts/<type>, interactions, and optionally
eval/ (pairs, ranking, accept), meta.json and reference.json. Types and relations may be any.
"""

import json
from pathlib import Path
from typing import Literal

from star_jax.config import InputError
from star_jax.pipeline.tables.peek import Peek
from star_jax.pipeline.tables.read import SPLITS
from star_jax.pipeline.tables.schema import (
    ALLOWED_KINDS,
    Schema,
    Split,
    SplitColumn,
    TaskSource,
    TimeFractions,
)
from star_jax.pipeline.tables.sources import (
    EdgeSource,
    EventEdges,
    EventSource,
    PairSource,
    RankingSource,
    TextSource,
)
from star_jax.pipeline.tables.tidy_nodes import node_sources

_EVENTS = "interactions"
_MIN_SHARED = 0.5  # An edge file with this share of its rows among the events repeats them.
_VAL_NAMES = ("val", "valid", "validation", "dev")


def tidy_schema(folder: Path) -> Schema:
    """Derives the schema of a folder.

    Raises:
      InputError: The folder does not hold this layout, or too little of it.
    """
    peek = Peek(folder)
    try:
        types = peek.stems("nodes")
        if not types:
            raise InputError(
                f"{folder} has no nodes/<type>.parquet, needed the layout star-tidy-1, or a "
                "schema.json or schema.py that describes its tables"
            )
        if peek.file(_EVENTS) is None:
            raise InputError(
                f"{folder} has no interactions.parquet, needed the events to learn from"
            )
        for stem in _all_stems(peek):
            peek.columns(stem)
        peek.findings.stop_if_any()
        try:
            return _Derivation(peek, types).schema()
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{folder}: {error}") from error
    finally:
        peek.close()


def _all_stems(peek: Peek) -> list[str]:
    inside = [f"{sub}/{stem}" for sub in ("nodes", "edges", "texts") for stem in peek.stems(sub)]
    evaluation = [f"eval/{stem}" for stem in peek.stems("eval") if _is_read(stem)]
    return [*inside, _EVENTS, *evaluation]


def _is_read(stem: str) -> bool:
    return stem == "accept" or stem in {
        f"{what}_{split}" for what in ("pairs", "rank", "candidates") for split in SPLITS
    }


class _Derivation:
    """The parts of one folder's schema."""

    def __init__(self, peek: Peek, types: list[str]) -> None:
        self._peek = peek
        self._types = types
        self._meta = _read_meta(peek.folder)
        self._sender, self._receiver = self._ends()
        self._pointed = [t for t in types if peek.has(f"texts/{t}", "text_id")]

    def schema(self) -> Schema:
        """All parts together."""
        edges = self._edges()
        repeated = [e.name for e in edges if self._repeats_events(e)]
        made: tuple[EventEdges, ...] = ()
        actions = self._actions()
        if not repeated:
            taken = {edge.relation for edge in edges}
            made = (EventEdges(relation="event" if "apply" in taken else "apply", actions=actions),)
            repeated = [f"{self._sender}__{made[0].relation}__{self._receiver}"]
        apply = TaskSource(
            name="apply",
            sender=self._sender,
            receiver=self._receiver,
            labels=dict.fromkeys(actions, 1),
            edge_types=tuple(repeated),
            pairs=self._pairs(),
            ranking=self._ranking(),
        )
        accept = self._accept(edges)
        reference = "reference.json"
        return Schema(
            name=str(self._meta.get("name", self._peek.folder.resolve().name)),
            time_unit=self._time_unit(),
            nodes=node_sources(self._peek, self._types, (self._sender, self._receiver)),
            edges=edges,
            texts=self._texts(),
            events=(self._events(made),),
            tasks=(apply, accept) if accept is not None else (apply,),
            split=self._split(),
            allowed=ALLOWED_KINDS,
            reference=reference if (self._peek.folder / reference).is_file() else None,
            ignored_files=self._ignored(accept is not None),
        )

    def _ends(self) -> tuple[str, str]:
        columns = self._peek.columns(_EVENTS)
        if {"member", "job"} <= set(columns) & set(self._types):
            return "member", "job"
        ends = [column for column in columns if column in self._types]
        if len(ends) < 2:
            raise InputError(
                f"{self._peek.folder}/{self._peek.file(_EVENTS)} has columns {', '.join(columns)}, "
                f"needed two that name node types ({', '.join(self._types)}): who acted, on what"
            )
        return ends[0], ends[1]

    def _time_unit(self) -> Literal["unix_s", "ordinal"]:
        unit = self._meta.get("time_unit")
        if unit in (None, "ordinal"):
            return "ordinal"
        if unit == "unix_s":
            return "unix_s"
        raise InputError(
            f"{self._peek.folder}/meta.json: time_unit is {unit!r}, needed unix_s, ordinal or null"
        )

    def _actions(self) -> tuple[str, ...]:
        if not self._peek.has(_EVENTS, "action"):
            return ("event",)
        return tuple(self._peek.values(_EVENTS, "action"))

    def _events(self, made: tuple[EventEdges, ...]) -> EventSource:
        return EventSource(
            sender=self._sender,
            receiver=self._receiver,
            file=self._file(_EVENTS),
            sender_id=self._sender,
            receiver_id=self._receiver,
            time=self._column(_EVENTS, "t"),
            action=self._column(_EVENTS, "action"),
            split=self._column(_EVENTS, "split"),
            sender_text=self._pointer(_EVENTS, self._sender),
            receiver_text=self._pointer(_EVENTS, self._receiver),
            edges=made,
        )

    def _split(self) -> Split:
        if self._peek.has(_EVENTS, "split"):
            names = self._peek.values(_EVENTS, "split")
            val = next((name for name in _VAL_NAMES if name in names), "val")
            return SplitColumn(val_name=val)
        untimed = (
            self._peek.number(_EVENTS, "count(*)", '"t" IS NULL')
            if self._peek.has(_EVENTS, "t")
            else 1
        )
        if untimed:
            raise InputError(
                f"{self._peek.folder}/{self._peek.file(_EVENTS)} has neither a split column nor a "
                "time in every row, needed one of them to keep train and test apart"
            )
        return TimeFractions(val_share=0.1, test_share=0.1)

    def _edges(self) -> tuple[EdgeSource, ...]:
        sources = []
        for stem in self._peek.stems("edges"):
            parts = stem.split("__")
            path = f"edges/{stem}"
            if len(parts) != 3:
                raise InputError(
                    f"{self._peek.folder}/{self._peek.file(path)}: needed a name like "
                    "sender__relation__receiver"
                )
            source = EdgeSource(
                sender=parts[0],
                relation=parts[1],
                receiver=parts[2],
                kind="attribute",
                file=self._file(path),
                sender_id="src",
                receiver_id="dst",
                time=self._column(path, "t"),
                removed_time=self._column(path, "removed_t"),
                weight=self._column(path, "w"),
                split=self._column(path, "split"),
            )
            if source.split is not None or self._repeats_events(source):
                source = _as_interaction(source)
            sources.append(source)
        return tuple(sources)

    def _repeats_events(self, edge: EdgeSource) -> bool:
        ends = (self._sender, self._receiver)
        if (edge.receiver, edge.sender) == ends:
            ends = (self._receiver, self._sender)
        if (edge.sender, edge.receiver) != ends or not self._peek.has(
            f"edges/{edge.name}", "src", "dst"
        ):
            return False
        shared = self._peek.shared(f"edges/{edge.name}", ("src", "dst"), _EVENTS, ends)
        return shared >= _MIN_SHARED

    def _texts(self) -> tuple[TextSource, ...]:
        kinds = {self._sender: "profile", self._receiver: "job"}
        sources = []
        for node_type in self._peek.stems("texts"):
            stem = f"texts/{node_type}"
            time = self._column(stem, "t")
            if time is not None and node_type != self._sender and self._peek.has(stem, node_type):
                # One version per entity: it is the entity's text, whatever its time says.
                entities = self._peek.number(stem, f'count(DISTINCT "{node_type}")')
                if entities == self._peek.number(stem, "count(*)"):
                    time = None
            sources.append(
                TextSource(
                    node_type=node_type,
                    kind=kinds.get(node_type, node_type),
                    file=self._file(stem),
                    entity=node_type,
                    title=self._column(stem, "title"),
                    time=time,
                    id=self._column(stem, "text_id"),
                )
            )
        return tuple(sources)

    def _pairs(self) -> PairSource | None:
        stems = [f"eval/pairs_{split}" for split in SPLITS]
        if not self._all_or_none(stems):
            return None
        stem = stems[-1]
        return PairSource(
            file=self._file(stem).replace("pairs_test", "pairs_{split}"),
            sender_id=self._sender,
            receiver_id=self._receiver,
            negative="neg_type",
            time=self._column(stem, "t"),
            sender_text=self._pointer(stem, self._sender),
            receiver_text=self._pointer(stem, self._receiver),
            warm_sender=self._column(stem, f"warm_{self._sender}"),
            warm_receiver=self._column(stem, f"warm_{self._receiver}"),
        )

    def _ranking(self) -> RankingSource | None:
        parts = ("rank_val", "rank_test", "candidates_val", "candidates_test")
        if not self._all_or_none([f"eval/{part}" for part in parts]):
            return None
        stem = "eval/rank_test"
        return RankingSource(
            file=self._file(stem).replace("rank_test", "rank_{split}"),
            candidates=self._file("eval/candidates_test").replace("_test", "_{split}"),
            sender_id=self._sender,
            receiver_id=self._receiver,
            candidate_id=self._receiver,
            time=self._column(stem, "t"),
            sender_text=self._pointer(stem, self._sender),
            keep=self._column(stem, f"warm_{self._sender}"),
        )

    def _accept(self, edges: tuple[EdgeSource, ...]) -> TaskSource | None:
        """Whether the one who posted chose the one who applied; the second task of some sets."""
        stem = "eval/accept"
        if not self._peek.has(stem, "label", "split", self._sender):
            return None
        others = [c for c in self._peek.columns(stem) if c in self._types]
        chooser = [c for c in others if c not in (self._sender, self._receiver)]
        if len(chooser) != 1 or not self._all_splits(stem):
            return None
        ends = (chooser[0], self._sender)
        hidden = [
            edge.name
            for edge in edges
            if (edge.sender, edge.receiver) == ends
            and self._peek.shared(f"edges/{edge.name}", ("src", "dst"), stem, ends) >= _MIN_SHARED
        ]
        return TaskSource(
            name="accept",
            sender=ends[0],
            receiver=ends[1],
            labels={},
            edge_types=tuple(hidden),
            pairs=PairSource(
                file=self._file(stem),
                sender_id=ends[0],
                receiver_id=ends[1],
                grouped=False,
                time=self._column(stem, "t"),
                split="split",
                sender_text=self._pointer(stem, ends[0]),
                receiver_text=self._pointer(stem, ends[1]),
            ),
        )

    def _all_splits(self, stem: str) -> bool:
        names = set(self._peek.values(stem, "split"))
        return {"train", "test"} <= names and any(name in names for name in _VAL_NAMES)

    def _all_or_none(self, stems: list[str]) -> bool:
        found = [stem for stem in stems if self._peek.file(stem) is not None]
        missing = [stem for stem in stems if stem not in found]
        if found and missing:
            raise InputError(
                f"{self._peek.folder} has {', '.join(found)} but no {', '.join(missing)}; "
                "needed all of them or none"
            )
        return bool(found)

    def _ignored(self, has_accept: bool) -> tuple[str, ...]:
        known = {f"{self._peek.file(stem)}" for stem in _all_stems(self._peek)}
        known |= {"meta.json", "reference.json", "README.md"}
        if not has_accept:
            known.discard(f"{self._peek.file('eval/accept')}")
        files = (p for p in self._peek.folder.rglob("*") if p.is_file())
        names = (path.relative_to(self._peek.folder).as_posix() for path in files)
        return tuple(sorted(name for name in names if name not in known))

    def _file(self, stem: str) -> str:
        file = self._peek.file(stem)
        assert file is not None
        return file

    def _column(self, stem: str, name: str) -> str | None:
        return name if self._peek.has(stem, name) else None

    def _pointer(self, stem: str, node_type: str) -> str | None:
        return self._column(stem, f"{node_type}_text") if node_type in self._pointed else None


def _as_interaction(edge: EdgeSource) -> EdgeSource:
    """Without time, split and event it stays out of sight, which gives nothing away."""
    return EdgeSource(**{**vars(edge), "kind": "interaction", "visible_from": "test"})


def _read_meta(folder: Path) -> dict[str, object]:
    path = folder / "meta.json"
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(meta, dict):
        raise InputError(f"{path} holds a {type(meta).__name__}, needed an object")
    return meta
