"""The parts of the text half, one after the other, on a real set: does the order of Table 2 hold?

Run:
    PYTHONPATH=. python bench/text_ablation.py DATA_DIR --workdir W [--seeds 0 1 2] [--budget 480]

Each row adds one thing to the row above and trains for the same time, validation included: the
scorer on the frozen base (a quarter of the time), adapters by BCE, the semi-hard term, its
negatives from a batch of 256 pairs instead of 64 (at twice the rate, the root of 4), and several
widths at once. The first seed of a row turns the time into a number of steps on an idle machine,
which the other seeds take. Val chooses the checkpoint, test is reported as mean and standard
deviation over the seeds. The first and the last row take one seed. Steps and measurements are kept
in bench/results/text_ablation.json, and what is there is not done again; a run that is interrupted
goes on in W. Exit code 1: the last full row is below TF-IDF somewhere.
"""

import argparse
import dataclasses
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from bench.record import Record, as_long_as, cells
from configs.run import quickstart
from star_jax.jobs import import_tables, train_text
from star_jax.jobs.evaluate import TextModel
from star_jax.jobs.import_tables import ImportConfig
from star_jax.jobs.train_text import TextTrainConfig
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline import measurements
from star_jax.pipeline.scored import Questions, ask, scored
from star_jax.pipeline.tables.read import TablesMeta, read_meta, read_pairs, read_ranking
from star_jax.pipeline.text_encoding import BulkEncoder, bulk_lengths
from star_jax.pipeline.text_model import open_trained
from star_jax.pipeline.text_records import text_records
from star_jax.pipeline.text_scoring import TextPairScorer
from star_jax.shapes import PyTree
from star_jax.text.bi_encoder import BiEncoder
from star_jax.text.pooling import truncate
from star_jax.text.tower import build_tokenizer
from star_jax.train.plan import PLAN

LARGE_BATCH = 256  # Eight minutes hold some twenty updates of it on two cores.
WIDTHS = (384, 256, 128, 64)
METRICS = ("auc_uniform", "auc_uniform_warm_member", "auc_near", "recall@10", "ndcg@10")
FROZEN, LARGE, NARROW = "frozen", "+ large batch", "+ widths"


class TestTexts(NamedTuple):
    """The texts of the test split alone, encoded: rows of their types' tables, zeros elsewhere."""

    model: BiEncoder
    variables: PyTree
    vectors: dict[str, Float32[np.ndarray, "N E"]]

    @classmethod
    def encode(cls, workdir: Path, meta: TablesMeta, task: str) -> "TestTexts":
        """Encodes them by the model in `W/text`."""
        mesh = make_mesh(MeshConfig())
        trained = open_trained(workdir / "text", mesh)
        records = text_records(workdir, build_tokenizer(trained.tower))
        pairs = read_pairs(workdir / "tables", task, "test")
        ranking = read_ranking(workdir / "tables", task, "test")
        ends = meta.tasks[task]
        used = [(ends.receiver, pairs.receiver_text)]
        used += [(ends.sender, pairs.sender_text), (ends.sender, pairs.sender_resume)]
        if ranking is not None:
            used += [(ends.receiver, ranking.candidate_text)]
            used += [(ends.sender, ranking.sender_text), (ends.sender, ranking.sender_resume)]
        needed = np.unique(np.concatenate([records.of(*each) for each in used]))
        needed = needed[needed >= 0]
        lengths = bulk_lengths(records.lengths[needed], 6)
        encoder = BulkEncoder(trained.model, records, mesh, lengths=lengths, batch_tokens=None)
        found = encoder(trained.variables, needed, lambda _, __: None)
        vectors = {}
        for node_type in {node_type for node_type, _ in used}:
            rows = records.records.get(node_type, np.zeros(0, np.int32))
            place = np.minimum(np.searchsorted(needed, rows), len(needed) - 1)
            hit = needed[place] == rows
            vectors[node_type] = np.where(hit[:, None], found[place], np.float32(0))
        return cls(trained.model, trained.variables, vectors)

    def scorer(self, meta: TablesMeta, width: int) -> TextPairScorer:
        """Scores by the leading numbers of every vector, scaled to length 1."""
        return TextPairScorer(
            self.model,
            self.variables,
            meta.tasks,
            lambda name: np.asarray(truncate(jnp.asarray(self.vectors[name]), width)),
        )


