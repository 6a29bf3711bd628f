"""A folder with tables, a graph and text vectors: members apply where their skill is asked for.

Two tasks: members apply to jobs, recruiters contact members. Times are ordinals; the last fifth of
the applications is val and test. Text vectors are random, one text per job, several per member.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from star_jax import artefacts
from star_jax.embeddings.table import EmbeddingTable, write_shard
from star_jax.graph.build import BuildOptions
from star_jax.jobs import build_graph
from star_jax.jobs.build_graph import GraphBuildConfig
from star_jax.shapes import NO_TIME

COUNTS = {"member": 40, "job": 60, "skill": 8, "recruiter": 6}
TEXT_SIZE = 12
APPLY, CONTACT = "member__apply__job", "recruiter__contact__member"
SPLITS = {"train": (0, 160), "val": (160, 190), "test": (190, 220)}  # Of the applications.
_CODES = {"train": 1, "val": 2, "test": 3}
_FIRST = 1000  # Time of the first application; the others follow one by one.


def skill_of(entity):
    """The skill of a job, and the main one of a member."""
    return np.asarray(entity) % COUNTS["skill"]


def write(workdir: Path) -> Path:
    """Writes `tables`, `text_embeddings` and `graph`."""
    rng = np.random.default_rng(3)
    events = _applications(rng)
    with artefacts.writing(workdir / "tables", "tables") as partial:
        _write_nodes(partial / "nodes")
        _write_edges(partial / "edges", events, rng)
        texts = _write_texts(partial / "texts", events)
        for split, (start, end) in SPLITS.items():
            chosen = {name: column[start:end] for name, column in events.items()}
            _write(partial / "pairs" / "apply" / f"{split}.parquet", _pairs(rng, chosen, texts))
            _write(
                partial / "pairs" / "contact" / f"{split}.parquet", _contacts(rng, chosen, texts)
            )
            if split != "train":
                _write_ranking(partial / "rank" / "apply", split, chosen, texts)
        artefacts.set_meta(partial, _meta(partial))
    with artefacts.writing(workdir / "text_embeddings", "text_embeddings") as partial:
        for name, (entity, t) in texts.items():
            vectors = rng.normal(size=(len(entity), TEXT_SIZE)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            ids = [f"{name}-{e}" for e in entity]
            text_id = np.arange(len(entity), dtype=np.int32)
            write_shard(partial / name, 0, ids, EmbeddingTable(entity, text_id, t, vectors))
        artefacts.set_meta(partial, {"model": "random"})
    build_graph.run(
        GraphBuildConfig(options=BuildOptions(memory_limit_gib=0.5, num_threads=1)), workdir
    )
    return workdir


def _applications(rng):
    """In order of time; nobody applies twice to a job."""
    seen, rows = set(), []
    while len(rows) < SPLITS["test"][1]:
        member = int(rng.integers(COUNTS["member"]))
        skill = skill_of(member) if rng.random() < 0.9 else rng.integers(COUNTS["skill"])
        job = int(skill + COUNTS["skill"] * rng.integers(COUNTS["job"] // COUNTS["skill"]))
        if (member, job) not in seen:
            seen.add((member, job))
            rows.append((member, job, _FIRST + len(rows)))
    sender, receiver, t = np.array(rows).T
    return {"sender": sender.astype(np.int32), "receiver": receiver.astype(np.int32), "t": t}


def _write_nodes(folder):
    for name, count in COUNTS.items():
        idx = np.arange(count, dtype=np.int32)
        columns = {"idx": idx, "id": [f"{name}-{i}" for i in idx], "t": _times([NO_TIME] * count)}
        if name == "job":
            columns["t"] = _times(_FIRST - 100 + 2 * idx)
            columns["cat_site"] = (idx % 3).astype(np.int32)
        if name == "member":
            columns["dense_years"] = np.where(idx % 5, idx, np.nan).astype(np.float32)
        _write(folder / f"{name}.parquet", columns)


def _write_edges(folder, events, rng):
    jobs, members = np.arange(COUNTS["job"]), np.arange(COUNTS["member"])
    split = np.concatenate([np.full(end - start, _CODES[s]) for s, (start, end) in SPLITS.items()])
    poster = jobs % COUNTS["recruiter"]
    tables = {
        "job__needs__skill": (jobs, skill_of(jobs), None, 0),
        "member__has__skill": (members, skill_of(members), None, 0),
        "recruiter__post__job": (poster, jobs, None, 0),
        APPLY: (events["sender"], events["receiver"], events["t"], split),
        CONTACT: (
            events["receiver"] % COUNTS["recruiter"],
            events["sender"],
            events["t"],
            split,
        ),
    }
    for key, (sender, receiver, t, splits) in tables.items():
        n = len(sender)
        columns = {
            "sender": np.asarray(sender, np.int32),
            "receiver": np.asarray(receiver, np.int32),
            "t": _times([NO_TIME] * n if t is None else t),
            "removed_t": _times([NO_TIME] * n),
            "weight": rng.uniform(0.5, 2.0, n).astype(np.float32),
            "split": np.broadcast_to(np.int8(splits), n).astype(np.int8),
        }
        _write(folder / f"{key}.parquet", columns)


def _write_texts(folder, events):
    """A member's text changes with every application; row order is that of time."""
    texts = {}
    jobs = np.arange(COUNTS["job"], dtype=np.int32)
    texts["job"] = (jobs, (_FIRST - 100 + 2 * jobs).astype(np.int64))
    members = np.arange(COUNTS["member"], dtype=np.int32)
    entity = np.concatenate([members, events["sender"]])
    texts["member"] = (entity, np.concatenate([np.zeros(len(members), np.int64), events["t"]]))
    for name, (entity, t) in texts.items():
        n = len(entity)
        columns = {
            "text_id": np.arange(n, dtype=np.int32),
            "entity": entity,
            "t": _times(t),
            "kind": ["job" if name == "job" else "profile"] * n,
            "text": [_words(i) for i in range(n)],
        }
        _write(folder / f"{name}.parquet", columns)
    return texts


