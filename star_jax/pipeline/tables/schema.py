"""Names the tables, types, tasks and rules of a data set; what `star import` reads first."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, Discriminator

from star_jax.pipeline.tables.sources import (
    FORBID,
    RESUME,
    EdgeSource,
    EventSource,
    NodeSource,
    PairSource,
    RankingSource,
    TextSource,
)

NEGATIVE_KINDS = ("uniform", "popular", "near", "impressed")
ALLOWED_KINDS = ("empty text", "early event", "duplicate edge", "duplicate text")


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """Which negatives are drawn, and how many for one positive, where a task has no fixed pairs.

    Attributes:
      train: Kind -> ratio for the train pairs.
      evaluation: Kind -> ratio for the val and test pairs.
      near: What makes a look-alike: a categorical column of the receiver, or the name of an edge
        type whose sender is the receiver.
      impressed: "grouped": drawn for a positive from what its sender was shown before; "alone":
        every event of label 0 is a pair of its own and ratios do not apply.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    train: dict[str, float] = field(default_factory=lambda: {"uniform": 1.0})
    evaluation: dict[str, float] = field(default_factory=lambda: {"uniform": 1.0, "popular": 1.0})
    near: str | None = None
    impressed: Literal["grouped", "alone"] = "grouped"

    def __post_init__(self) -> None:
        for name, ratios in (("train", self.train), ("evaluation", self.evaluation)):
            for kind, ratio in ratios.items():
                if kind not in NEGATIVE_KINDS:
                    raise ValueError(
                        f"negatives.{name} has kind {kind!r}, needed one of {NEGATIVE_KINDS}"
                    )
                if not 0 < ratio < math.inf:
                    raise ValueError(f"negatives.{name}[{kind!r}] is {ratio}, needed above 0")
                if kind == "near" and self.near is None:
                    raise ValueError(f"negatives.{name} has 'near', needed negatives.near as well")


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """A link objective.

    Attributes:
      labels: Action -> 1 or 0, over the events between the two types.
      edge_types: Names of the edge types that hold the supervised link.
      ranking: Fixed queries. Without them the main task, and any task without fixed pairs, gets
        one query per sender with earlier positives, over all receivers of the split's positives.
      class_weights: Weights of negatives and of positives in the loss.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    name: str
    sender: str
    receiver: str
    labels: dict[str, int]
    edge_types: tuple[str, ...]
    pairs: PairSource | None = None
    ranking: RankingSource | None = None
    negatives: Negatives = field(default_factory=Negatives)
    class_weights: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        for action, label in self.labels.items():
            if label not in (0, 1):
                raise ValueError(f"tasks.{self.name}: action {action!r} has label {label}, not 0/1")
        if not all(0 < weight < math.inf for weight in self.class_weights):
            raise ValueError(
                f"tasks.{self.name}: class_weights {self.class_weights}, needed above 0"
            )


@dataclass(frozen=True, kw_only=True)
class TimeWindows:
    """Consecutive windows that end at `end`; lengths in the time unit, no two overlap.

    Attributes:
      graph: Length of the window before train whose interactions are only seen in the graph;
        None reaches back to the beginning.
      end: First time after the test window; one after the last event when None.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    by: Literal["windows"] = "windows"
    train: int
    val: int
    test: int
    graph: int | None = 0
    end: int | None = None

    def __post_init__(self) -> None:
        if min(self.train, self.val, self.test) <= 0 or (self.graph or 0) < 0:
            raise ValueError(f"split: {self}: windows must be longer than 0")


@dataclass(frozen=True, kw_only=True)
class TimeCuts:
    """Train before `val_from`, val before `test_from`, test from there on."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    by: Literal["cuts"] = "cuts"
    val_from: int
    test_from: int

    def __post_init__(self) -> None:
        if self.val_from >= self.test_from:
            raise ValueError(f"split: val_from {self.val_from} >= test_from {self.test_from}")


@dataclass(frozen=True, kw_only=True)
class TimeFractions:
    """The last events go to test, those before to val; cut where the time changes."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    by: Literal["fractions"] = "fractions"
    val_share: float
    test_share: float

    def __post_init__(self) -> None:
        shares = self.val_share, self.test_share
        if not (all(share > 0 for share in shares) and sum(shares) < 1):
            raise ValueError(
                f"split: val_share {self.val_share} and test_share {self.test_share}, needed "
                "above 0 and together below 1"
            )


