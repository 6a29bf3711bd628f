"""A market small enough to reason about: tables as dictionaries, so that a test can bend them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from star_jax.pipeline.tables import read
from star_jax.pipeline.tables.build import build
from star_jax.pipeline.tables.database import Limits
from star_jax.pipeline.tables.schema import (
    Negatives,
    Schema,
    TaskSource,
    TimeCuts,
)
from star_jax.pipeline.tables.sources import (
    EdgeSource,
    EventEdges,
    EventSource,
    NodeSource,
    TextSource,
)

NUM_MEMBERS, NUM_JOBS, NUM_SKILLS = 30, 24, 5
START = 1_600_000_000
DAY = 86_400
VAL_FROM, TEST_FROM = START + 60 * DAY, START + 80 * DAY
END = START + 100 * DAY

OUT, IN = 3, 4  # Members: one opts out, one stays.
OUT_ID, IN_ID = "outx" * 8, "keep" * 8

LIMITS = Limits(memory_gib=0.5, num_threads=2)
Table = dict[str, list[Any]]


def tables(seed: int = 3) -> dict[str, Table]:
    """File name -> column -> values."""
    rng = np.random.default_rng(seed)
    members = [f"m{i}" for i in range(NUM_MEMBERS)]
    jobs = [f"j{i}" for i in range(NUM_JOBS)]
    created = (START + rng.integers(-50, 90, NUM_JOBS) * DAY).tolist()
    created[:8] = [START - DAY] * 8
    made: dict[str, Table] = {
        "member.parquet": {
            "id": members,
            "t": [START - 100 * DAY] * NUM_MEMBERS,
            "city": [f"city {i % 4}" if i % 7 else None for i in range(NUM_MEMBERS)],
            "years": [float(i) if i % 5 else None for i in range(NUM_MEMBERS)],
            "gender": [("f", "m")[i % 2] for i in range(NUM_MEMBERS)],
            "consent": [True] * NUM_MEMBERS,
        },
        "job.parquet": {
            "id": jobs,
            "t": created,
            "industry": [f"industry {i % 3}" for i in range(NUM_JOBS)],
        },
        "skill.parquet": {"id": list(range(NUM_SKILLS)), "name": [f"skill {i}" for i in range(5)]},
        "job_skill.parquet": {
            "sender": [j for j in jobs for _ in range(2)],
            "receiver": [(3 * i + k) % NUM_SKILLS for i in range(NUM_JOBS) for k in range(2)],
            "t": [t for t in created for _ in range(2)],
            "w": [1.0] * (2 * NUM_JOBS),
        },
    }
    made["texts_job.parquet"] = {
        "entity": jobs + jobs[:6],
        "t": created + [START + 70 * DAY] * 6,
        "text": [f"posting of {j}" for j in jobs] + [f"posting of {j}, edited" for j in jobs[:6]],
    }
    times = [(START + d * DAY) for d in (-1, 30, 75)]
    made["texts_member.parquet"] = {
        "text_id": [f"{m}.{k}" for m in members for k in range(3)],
        "entity": [m for m in members for _ in range(3)],
        "t": [t for _ in members for t in times],
        "text": [f"profile {k} of {m}" for m in members for k in range(3)],
    }
    made["resume.parquet"] = {
        "entity": members[::2],
        "t": [None if i % 4 else START + 10 * DAY for i in range(0, NUM_MEMBERS, 2)],
        "text": [f"resume of {m}" for m in members[::2]],
    }
    made["events.parquet"] = _events(rng, members, jobs, created)
    saves = rng.permutation(NUM_MEMBERS * NUM_JOBS)[:60]
    made["save.parquet"] = {
        "sender": [members[i // NUM_JOBS] for i in saves],
        "receiver": [jobs[i % NUM_JOBS] for i in saves],
        "t": (START + rng.integers(0, 100 * DAY, 60)).tolist(),
    }
    return made


def _events(rng: np.random.Generator, members: list, jobs: list, created: list) -> Table:
    events: Table = {name: [] for name in ("time", "sender", "receiver", "action", "session")}
    seen = set()
    for n in range(500):
        m, j = int(rng.integers(NUM_MEMBERS)), int(rng.integers(NUM_JOBS))
        t = START + int(rng.integers(0, 100 * DAY))
        if (m, j) in seen or created[j] > t:
            continue
        seen.add((m, j))
        events["time"].append(t)
        events["sender"].append(members[m])
        events["receiver"].append(jobs[j])
        events["action"].append("APPLY" if n % 3 else "SKIP")
        events["session"].append(f"s{n % 5}")
    return events


def mark(tables: dict[str, Table]) -> dict[str, list[str]]:
    """Gives two members a unique id, and each of their texts a unique word; one opts out.

    Returns:
      By the member's new id: that id and every string that only this member has.
    """
    words: dict[str, list[str]] = {}
    for member, new in ((OUT, OUT_ID), (IN, IN_ID)):
        old = f"m{member}"
        words[new] = [new]
        for table in tables.values():
            for column, values in table.items():
                if column in ("id", "sender", "receiver", "entity"):
                    table[column] = [new if v == old else v for v in values]
        for name in ("texts_member.parquet", "resume.parquet"):
            for row, entity in enumerate(tables[name]["entity"]):
                if entity == new:
                    word = f"zq{'out' if member == OUT else 'in'}{name[0]}{row}q"
                    tables[name]["text"][row] += f" {word}"
                    words[new].append(word)
        tables["member.parquet"]["city"][member] = f"hamlet of {new}"
        words[new].append(f"hamlet of {new}")
    tables["member.parquet"]["consent"][OUT] = False
    return words


def schema(**changes: Any) -> Schema:
    """Describes `tables()`; changes replace fields."""
    edges = (
        EdgeSource(
            sender="job",
            relation="has",
            receiver="skill",
            kind="attribute",
            file="job_skill.parquet",
            time="t",
            weight="w",
        ),
        EdgeSource(
            sender="member",
            relation="save",
            receiver="job",
            kind="interaction",
            file="save.parquet",
            time="t",
        ),
    )
    texts = (
        TextSource(node_type="job", kind="job", file="texts_job.parquet", time="t"),
        TextSource(
            node_type="member",
            kind="profile",
            file="texts_member.parquet",
            time="t",
            id="text_id",
        ),
        TextSource(node_type="member", kind="resume", file="resume.parquet", time="t"),
    )
    base = Schema(
        name="mini",
        time_unit="unix_s",
        nodes=(
            NodeSource(
                type="member",
                file="member.parquet",
                time="t",
                categorical=("city",),
                dense=("years",),
                cohorts=("gender",),
                consent="consent",
            ),
            NodeSource(type="job", file="job.parquet", time="t", categorical=("industry",)),
            NodeSource(type="skill", file="skill.parquet", text="name"),
        ),
        edges=edges,
        texts=texts,
        events=(events_source(),),
        tasks=(apply_task(),),
        split=TimeCuts(val_from=VAL_FROM, test_from=TEST_FROM),
    )
    return dataclasses.replace(base, **changes)


def events_source(**changes: Any) -> EventSource:
    """The events of `tables()`, made into edges too."""
    base = EventSource(
        sender="member",
        receiver="job",
        file="events.parquet",
        session="session",
        edges=(EventEdges(relation="apply", actions=("APPLY",)),),
    )
    return dataclasses.replace(base, **changes)


def apply_task(**changes: Any) -> TaskSource:
    """member -> job."""
    base = TaskSource(
        name="apply",
        sender="member",
        receiver="job",
        labels={"APPLY": 1, "SKIP": 0},
        edge_types=("member__apply__job",),
        negatives=Negatives(
            train={"uniform": 1.0},
            evaluation={"uniform": 1.0, "popular": 1.0, "near": 1.0, "impressed": 1.0},
            near="industry",
        ),
    )
    return dataclasses.replace(base, **changes)


def write(folder: Path, content: dict[str, Table]) -> Path:
    """Writes the tables as Parquet, or CSV where the name says so."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table(columns)
        if path.suffix == ".csv":
            pyarrow.csv.write_csv(table, path)
        else:
            pq.write_table(table, path)
    return folder


def imported(
    folder: Path,
    content: dict[str, Table],
    description: Schema,
    *,
    seed: int = 0,
    fix: bool = False,
) -> tuple[Path, read.TablesMeta]:
    """Writes the raw tables and builds the folder of tables (without a manifest)."""
    data = write(folder / "raw", content)
    out = folder / "tables"
    out.mkdir()
    return out, build(data, description, out, LIMITS, seed=seed, fix=fix)
