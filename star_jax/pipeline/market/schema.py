"""The schema of a market: the paper's 8 node types, 14 relations and three tasks."""

from star_jax.pipeline.market.size import EDGE_MILLIONS, NODE_MILLIONS
from star_jax.pipeline.market.world import TEST_FROM, VAL_FROM
from star_jax.pipeline.tables.schema import Negatives, Schema, TaskSource, TimeCuts
from star_jax.pipeline.tables.sources import (
    RESUME,
    EdgeSource,
    EventEdges,
    EventSource,
    NodeSource,
    PairSource,
    RankingSource,
    TextSource,
)

_NAMED = ("company", "title", "skill")
_FROM_EVENTS = ("member__apply__job", "member__save__job", "hire_project__inmail__member")
_INTERACTIONS = ("member__positive__recruiter", "recruiter__contact__member")


def market_schema() -> Schema:
    """Describes the tables of `prepare_market`; the same for every size and seed."""
    return Schema(
        name="market",
        time_unit="unix_s",
        nodes=tuple(_node(node_type) for node_type in NODE_MILLIONS),
        edges=tuple(_edge(name) for name in EDGE_MILLIONS if name not in _FROM_EVENTS),
        texts=(_text("member", "profile"), _text("member", RESUME), _text("job", "job")),
        events=(
            EventSource(
                sender="member",
                receiver="job",
                file="events/job.parquet",
                session="session",
                edges=(
                    EventEdges(relation="apply", actions=("APPLY", "APPLY_CONTACTED")),
                    EventEdges(relation="save", actions=("SAVE",)),
                ),
            ),
            EventSource(
                sender="hire_project",
                receiver="member",
                file="events/inmail.parquet",
                edges=(EventEdges(relation="inmail", actions=("INMAIL_SENT", "INMAIL_REPLIED")),),
            ),
        ),
        tasks=(_apply_task(), _reply_task(), _contact_task()),
        split=TimeCuts(val_from=VAL_FROM, test_from=TEST_FROM),
    )


def _node(node_type: str) -> NodeSource:
    file = f"nodes/{node_type}.parquet"
    if node_type == "member":
        return NodeSource(
            type=node_type,
            file=file,
            time="t",
            categorical=("account",),
            dense=("connections_log",),
            cohorts=("gender", "urgency", "seniority", "location"),
            consent="consent",
        )
    if node_type == "job":
        return NodeSource(
            type=node_type,
            file=file,
            time="t",
            categorical=("workplace", "employment"),
            dense=("openings_log",),
        )
    return NodeSource(type=node_type, file=file, text="name" if node_type in _NAMED else None)


def _edge(name: str) -> EdgeSource:
    sender, relation, receiver = name.split("__")
    is_interaction = name in _INTERACTIONS
    return EdgeSource(
        sender=sender,
        relation=relation,
        receiver=receiver,
        kind="interaction" if is_interaction else "attribute",
        file=f"edges/{name}.parquet",
        time="t",
        removed_time=None if is_interaction else "removed_t",
        weight=None if is_interaction else "weight",
    )


def _text(node_type: str, kind: str) -> TextSource:
    return TextSource(node_type=node_type, kind=kind, file=f"texts/{kind}.parquet", time="t")


def _apply_task() -> TaskSource:
    return TaskSource(
        name="apply",
        sender="member",
        receiver="job",
        labels={"APPLY": 1, "APPLY_CONTACTED": 1, "SKIP": 0, "DISMISS": 0},
        edge_types=("member__apply__job",),
        pairs=_pairs("apply", grouped=True),
        ranking=RankingSource(
            file="rank/{split}.parquet", candidates="rank/candidates_{split}.parquet", time="time"
        ),
    )


def _reply_task() -> TaskSource:
    return TaskSource(
        name="reply",
        sender="hire_project",
        receiver="member",
        labels={"INMAIL_REPLIED": 1, "INMAIL_SENT": 0},
        edge_types=("hire_project__inmail__member",),
        pairs=_pairs("reply", grouped=False),
        negatives=Negatives(impressed="alone"),
    )


def _contact_task() -> TaskSource:
    return TaskSource(
        name="contact",
        sender="member",
        receiver="job",
        labels={"APPLY_CONTACTED": 1, "APPLY": 0},
        edge_types=("member__apply__job",),
        pairs=_pairs("contact", grouped=False),
        negatives=Negatives(impressed="alone"),
    )


def _pairs(task: str, *, grouped: bool) -> PairSource:
    return PairSource(
        file=f"pairs/{task}_{{split}}.parquet",
        negative="negative",
        grouped=grouped,
        time="time",
        true_logit="true_logit",
        slice="slice",
    )