@dataclass(frozen=True, kw_only=True)
class SplitColumn:
    """Events carry their split; these are the names it has."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    by: Literal["column"] = "column"
    train_name: str = "train"
    val_name: str = "val"
    test_name: str = "test"


Split: TypeAlias = Annotated[
    TimeWindows | TimeCuts | TimeFractions | SplitColumn, Discriminator("by")
]


@dataclass(frozen=True, kw_only=True)
class Deidentify:
    """Where the secret of the keyed hash is; one of the two. The secret itself is never stored."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    key_file: str | None = None
    key_env: str | None = None

    def __post_init__(self) -> None:
        if (self.key_file is None) == (self.key_env is None):
            raise ValueError("deidentify needs key_file or key_env, one of them")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """A data set.

    Attributes:
      tasks: The first one is the main task.
      personal_data: "file:column" of columns that look like personal data and may be here. Those
        that no source reads stay out of every artefact.
      allowed: Kinds of problem that are counted instead of refused; see `ALLOWED_KINDS`.
      reference: JSON file with known numbers, carried along.
      ignored_files: Files of the folder known to be left out, for the report.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    name: str
    time_unit: Literal["unix_s", "ordinal"]
    nodes: tuple[NodeSource, ...]
    edges: tuple[EdgeSource, ...] = ()
    texts: tuple[TextSource, ...] = ()
    events: tuple[EventSource, ...]
    tasks: tuple[TaskSource, ...]
    split: Split
    deidentify: Deidentify | None = None
    personal_data: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    reference: str | None = None
    ignored_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_names(self)
        _check_events(self)
        _check_tasks(self)
        for kind in self.allowed:
            if kind not in ALLOWED_KINDS:
                raise ValueError(f"allowed has {kind!r}, needed one of {ALLOWED_KINDS}")
        hashed = [source.type for source in self.nodes if source.deidentify]
        if hashed and self.deidentify is None:
            raise ValueError(f"nodes {hashed} are to be de-identified, needed deidentify as well")

    def node(self, node_type: str) -> NodeSource:
        """The source of a node type."""
        return next(source for source in self.nodes if source.type == node_type)

    @property
    def edge_names(self) -> list[str]:
        """All edge types: those with a file, then those made of events."""
        made = [f"{e.sender}__{x.relation}__{e.receiver}" for e in self.events for x in e.edges]
        return [*(source.name for source in self.edges), *made]

    @property
    def split_names(self) -> tuple[str, str, str]:
        """What train, val and test are called in the columns with splits."""
        split = self.split if isinstance(self.split, SplitColumn) else SplitColumn()
        return split.train_name, split.val_name, split.test_name

    @property
    def event_senders(self) -> set[str]:
        """Node types that act; their creation time may be that of their first act."""
        return {source.sender for source in self.events}


def _check_names(schema: Schema) -> None:
    types = [source.type for source in schema.nodes]
    _check_unique("nodes", types)
    _check_unique("edges", schema.edge_names)
    for name in [*types, *(part for edge in schema.edge_names for part in edge.split("__"))]:
        if not name or "__" in name or not name.replace("_", "a").replace("-", "a").isalnum():
            raise ValueError(f"name {name!r}: needed letters, digits, single _ and -")
    for where, used in [
        *((f"edges {s.name}", (s.sender, s.receiver)) for s in schema.edges),
        *((f"texts {s.file}", (s.node_type,)) for s in schema.texts),
        *((f"events {s.file}", (s.sender, s.receiver)) for s in schema.events),
        *((f"tasks {s.name}", (s.sender, s.receiver)) for s in schema.tasks),
    ]:
        for node_type in used:
            if node_type not in types:
                raise ValueError(f"{where}: node type {node_type!r} has no entry in nodes {types}")


def _check_events(schema: Schema) -> None:
    by_column = isinstance(schema.split, SplitColumn)
    for source in schema.events:
        if by_column and source.split is None:
            raise ValueError(f"events {source.file}: the split is by column, needed events.split")
        if not by_column and source.time is None:
            raise ValueError(f"events {source.file}: the split is by time, needed events.time")
    pointing = [
        *((f"events {s.file}", s, s.sender, s.receiver) for s in schema.events),
        *(
            (f"tasks.{t.name}.pairs", t.pairs, t.sender, t.receiver)
            for t in schema.tasks
            if t.pairs
        ),
    ]
    for where, source, sender, receiver in pointing:
        for column, node_type, resume in (
            (source.sender_text, sender, False),
            (source.sender_resume, sender, True),
            (source.receiver_text, receiver, False),
        ):
            named = any(
                text.id is not None and text.node_type == node_type
                for text in schema.texts
                if (text.kind == RESUME) == resume
            )
            if column is not None and not named:
                raise ValueError(
                    f"{where}: column {column!r} points to texts of {node_type}, needed a text "
                    f"source with an id{' and kind ' + RESUME if resume else ''}"
                )


def _check_tasks(schema: Schema) -> None:
    if not schema.tasks:
        raise ValueError("tasks is empty, needed at least one task")
    _check_unique("tasks", [task.name for task in schema.tasks])
    ends = {(source.sender, source.receiver) for source in schema.events}
    for task in schema.tasks:
        for name in task.edge_types:
            if name not in schema.edge_names:
                raise ValueError(
                    f"tasks.{task.name}: edge type {name!r} is none of {schema.edge_names}"
                )
        if task.pairs is None:
            if (task.sender, task.receiver) not in ends:
                raise ValueError(
                    f"tasks.{task.name}: no events from {task.sender} to {task.receiver} and no "
                    "fixed pairs, needed one of them"
                )
            if 1 not in task.labels.values():
                raise ValueError(f"tasks.{task.name}: no action has label 1")
        elif (task.pairs.split is None) == ("{split}" not in task.pairs.file):
            raise ValueError(
                f"tasks.{task.name}: pairs needs either a split column or '{{split}}' in its file"
            )
        near = task.negatives.near
        attributes = [e for e in schema.edge_names if e.startswith(f"{task.receiver}__")]
        known = (*schema.node(task.receiver).categorical, *attributes)
        if near is not None and near not in known:
            raise ValueError(f"tasks.{task.name}: negatives.near {near!r} is none of {known}")


def _check_unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what}: {name!r} is there twice")
        seen.add(name)
