"""A tables folder whose texts tell who applies where: member and job name the same colour."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from star_jax import artefacts
from star_jax.shapes import NO_TIME

COLOURS = ("red", "green", "blue", "grey")
NUM_MEMBERS, NUM_JOBS = 24, 16
NODES = {
    "member": {"count": NUM_MEMBERS, "has_texts": True},
    "job": {"count": NUM_JOBS, "has_texts": True},
    "skill": {"count": 3, "has_texts": False},
}


def write_tables(folder: Path, *, num_groups=40, with_texts=True, resumes=True) -> None:
    """Writes all that the text half reads; job 3 copies the text of job 7, their colours too."""
    rng = np.random.default_rng(5)
    with artefacts.writing(folder, "tables") as partial:
        for node_type, node in NODES.items():
            n = node["count"]
            ids = [f"{node_type}-{i}" for i in range(n)]
            _write(
                partial / "nodes" / f"{node_type}.parquet",
                {
                    "idx": np.arange(n, dtype=np.int32),
                    "id": ids,
                    "t": pa.nulls(n, pa.int64()),
                },
            )
        if with_texts:
            _write_texts(partial, resumes)
        for split in ("train", "val", "test"):
            pairs = _pairs(rng, num_groups if split == "train" else 12, with_texts, resumes)
            _write(partial / "pairs" / "apply" / f"{split}.parquet", pairs)
        for split in ("val", "test"):
            _write_ranking(partial / "rank" / "apply", split)
        artefacts.set_meta(partial, _meta(with_texts))


def _write_texts(folder: Path, resumes: bool) -> None:
    jobs = [f"a {_colour(j)} job, {'x' * (3 * (j % 5))}" for j in range(NUM_JOBS)]
    jobs[3] = jobs[7]
    profiles = [f"likes {_colour(m)}" + "!" * (m // 8) for m in range(NUM_MEMBERS)]
    cvs = [f"painted {_colour(m)} walls" for m in range(NUM_MEMBERS)] if resumes else []
    for node_type, kind_texts in {
        "job": [("job", i, text) for i, text in enumerate(jobs)],
        "member": [("profile", i, text) for i, text in enumerate(profiles)]
        + [("resume", i, text) for i, text in enumerate(cvs)],
    }.items():
        kinds, entities, texts = zip(*kind_texts, strict=True)
        times = [NO_TIME if i == 0 else i for i in range(len(texts))]
        _write(
            folder / "texts" / f"{node_type}.parquet",
            {
                "text_id": np.arange(len(texts), dtype=np.int32),
                "entity": np.array(entities, np.int32),
                "t": pa.array(times, pa.int64(), mask=np.array(times) == NO_TIME),
                "kind": list(kinds),
                "text": list(texts),
            },
        )


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _pairs(rng, num_groups, with_texts, resumes) -> dict:
    rows = []
    for group in range(num_groups):
        member = int(rng.integers(NUM_MEMBERS))
        same = [j for j in range(NUM_JOBS) if j % 4 == member % 4]
        other = [j for j in range(NUM_JOBS) if j % 4 != member % 4]
        rows.append((member, int(rng.choice(same)), 1, "", group))
        rows += [(member, int(j), 0, "uniform", group) for j in rng.choice(other, 2, False)]
        rows.append((member, int(rng.choice(other)), 0, "near", group))
    sender, receiver, label, negative, group = map(list, zip(*rows, strict=True))
    sender, n = np.array(sender, np.int32), len(rows)
    profile = sender if with_texts else np.full(n, -1, np.int32)
    has_resume = (sender % 3 != 0) & with_texts & resumes
    return {
        "sender": sender,
        "receiver": np.array(receiver, np.int32),
        "label": np.array(label, np.int8),
        "negative": negative,
        "t": pa.array([None] * n, pa.int64()),
        "group": np.array(group, np.int32),
        "sender_text": profile,
        "sender_resume": np.where(has_resume, sender + NUM_MEMBERS, -1).astype(np.int32),
        "receiver_text": np.array(receiver if with_texts else [-1] * n, np.int32),
        "warm_sender": np.ones(n, bool),
        "warm_receiver": np.ones(n, bool),
        "true_logit": pa.array([None] * n, pa.float32()),
        "slice": [""] * n,
    }


def _write_ranking(folder: Path, split: str) -> None:
    members = np.arange(5, dtype=np.int32)
    lists = pa.list_(pa.int32())
    _write(
        folder / f"{split}.parquet",
        {
            "sender": members,
            "t": pa.array([None] * 5, pa.int64()),
            "sender_text": members,
            "sender_resume": np.where(members % 2, members + NUM_MEMBERS, -1).astype(np.int32),
            "relevant": pa.array([[int(m)] for m in members], lists),
            "excluded": pa.array([[] for _ in members], lists),
        },
    )
    jobs = np.arange(NUM_JOBS, dtype=np.int32)
    _write(folder / f"candidates_{split}.parquet", {"receiver": jobs, "receiver_text": jobs})


def _write(path: Path, columns: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def _meta(with_texts: bool) -> dict:
    node = {"categorical": {}, "dense": [], "has_time": False}
    return {
        "dataset": "text_market",
        "time_unit": "ordinal",
        "node_types": {
            name: node | {"count": n["count"], "has_texts": n["has_texts"] and with_texts}
            for name, n in NODES.items()
        },
        "edge_types": [],
        "tasks": {
            "apply": {
                "sender": "member",
                "receiver": "job",
                "edge_types": ["member__apply__job"],
                "negatives": ["uniform", "near"],
                "counts": {},
                "class_weights": [1.0, 2.0],
            }
        },
        "cohorts": [],
        "reference": None,
        "import_report": {},
    }