def text_before(texts, name, entity, t):
    """The last text of an entity before a time."""
    entities, times = texts[name]
    found = np.flatnonzero((entities == entity) & (times < t))
    return int(found[-1]) if len(found) else -1


def _pairs(rng, events, texts):
    """Each positive with one uniform and one near negative."""
    rows = []
    for group, (member, job, t) in enumerate(zip(*events.values(), strict=True)):
        others = np.setdiff1d(np.unique(events["receiver"]), [job])
        kinds = [("", job)] + [(kind, int(rng.choice(others))) for kind in ("uniform", "near")]
        rows += [(member, receiver, kind == "", kind, t, group) for kind, receiver in kinds]
    return _pair_columns(rows, texts, "member", "job")


def _contacts(rng, events, texts):
    rows = []
    for group, (member, job, t) in enumerate(zip(*events.values(), strict=True)):
        recruiter = job % COUNTS["recruiter"]
        other = int((member + 1 + rng.integers(COUNTS["member"] - 1)) % COUNTS["member"])
        rows += [(recruiter, member, True, "", t, group)]
        rows += [(recruiter, other, False, "uniform", t, group)]
    return _pair_columns(rows, texts, "recruiter", "member")


def _pair_columns(rows, texts, sender_type, receiver_type):
    sender, receiver, label, negative, t, group = map(list, zip(*rows, strict=True))
    n = len(rows)

    def texts_of(name, entities):
        if name not in texts:
            return np.full(n, -1, np.int32)
        found = [text_before(texts, name, e, at) for e, at in zip(entities, t, strict=True)]
        return np.array(found, np.int32)

    return {
        "sender": np.array(sender, np.int32),
        "receiver": np.array(receiver, np.int32),
        "label": np.array(label, np.int8),
        "negative": negative,
        "t": _times(t),
        "group": np.array(group, np.int32),
        "sender_text": texts_of(sender_type, sender),
        "sender_resume": np.full(n, -1, np.int32),
        "receiver_text": texts_of(receiver_type, receiver),
        "warm_sender": np.ones(n, bool),
        "warm_receiver": np.ones(n, bool),
        "true_logit": pa.array([None] * n, pa.float32()),
        "slice": [""] * n,
    }


def _write_ranking(folder, split, events, texts):
    sender, receiver, t = (column[:4] for column in events.values())
    lists = pa.list_(pa.int32())
    columns = {
        "sender": sender,
        "t": _times(t),
        "sender_text": np.array(
            [text_before(texts, "member", s, at) for s, at in zip(sender, t, strict=True)], np.int32
        ),
        "sender_resume": np.full(len(sender), -1, np.int32),
        "relevant": pa.array([[int(r)] for r in receiver], lists),
        "excluded": pa.array([[] for _ in receiver], lists),
    }
    _write(folder / f"{split}.parquet", columns)
    jobs = np.unique(events["receiver"])
    _write(
        folder / f"candidates_{split}.parquet",
        {"receiver": jobs, "receiver_text": jobs},
    )


def _words(number):
    """A text of its own for every number, in letters that tiny tokenizers know; not all as long."""
    words = [("nurse", "java", "python", "london")[int(d)] for d in np.base_repr(number, 4)]
    return " ".join(words) + " team" * (number % 9)


def _times(values):
    values = np.asarray(values, np.int64)
    return pa.array(values, pa.int64(), mask=values == NO_TIME)


def _write(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def _meta(folder):
    def node(name):
        return {
            "count": COUNTS[name],
            "categorical": {"site": 3} if name == "job" else {},
            "dense": ["years"] if name == "member" else [],
            "has_texts": name in ("job", "member"),
            "has_time": name == "job",
        }

    def edge(key, kind):
        sender, relation, receiver = key.split("__")
        return {
            "sender": sender,
            "relation": relation,
            "receiver": receiver,
            "kind": kind,
            "count": pq.read_metadata(folder / "edges" / f"{key}.parquet").num_rows,
            "has_time": kind == "interaction",
            "has_split": kind == "interaction",
        }

    def task(sender, receiver, key, weights):
        return {
            "sender": sender,
            "receiver": receiver,
            "edge_types": [key],
            "negatives": ["uniform", "near"],
            "counts": {},
            "class_weights": weights,
        }

    return {
        "dataset": "graph_market",
        "time_unit": "ordinal",
        "node_types": {name: node(name) for name in COUNTS},
        "edge_types": [
            edge("job__needs__skill", "attribute"),
            edge("member__has__skill", "attribute"),
            edge("recruiter__post__job", "attribute"),
            edge(APPLY, "interaction"),
            edge(CONTACT, "interaction"),
        ],
        "tasks": {
            "apply": task("member", "job", APPLY, [1.0, 2.0]),
            "contact": task("recruiter", "member", CONTACT, [1.0, 1.0]),
        },
        "cohorts": [],
        "reference": None,
        "import_report": {},
    }
