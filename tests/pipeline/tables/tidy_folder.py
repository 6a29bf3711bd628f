"""A generated star-tidy-1 folder; a test says what it lacks or calls things."""

import json
from pathlib import Path

import numpy as np

from tests.pipeline.tables import mini

NUM_MEMBERS, NUM_JOBS, NUM_SKILLS, NUM_EVENTS = 20, 15, 4, 120
CUTS = (80, 100)  # Events before the first train, before the second val.


def tables(
    *,
    sender="member",
    receiver="job",
    relation="apply",
    member_texts=True,
    job_texts=True,
    times=True,
    evaluation=True,
    word="text",
) -> dict[str, mini.Table]:
    """File -> columns, as the layout wants them."""
    rng = np.random.default_rng(1)
    keys = rng.permutation(NUM_MEMBERS * NUM_JOBS)[:NUM_EVENTS]
    member, job = (keys // NUM_JOBS).tolist(), (keys % NUM_JOBS).tolist()
    t = list(range(100, 100 + NUM_EVENTS)) if times else [None] * NUM_EVENTS
    split = ["train"] * CUTS[0] + ["val"] * (CUTS[1] - CUTS[0])
    split += ["test"] * (NUM_EVENTS - CUTS[1])
    first = [
        min((100 + e for e in range(NUM_EVENTS) if job[e] == j), default=99) for j in range(15)
    ]
    born = [at - 1 for at in first] if times else [None] * NUM_JOBS
    made = _graph(sender, receiver, word, born)
    made[f"edges/{sender}__{relation}__{receiver}.parquet"] = {
        "src": member,
        "dst": job,
        "t": t,
        "split": split,
    }
    made["interactions.parquet"] = {
        sender: member,
        receiver: job,
        "t": t,
        "split": split,
        "action": ["APPLY"] * NUM_EVENTS,
    }
    if job_texts:
        made[f"texts/{receiver}.parquet"] = {
            receiver: list(range(NUM_JOBS)),
            "t": born,
            "title": [f"{word} {i}" for i in range(NUM_JOBS)],
            "text": [f"{word} {i}. {word} {word}" for i in range(NUM_JOBS)],
        }
    if member_texts:
        made[f"texts/{sender}.parquet"] = {
            "text_id": list(range(NUM_EVENTS)),
            sender: member,
            "t": t,
            "text": [f"{word} {i}" if i % 5 else "" for i in range(NUM_EVENTS)],
        }
        made["interactions.parquet"][f"{sender}_text"] = list(range(NUM_EVENTS))
    if evaluation:
        made |= _evaluation(rng, made["interactions.parquet"], sender, receiver)
    return made


def _graph(sender, receiver, word, born) -> dict[str, mini.Table]:
    """Nodes, and what a job has."""
    return {
        f"nodes/{sender}.parquet": {
            "idx": list(range(NUM_MEMBERS)),
            "key": [f"site:{i}" for i in range(NUM_MEMBERS)],
            "points": list(range(NUM_MEMBERS)),
        },
        f"nodes/{receiver}.parquet": {
            "idx": list(range(NUM_JOBS)),
            "key": [str(7 * i) for i in range(NUM_JOBS)],
            "t": born,
            "site": [("a", "b", None)[i % 3] for i in range(NUM_JOBS)],
        },
        "nodes/skill.parquet": {
            "idx": list(range(NUM_SKILLS)),
            "key": [f"s{i}" for i in range(NUM_SKILLS)],
            "name": [f"{word} {i}" for i in range(NUM_SKILLS)],
        },
        f"edges/{receiver}__has__skill.parquet": {
            "src": list(range(NUM_JOBS)),
            "dst": [i % NUM_SKILLS for i in range(NUM_JOBS)],
            "t": born,
            "w": [1.0] * NUM_JOBS,
        },
    }


def _evaluation(rng, events, sender, receiver):
    made = {}
    bounds = {"train": (0, CUTS[0]), "val": CUTS, "test": (CUTS[1], NUM_EVENTS)}
    for split, (low, high) in bounds.items():
        rows = [row for row in range(low, high) for _ in range(2)]
        positive = [n % 2 == 0 for n in range(len(rows))]
        pairs = {name: [values[r] for r in rows] for name, values in events.items()}
        pool = sorted(set(events[receiver][low:high]))
        pairs[receiver] = [
            value if p else pool[int(rng.integers(len(pool)))]
            for value, p in zip(pairs[receiver], positive, strict=True)
        ]
        pairs["label"] = [int(p) for p in positive]
        pairs["neg_type"] = ["positive" if p else "uniform" for p in positive]
        pairs[f"warm_{sender}"] = [n % 4 < 2 for n in range(len(rows))]
        pairs[f"warm_{receiver}"] = [n % 6 < 3 for n in range(len(rows))]
        del pairs["split"], pairs["action"]
        made[f"eval/pairs_{split}.parquet"] = pairs
        if split != "train":
            own = [n for n, p in enumerate(positive) if p]
            names = [sender, receiver, "t", f"warm_{sender}", f"{sender}_text"]
            made[f"eval/rank_{split}.parquet"] = {
                name: [pairs[name][n] for n in own] for name in names if name in pairs
            }
            made[f"eval/candidates_{split}.parquet"] = {receiver: pool}
    return made


def write(folder: Path, content: dict[str, mini.Table], **meta: object) -> Path:
    """Writes the folder with its meta.json and a reference.json."""
    mini.write(folder, content)
    (folder / "meta.json").write_text(json.dumps({"layout": "star-tidy-1", **meta}))
    (folder / "reference.json").write_text(json.dumps({"methods": {"x": {"auc_uniform": 0.5}}}))
    return folder
