"""The files of a data set: which columns of which file say what. `schema.py` joins them.

Every path is relative to the data folder and ends in .parquet or .csv. Ids are strings or integers.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

FORBID = ConfigDict(extra="forbid", strict=True)

RESUME = "resume"  # The one text kind that goes to `sender_resume` instead of `sender_text`.


@dataclass(frozen=True, kw_only=True)
class NodeSource:
    """All entities of one type, one row each.

    Attributes:
      id: Column that the other files refer to.
      public_id: Column with the id that goes into the artefacts; `id` itself when None.
      time: Column with the creation time; null means before everything.
      categorical: Columns that become codes, 0 for null.
      dense: Numeric columns, kept as float32.
      cohorts: Columns for reports by group; never a feature.
      text: Column with one text per node that never changes, such as a name.
      text_kind: Kind of that text; the node type's name when None.
      consent: Column that is true where the entity may be used.
      opt_out: Column that is true where it may not.
      deidentify: Ids are replaced by keyed hashes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    type: str
    file: str
    id: str = "id"
    public_id: str | None = None
    time: str | None = None
    categorical: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    cohorts: tuple[str, ...] = ()
    text: str | None = None
    text_kind: str | None = None
    consent: str | None = None
    opt_out: str | None = None
    deidentify: bool = False


@dataclass(frozen=True, kw_only=True)
class EdgeSource:
    """Edges of one type.

    Attributes:
      kind: An interaction is something that happened; an attribute describes its sender.
      weight: Column of non-negative weights; 1 when None.
      split: Column that says from which split on the edge may be seen. Without it, or where it is
        null, attributes are visible from every split, and interactions from the split of the event
        they repeat, else from the split of their time.
      visible_from: Split of the interactions that have none of these. Without it they are refused:
        nothing else can tell whether they give an answer away.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    sender: str
    relation: str
    receiver: str
    kind: Literal["interaction", "attribute"]
    file: str
    sender_id: str = "sender"
    receiver_id: str = "receiver"
    time: str | None = None
    removed_time: str | None = None
    weight: str | None = None
    split: str | None = None
    visible_from: Literal["always", "train", "val", "test"] | None = None

    def __post_init__(self) -> None:
        if self.kind == "attribute" and self.visible_from is not None:
            raise ValueError(
                f"visible_from {self.visible_from} of the attribute {self.name}: attributes are "
                "visible from every split, unless a split column says otherwise"
            )

    @property
    def name(self) -> str:
        """`sender__relation__receiver`."""
        return f"{self.sender}__{self.relation}__{self.receiver}"


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Text versions of one node type.

    Attributes:
      title: Column put in front of the text, unless the text starts with it.
      time: Column with the time from which the version holds; null means from the beginning.
      id: Column that text pointers of events and pairs refer to.
      kind: Kind of every text here ("profile", "resume", "job", ...).
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    node_type: str
    kind: str
    file: str
    entity: str = "entity"
    text: str = "text"
    title: str | None = None
    time: str | None = None
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class EventEdges:
    """An edge type made of events: one edge per event with one of the actions."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    relation: str
    actions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EventSource:
    """What senders did to receivers. An event's action states how it ended (sent, replied, ...).

    Attributes:
      action: Column of actions; every one of them needs a label in a task, a place in `edges`, or
        a place in `ignored_actions`. Without it the action of every event is "event".
      split: Column with the split, read when the schema's split is a `SplitColumn`.
      session: Column; impressed negatives come from the positive's own session.
      sender_text: Column of text pointers. A pointer wins over the time; likewise the next two.
      edges: Edge types to make of the events.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    sender: str
    receiver: str
    file: str
    sender_id: str = "sender"
    receiver_id: str = "receiver"
    time: str | None = "time"
    action: str | None = "action"
    ignored_actions: tuple[str, ...] = ()
    split: str | None = None
    session: str | None = None
    sender_text: str | None = None
    sender_resume: str | None = None
    receiver_text: str | None = None
    edges: tuple[EventEdges, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PairSource:
    """Fixed pairs of a task.

    Attributes:
      file: With "{split}" for one file per split; otherwise `split` names the column that tells.
      negative: Column with the kind of negative; without it negatives count as "impressed".
      grouped: Every positive is followed by its own negatives; otherwise each row stands alone.
      sender_text: Column of text pointers; without it the text is the last one before `time`.
      warm_sender: Column; without it: had a positive event in an earlier split.
      true_logit: Column with the planted logit of generated data.
      slice: Column with the name of a part to be reported on its own.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    file: str
    sender_id: str = "sender"
    receiver_id: str = "receiver"
    label: str = "label"
    negative: str | None = None
    grouped: bool = True
    time: str | None = None
    split: str | None = None
    sender_text: str | None = None
    sender_resume: str | None = None
    receiver_text: str | None = None
    warm_sender: str | None = None
    warm_receiver: str | None = None
    true_logit: str | None = None
    slice: str | None = None


@dataclass(frozen=True, kw_only=True)
class RankingSource:
    """Fixed ranking queries: rows (sender, relevant receiver), joined per sender.

    Attributes:
      file: With "{split}"; read for val and test.
      candidates: With "{split}"; column `candidate_id` lists the receivers to order.
      keep: Boolean column; only rows where it is true are queries.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    file: str
    candidates: str
    sender_id: str = "sender"
    receiver_id: str = "receiver"
    candidate_id: str = "receiver"
    time: str | None = None
    sender_text: str | None = None
    sender_resume: str | None = None
    keep: str | None = None
