"""Generates a market as Arrow tables in the form that `star import` takes."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from star_jax.evaluation.auc import roc_auc
from star_jax.pipeline.market.attributes import AttributeEdges, attribute_edges
from star_jax.pipeline.market.behaviour import (
    ACTIONS,
    REPLIES,
    Contacts,
    InMails,
    JobEvents,
    inmails,
    job_events,
    show_jobs,
)
from star_jax.pipeline.market.fields import FIELDS, GENERAL_SKILLS
from star_jax.pipeline.market.fixed_pairs import (
    NEGATIVE_NAMES,
    POSITIVE,
    SLICE_NAMES,
    SPLITS,
    Pairs,
    apply_pairs,
    contact_pairs,
    ranking,
    reply_pairs,
    warm_members,
)
from star_jax.pipeline.market.places import CITIES, SENIORITY
from star_jax.pipeline.market.size import MarketConfig, counts
from star_jax.pipeline.market.texts import Texts, job_texts, member_texts
from star_jax.pipeline.market.world import NEVER, World, make_world, stream

GENDERS = ("woman", "man")
URGENCIES = ("passive", "open", "urgent")
WORKPLACES = ("on site", "hybrid", "remote")
_ID_BYTES = 16  # 32 characters.
_SYLLABLES = ("ar", "bel", "cor", "dan", "el", "far", "gal", "hal", "ing", "jor", "kel", "lum")
_ENDINGS = ("Group", "Partners", "Works", "Holding", "Associates", "and Sons", "Union", "House")


class Market(NamedTuple):
    """A market.

    Attributes:
      tables: "nodes/member" -> its rows, and so on.
      facts: Weights of the planted logits, the best reachable AUC per task and split, and which
        node types are floored.
    """

    tables: dict[str, pa.Table]
    facts: dict[str, Any]


def generate(config: MarketConfig) -> Market:
    """Generates everything; equal configs give equal bytes."""
    world = make_world(config)
    shown, apply_weights = show_jobs(config, world)
    events, contacts, contact_weights = job_events(config, world, shown, apply_weights)
    sent, reply_weights = inmails(config, world)
    ids = _ids(config, world)
    tables = _nodes(config, world, ids)
    for name, edges in attribute_edges(config, world).items():
        sender, _, receiver = name.split("__")
        tables[f"edges/{name}"] = _attribute_table(edges, ids[sender], ids[receiver])
    tables |= _events(events, contacts, sent, world, ids)
    texts = {**member_texts(config, world), "job": job_texts(config, world)}
    for kind, versions in texts.items():
        tables[f"texts/{kind}"] = _text_table(versions, ids["job" if kind == "job" else "member"])
    optimum: dict[str, dict[str, dict[str, float]]] = {"apply": {}, "reply": {}, "contact": {}}
    for split in SPLITS:
        applied = apply_pairs(config, world, shown, events, apply_weights, split)
        warm = warm_members(world, events, split)
        contacted = contact_pairs(world, events, contact_weights, split)
        replied = reply_pairs(world, sent, reply_weights, split)
        optimum["apply"][split] = _best(applied, np.isin(applied.sender, warm))
        optimum["contact"][split] = _best(contacted, np.isin(contacted.sender, warm))
        optimum["reply"][split] = _best(replied, np.zeros(len(replied.sender), bool))
        tables[f"pairs/apply_{split}"] = _pair_table(applied, ids["member"], ids["job"])
        tables[f"pairs/contact_{split}"] = _pair_table(contacted, ids["member"], ids["job"])
        tables[f"pairs/reply_{split}"] = _pair_table(replied, ids["hire_project"], ids["member"])
        if split != "train":
            tables |= _rank_tables(world, events, split, ids)
    weights = {"apply": apply_weights, "contact": contact_weights, "reply": reply_weights}
    facts = {
        "optimum": optimum,
        "weights": {task: chosen._asdict() for task, chosen in weights.items()},
        "floored": list(counts(config).floored),
        "rows": {name: table.num_rows for name, table in tables.items()},
    }
    return Market(tables, facts)


def _best(pairs: Pairs, warm: np.ndarray) -> dict[str, float]:
    """AUC of the true logit by kind of negative; no model can expect more of the uniform ones."""
    found: dict[str, float] = {}
    logit = pairs.logit.astype(np.float32)  # As stored: rounding makes equal sums equal.
    for kind, name in enumerate(NEGATIVE_NAMES):
        rows = (pairs.kind == POSITIVE) | (pairs.kind == kind)
        if kind == POSITIVE or not (pairs.kind == kind).any():
            continue
        marks = {"": rows, "_warm_member": rows & warm, "_cold_member": rows & ~warm}
        marks |= {f"_{name}_slice": rows & (pairs.speaks == s) for s, name in SLICE_NAMES.items()}
        for mark, chosen in marks.items():
            label = pairs.kind[chosen] == POSITIVE
            if label.any() and not label.all():
                found[f"auc_{name}{mark}"] = round(roc_auc(label, logit[chosen]), 4)
    return found


def _ids(config: MarketConfig, world: World) -> dict[str, pa.Array]:
    """Ids per type; those of members are as long and as dull as hashes."""
    del world
    nodes = counts(config).nodes
    ids = {
        kind: pa.array([f"{kind[0]}{index:07d}" for index in range(num)])
        for kind, num in nodes.items()
        if kind != "member"
    }
    seed = config.seed.to_bytes(8, "little")
    return ids | {
        "member": pa.array(
            [
                blake2b(index.to_bytes(8, "little"), key=seed, digest_size=_ID_BYTES).hexdigest()
                for index in range(nodes["member"])
            ]
        )
    }


def _nodes(config: MarketConfig, world: World, ids: Mapping[str, pa.Array]) -> dict[str, pa.Table]:
    members, jobs = world.members, world.jobs
    rng = stream(config, "node columns")
    num_members, num_jobs = len(members.field), len(jobs.posted)
    skills = [skill[0] for field in FIELDS for skill in field.skills]
    names = {
        "title": [title[0] for field in FIELDS for title in field.titles],
        "skill": skills + [skill[0] for skill in GENERAL_SKILLS],
        "company": _company_names(config, len(world.companies.culture)),
    }
    on_site = np.where(rng.random(num_jobs) < 0.4, 1, 0)
    tables = {
        "nodes/member": pa.table(
            {
                "id": ids["member"],
                "t": members.joined,
                "consent": members.consent,
                "account": _named(("basic", "premium"), rng.integers(2, size=num_members)),
                "connections_log": rng.normal(4.0, 1.0, num_members).astype(np.float32),
                "gender": _named(GENDERS, members.gender),
                "urgency": _named(URGENCIES, members.urgency),
                "seniority": _named(SENIORITY, members.seniority[:, 0]),
                "location": _named([city[0] for _, city in CITIES], members.city[:, 0]),
            }
        ),
        "nodes/job": pa.table(
            {
                "id": ids["job"],
                "t": jobs.posted,
                "workplace": _named(WORKPLACES, np.where(jobs.offer.remote, 2, on_site)),
                "employment": _named(
                    ("full time", "part time", "contract"),
                    rng.choice(3, num_jobs, p=(0.7, 0.2, 0.1)),
                ),
                "openings_log": np.log1p(rng.geometric(0.5, num_jobs)).astype(np.float32),
            }
        ),
    }
    for kind, values in ids.items():
        if kind not in ("member", "job"):
            named = {"name": pa.array(names[kind])} if kind in names else {}
            tables[f"nodes/{kind}"] = pa.table({"id": values, **named})
    return tables


def _company_names(config: MarketConfig, num: int) -> list[str]:
    """Made-up names that tell nothing."""
    rng = stream(config, "company names")
    words = [
        "".join(_SYLLABLES[i] for i in row).capitalize()
        for row in rng.integers(len(_SYLLABLES), size=(num, 3))
    ]
    endings = rng.integers(len(_ENDINGS), size=num)
    return [f"{word} {_ENDINGS[end]}" for word, end in zip(words, endings, strict=True)]


def _attribute_table(edges: AttributeEdges, senders: pa.Array, receivers: pa.Array) -> pa.Table:
    return pa.table(
        {
            "sender": senders.take(pa.array(edges.sender)),
            "receiver": receivers.take(pa.array(edges.receiver)),
            "t": edges.time,
            "removed_t": pa.array(edges.removed, mask=edges.removed == NEVER),
            "weight": edges.weight.astype(np.float32),
        }
    )


def _events(
    events: JobEvents, contacts: Contacts, sent: InMails, world: World, ids: Mapping[str, pa.Array]
) -> dict[str, pa.Table]:
    """Events, and the interaction edges that are no events of two task ends."""
    replied = np.flatnonzero(sent.replied)
    projects = world.hire_projects
    once = np.lexsort((sent.replied_at[replied], sent.member[replied]))
    replied = replied[once]
    return {
        "events/job": pa.table(
            {
                "sender": ids["member"].take(pa.array(events.member)),
                "receiver": ids["job"].take(pa.array(events.job)),
                "time": events.time,
                "action": _named(ACTIONS, events.action),
                "session": events.session,
            }
        ),
        "events/inmail": pa.table(
            {
                "sender": ids["hire_project"].take(pa.array(sent.project)),
                "receiver": ids["member"].take(pa.array(sent.member)),
                "time": sent.time,
                "action": _named(REPLIES, sent.replied.astype(np.int64)),
            }
        ),
        "edges/member__positive__recruiter": pa.table(
            {
                "sender": ids["member"].take(pa.array(sent.member[replied])),
                "receiver": ids["recruiter"].take(
                    pa.array(projects.recruiter[sent.project[replied]])
                ),
                "t": sent.replied_at[replied],
            }
        ),
        "edges/recruiter__contact__member": pa.table(
            {
                "sender": ids["recruiter"].take(pa.array(contacts.recruiter)),
                "receiver": ids["member"].take(pa.array(contacts.member)),
                "t": contacts.time,
            }
        ),
    }


def _text_table(texts: Texts, entities: pa.Array) -> pa.Table:
    return pa.table(
        {
            "entity": entities.take(pa.array(texts.entity)),
            "t": texts.time,
            "text": pa.array(texts.text, pa.string()),
        }
    )


def _pair_table(pairs: Pairs, senders: pa.Array, receivers: pa.Array) -> pa.Table:
    slices = ["", *(SLICE_NAMES[s] for s in sorted(SLICE_NAMES))]
    return pa.table(
        {
            "sender": senders.take(pa.array(pairs.sender)),
            "receiver": receivers.take(pa.array(pairs.receiver)),
            "time": pairs.time,
            "label": (pairs.kind == POSITIVE).astype(np.int8),
            "negative": _named(NEGATIVE_NAMES, pairs.kind),
            "true_logit": pairs.logit.astype(np.float32),
            "slice": _named(slices, pairs.speaks),
        }
    )


def _rank_tables(
    world: World, events: JobEvents, split: str, ids: Mapping[str, pa.Array]
) -> dict[str, pa.Table]:
    queries = ranking(world, events, split)
    return {
        f"rank/{split}": pa.table(
            {
                "sender": ids["member"].take(pa.array(queries.member)),
                "receiver": ids["job"].take(pa.array(queries.job)),
                "time": queries.time,
            }
        ),
        f"rank/candidates_{split}": pa.table(
            {"receiver": ids["job"].take(pa.array(queries.candidates))}
        ),
    }


def _named(names: tuple[str, ...] | list[str], index: np.ndarray) -> pa.Array:
    return pa.array(list(names), pa.string()).take(pa.array(index))