def rows(budget_s: float) -> dict[str, TextTrainConfig]:
    """Name -> training; each adds one thing to the one above."""
    start = quickstart.get_config().train_text
    plan = dataclasses.replace(start.plan, num_epochs=100.0, budget_s=budget_s)
    start = dataclasses.replace(start, plan=plan)
    bce = dataclasses.replace(
        start, objective=dataclasses.replace(start.objective, contrastive="none")
    )
    rate = start.optimizer.learning_rate * math.sqrt(LARGE_BATCH / start.batch_size)
    optimizer = dataclasses.replace(start.optimizer, learning_rate=rate)
    large = dataclasses.replace(start, batch_size=LARGE_BATCH, optimizer=optimizer)
    short = dataclasses.replace(plan, budget_s=budget_s / 4)  # Its steps take no base.
    return {
        FROZEN: dataclasses.replace(bce, mode="frozen", plan=short),
        "+ BCE": bce,
        "+ contrastive": start,
        LARGE: large,
        NARROW: dataclasses.replace(
            large, objective=dataclasses.replace(large.objective, widths=WIDTHS)
        ),
    }


def _kept(metrics: dict[str, float]) -> dict[str, float]:
    return {name: metrics[name] for name in METRICS if name in metrics}


def measure(workdir: Path, config: TextTrainConfig, widths: tuple[int, ...]) -> dict[int, dict]:
    """Trains, and measures the test split by each width."""
    train_text.run(config, workdir)
    meta = read_meta(workdir / "tables")
    task = next(iter(meta.tasks))
    questions = Questions(
        read_pairs(workdir / "tables", task, "test"), read_ranking(workdir / "tables", task, "test")
    )
    texts = TestTexts.encode(workdir, meta, task)
    methods = {str(width): TextModel(texts.scorer(meta, width), task) for width in widths}
    answers = ask(methods, questions)
    found = measurements.metrics_of(scored(questions, answers, meta.tasks[task]), list(methods))
    return {width: found[str(width)] for width in widths}


def measure_seeds(
    workdir: Path,
    name: str,
    config: TextTrainConfig,
    seeds: list[int],
    widths: tuple[int, ...],
    record: Record,
) -> list[dict[int, dict[str, float]]]:
    """What each seed of a row gives, all of them trained for as many steps as the first."""
    found = []
    for seed in seeds:
        folder = workdir / f"{name.removeprefix('+ ').replace(' ', '_')}-{seed}"
        plan = folder / "text" / PLAN
        known = record.found(name, seed)
        if known is None:
            folder.mkdir(exist_ok=True)
            if not (folder / "tables").exists():
                (folder / "tables").symlink_to((workdir / "tables").resolve())
            settled = record.settled(name)
            budgeted = plan.exists() and seed == seeds[0]  # It goes on.
            own = dataclasses.replace(config, seed=seed)
            if settled is not None and not budgeted:
                own = dataclasses.replace(own, plan=as_long_as(own.plan, settled))
            known = measure(folder, own, widths)
            if settled is None:
                record.settle(name, plan)
            record.keep(name, seed, {width: _kept(each) for width, each in known.items()})
        found.append({int(width): each for width, each in known.items()})
    return found


def _line(name: str, found: list[dict[str, float]]) -> str:
    return f"| {name} | {len(found)} | {' | '.join(cells(found, METRICS))} |"


def main() -> int:
    """Trains all rows and prints the table."""
    parser = argparse.ArgumentParser(description="Ablation of the text half.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=float, default=480.0)
    parser.add_argument("--rows", nargs="+", default=None, help="names of rows; all without it")
    parser.add_argument("--record", type=Path, default=Path("bench/results/text_ablation.json"))
    options = parser.parse_args()
    workdir: Path = options.workdir
    if not (workdir / "tables").is_dir():
        import_tables.run(ImportConfig(source=options.data), workdir)
    meta = read_meta(workdir / "tables")
    record = Record(options.record, meta.dataset)
    print(f"{meta.dataset}, test split, budget {options.budget:.0f} s, {os.cpu_count()} cores.\n")
    print(f"| row | seeds | {' | '.join(METRICS)} |")
    print("|---" * (len(METRICS) + 2) + "|")
    reference = (meta.reference or {}).get("methods", {}).get("tfidf_cosine", {})
    print(_line("TF-IDF", [reference]))
    last: list[dict] = []
    for name, config in rows(options.budget).items():
        if options.rows is not None and name not in options.rows:
            continue
        seeds = options.seeds[:1] if name in (FROZEN, NARROW) else options.seeds
        widths = WIDTHS if name == NARROW else WIDTHS[:1]
        found = measure_seeds(workdir, name, config, seeds, widths, record)
        for width in widths:
            of_width = [each[width] for each in found]
            label = name if width == WIDTHS[0] else f"{name}, {width} of {WIDTHS[0]}"
            print(_line(label, of_width), flush=True)
        if name == LARGE:
            last = [each[WIDTHS[0]] for each in found]
    below = [
        metric
        for metric in METRICS
        if last and metric in reference and np.mean([e[metric] for e in last]) < reference[metric]
    ]
    print(f"\nBelow TF-IDF: {', '.join(below) or 'nothing'}.")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
