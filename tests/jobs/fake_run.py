"""A finished run without the training: tables, vectors, logs and scorers that know the truth."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from star_jax import artefacts
from star_jax.embeddings.table import EmbeddingTable, write_shard
from star_jax.jobs import evaluate
from star_jax.pipeline.measurements import MeasureConfig
from star_jax.shapes import NO_TIME

TASK = "apply"
WORDS = {"north": "welder steel forge", "south": "nurse ward clinic", "west": "driver truck road"}
CONFIG = evaluate.EvaluateConfig(measure=MeasureConfig(min_cohort_members=5))


def evaluate_with_fakes(workdir, monkeypatch, **options):
    """Makes a run, evaluates it by scorers that know the truth, returns the world behind it."""
    world = make_run(workdir, **options)
    text, graph = fake_scorers(world)
    monkeypatch.setattr(evaluate, "TextPairScorer", text)
    monkeypatch.setattr(evaluate, "GraphPairScorer", graph)
    evaluate.run(CONFIG, workdir)
    return world


def metrics(workdir, stage="report"):
    """What a stage found."""
    return json.loads((workdir / stage / "metrics.json").read_text(encoding="utf-8"))


def make_run(workdir: Path, *, num_members=90, num_jobs=60, reference=None, planted=True):
    """Writes all that `star evaluate` and `star report` read; returns the world behind it."""
    rng = np.random.default_rng(0)
    world = {
        "member": rng.integers(0, 3, num_members),
        "job": rng.integers(0, 3, num_jobs),
        "taste": rng.standard_normal((num_members, 4)),
        "appeal": rng.standard_normal((num_jobs, 4)),
    }
    with artefacts.writing(workdir / "tables", "tables") as folder:
        _write_nodes(folder, world)
        _write_texts(folder, world)
        counts = _write_pairs(folder, world, rng, planted)
        artefacts.set_meta(folder, _meta(world, counts, reference))
    _write_training(workdir, rng)
    _write_vectors(workdir, world, rng)
    return world


def logits(world, sender, receiver):
    """The truth: same region, and tastes that meet."""
    same = world["member"][sender] == world["job"][receiver]
    return 2.5 * same + 1.2 * (world["taste"][sender] * world["appeal"][receiver]).sum(axis=-1) - 1


def fake_scorers(world):
    """Stand-ins for the two scorers: the truth with less or more noise."""

    def noisy(noise):
        def score(sender, receiver):
            mixed = np.random.default_rng(7).standard_normal(np.broadcast(sender, receiver).shape)
            return (logits(world, sender, receiver) + noise * mixed).astype(np.float32)

        return score

    class Text:
        def __init__(self):
            self._score = noisy(4.0)

        @classmethod
        def open(cls, workdir):
            return cls()

        def score(self, pairs):
            return self._score(pairs.sender, pairs.receiver)

        def score_grid(self, task, ranking):
            assert task == TASK
            return self._score(ranking.sender[:, None], ranking.candidates[None, :])

    class Graph:
        tasks = (TASK,)

        def __init__(self, workdir, model, rule, mesh=None):
            noise = {"graph_model": 1.5, "graph_only_model": 3.0}[model]
            self._score = noisy(noise + {"split": 0.0, "time": 0.5}[rule])

        def score(self, pairs, split, task):
            assert task == TASK
            assert split in ("val", "test")
            return self._score(pairs.sender, pairs.receiver)

        def score_grid(self, task, ranking, split):
            return self._score(ranking.sender[:, None], ranking.candidates[None, :])

    return Text, Graph


def _write_nodes(folder, world):
    (folder / "nodes").mkdir()
    for name in ("member", "job"):
        num = len(world[name])
        columns = {"idx": np.arange(num, dtype=np.int32), "id": [f"{name}-{i}" for i in range(num)]}
        if name == "member":
            columns["cohort_gender"] = [("FEMALE", "MALE", None)[i % 7 % 3] for i in range(num)]
            columns["cohort_urgency"] = [("Urgent", "Relaxed")[i // 3 % 2] for i in range(num)]
        pq.write_table(pa.table(columns), folder / "nodes" / f"{name}.parquet")
    regions = pa.table({"idx": np.arange(3, dtype=np.int32), "id": list(WORDS)})
    pq.write_table(regions, folder / "nodes" / "region.parquet")
    for name in ("member", "job"):
        rows = np.arange(len(world[name]), dtype=np.int32)
        _write_edges(folder, f"{name}__in__region", rows, world[name].astype(np.int32), 0)


def _write_edges(folder, name, sender, receiver, split):
    (folder / "edges").mkdir(exist_ok=True)
    num = len(sender)
    empty = pa.nulls(num, pa.int64())
    columns = {
        "sender": sender,
        "receiver": receiver,
        "t": empty,
        "removed_t": empty,
        "weight": np.ones(num, np.float32),
        "split": np.broadcast_to(np.int8(split), num),
    }
    pq.write_table(pa.table(columns), folder / "edges" / f"{name}.parquet")


def _write_texts(folder, world):
    (folder / "texts").mkdir()
    rng = np.random.default_rng(1)
    for name in ("member", "job"):
        num = len(world[name])
        texts = [
            " ".join([*rng.choice(list(WORDS.values())[region].split(), 2), f"word{i}"])
            for i, region in enumerate(world[name])
        ]
        columns = {
            "text_id": np.arange(num, dtype=np.int32),
            "entity": np.arange(num, dtype=np.int32),
            "t": pa.nulls(num, pa.int64()),
            "kind": ["profile" if name == "member" else "job"] * num,
            "text": texts,
        }
        pq.write_table(pa.table(columns), folder / "texts" / f"{name}.parquet")


def _write_pairs(folder, world, rng, planted):
    """Each member picks its favourites among a few jobs; half of the members are cold."""
    num_members, num_jobs = len(world["member"]), len(world["job"])
    (folder / "pairs" / TASK).mkdir(parents=True)
    (folder / "rank" / TASK).mkdir(parents=True)
    events, counts = [], {}
    warm = np.arange(num_members) % 2 == 0
    members = {"train": np.flatnonzero(warm), "val": np.arange(num_members)}
    for code, split in enumerate(("train", "val", "test"), start=1):
        sender = members.get(split, np.arange(num_members))
        offered = np.stack([rng.permutation(num_jobs)[:8] for _ in sender])
        truth = logits(world, sender[:, None], offered)
        receiver = offered[np.arange(len(sender)), truth.argmax(axis=1)]
        rows = [(s, r, 1, "") for s, r in zip(sender, receiver, strict=True)]
        if split == "train":
            rows += [(s, rng.integers(num_jobs), 0, "uniform") for s in sender]
        else:
            kinds = ("uniform", "near") * 2
            rows += [(s, rng.integers(num_jobs), 0, kind) for s in sender for kind in kinds]
        _write_pair_table(folder, split, world, rows, warm, planted)
        counts[split] = {"positives": len(sender), "uniform": len(rows) - len(sender)}
        if split != "train":
            excluded = [[r for s, r, _ in events if s == m] for m in sender[warm[sender]]]
            _write_ranking(folder, split, sender, receiver, warm, excluded, num_jobs)
        events += [(s, r, code) for s, r in zip(sender, receiver, strict=True)]
    sender, receiver, split = (np.asarray(column) for column in zip(*events, strict=True))
    name = f"member__{TASK}__job"
    _write_edges(folder, name, sender.astype(np.int32), receiver.astype(np.int32), 1)
    table = pq.read_table(folder / "edges" / f"{name}.parquet")
    coded = table.set_column(5, "split", pa.array(split, pa.int8()))
    pq.write_table(coded, folder / "edges" / f"{name}.parquet")
    return counts


def _write_pair_table(folder, split, world, rows, warm, planted):
    sender, receiver, label, negative = (list(column) for column in zip(*rows, strict=True))
    sender, receiver = np.asarray(sender, np.int32), np.asarray(receiver, np.int32)
    order = np.argsort(sender, kind="stable")
    truth = logits(world, sender, receiver).astype(np.float32)
    columns = {
        "sender": sender,
        "receiver": receiver,
        "label": np.asarray(label, np.int8),
        "negative": negative,
        "t": pa.nulls(len(sender), pa.int64()),
        "group": sender,
        "sender_text": sender,
        "sender_resume": np.full(len(sender), -1, np.int32),
        "receiver_text": receiver,
        "warm_sender": warm[sender],
        "warm_receiver": receiver % 3 > 0,
        "true_logit": truth if planted else pa.nulls(len(sender), pa.float32()),
        "slice": [("text", "structure", "")[s % 3] for s in sender],
    }
    table = pa.table(columns).take(order)
    pq.write_table(table, folder / "pairs" / TASK / f"{split}.parquet")


def _write_ranking(folder, split, sender, receiver, warm, excluded, num_jobs):
    chosen = warm[sender]
    asked = sender[chosen].astype(np.int32)
    queries = {
        "sender": asked,
        "t": pa.nulls(len(asked), pa.int64()),
        "sender_text": asked,
        "sender_resume": np.full(len(asked), -1, np.int32),
        "relevant": pa.array([[r] for r in receiver[chosen]], pa.list_(pa.int32())),
        "excluded": pa.array(excluded, pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(queries), folder / "rank" / TASK / f"{split}.parquet")
    jobs = np.arange(num_jobs, dtype=np.int32)
    candidates = pa.table({"receiver": jobs, "receiver_text": jobs})
    pq.write_table(candidates, folder / "rank" / TASK / f"candidates_{split}.parquet")


def _meta(world, counts, reference):
    node = {"categorical": {}, "dense": [], "has_texts": True, "has_time": False}
    edge = {"has_time": False, "has_split": False}
    return {
        "dataset": "toy <market>",
        "time_unit": "unix_s",
        "node_types": {
            "member": node | {"count": len(world["member"])},
            "job": node | {"count": len(world["job"])},
            "region": node | {"count": 3, "has_texts": False},
        },
        "edge_types": [
            edge | {"sender": s, "relation": r, "receiver": t, "kind": kind, "count": len(world[s])}
            for s, r, t, kind in (
                ("member", TASK, "job", "interaction"),
                ("member", "in", "region", "attribute"),
                ("job", "in", "region", "attribute"),
            )
        ],
        "tasks": {
            TASK: {
                "sender": "member",
                "receiver": "job",
                "edge_types": [f"member__{TASK}__job"],
                "negatives": ["uniform", "near"],
                "counts": counts,
                "class_weights": [1.0, 1.0],
            }
        },
        "cohorts": ["gender", "urgency"],
        "reference": reference,
        "import_report": {"excluded": {"opted out": 2}},
    }


def _write_training(workdir, rng):
    for name in ("text", "graph_model", "graph_only_model"):
        kind = "text_model" if name == "text" else "graph_model"
        with artefacts.writing(workdir / name, kind) as folder:
            rows = []
            for step in range(0, 201, 2):
                loss = 0.35 + 0.35 * np.exp(-step / 60) + 0.03 * rng.standard_normal()
                rows.append({"step": step, "split": "train", "time_s": step, "loss": loss})
                if step % 20 == 0:
                    auc = 0.8 - 0.25 * np.exp(-step / 50)
                    values = {"auc_uniform": auc, "auc_near": auc - 0.1, "score": auc}
                    rows.append({"step": step, "split": "val", "time_s": step} | values)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
            meta = {"num_steps": 200, "num_epochs": 0.43, "num_train_pairs": 14_884}
            artefacts.set_meta(folder, meta)
        record = {"stage": f"train {name}", "config": {"seed": 0}, "state": "done"}
        times = {"seconds": 40.0 + len(name), "finished": float(len(name))}
        artefacts.write_text(workdir / name / artefacts.STAGE, json.dumps(record | times))


def _write_vectors(workdir, world, rng):
    with artefacts.writing(workdir / "graph_embeddings", "graph_embeddings") as folder:
        for name in ("member", "job"):
            num = len(world[name])
            centres = rng.standard_normal((3, 16))
            vectors = centres[world[name]] + 0.45 * rng.standard_normal((num, 16))
            table = EmbeddingTable(
                np.arange(num, dtype=np.int32),
                np.full(num, -1, np.int32),
                np.full(num, NO_TIME, np.int64),
                vectors.astype(np.float32),
            )
            write_shard(folder / name, 0, [f"{name}-{i}" for i in range(num)], table)
