"""Quality of the graph half over seeds: beside the text half, without it, and grown adaptively.

Run:
    PYTHONPATH=. python bench/graph_quality.py DATA_DIR --workdir W [--seeds 0 1 2]
    PYTHONPATH=. python bench/graph_quality.py market --workdir W

Tables, the text half, its vectors and the graph are made once in W, by the preset
configs/run/quickstart.py (configs/run/market.py of a synthetic market), or lie there already. Then
every row trains with each seed: the preset; the preset without text; the preset with the adaptive
number of neighbours, for as many steps. `stacked` weighs the text half and the first two as
`star evaluate` does, with labels of the validation split, which the set's `hybrid_gbdt` was fitted
to as well. The first seed of a row turns the budget into steps on an idle machine, which the others
take. Val chooses the checkpoint; the test split is reported by the split rule, as mean and standard
deviation over the seeds. `neighbours` are the edges that training sampled, in thousands a step.
What was found is kept in bench/results/graph_quality.json and not done again. Exit code 1: the
stacked halves are not above text and the set's `hybrid_gbdt`, do not find members for jobs as well
as the best of the set's references that weigh activity, or adaptive sampling saves less than a
fifth or loses more than 0.002.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from bench.record import Record, as_long_as, cells
from configs.run import market, quickstart
from star_jax.graph.samplers.adaptive import AdaptiveConfig
from star_jax.jobs import train_graph
from star_jax.jobs.evaluate import GraphModel, TextModel
from star_jax.jobs.run import RunConfig, run_stages, stages
from star_jax.pipeline import measurements
from star_jax.pipeline.graph_scoring import GraphPairScorer
from star_jax.pipeline.graph_training import GraphTrainConfig, without_text
from star_jax.pipeline.reference_methods import Method
from star_jax.pipeline.scored import Answer, Questions, ask, scored
from star_jax.pipeline.sender_ranking import SenderWeights, sender_ranking
from star_jax.pipeline.stacked import STACKED, Asked, teach, warm_ends
from star_jax.pipeline.tables.read import Ranking, read_meta, read_pairs, read_ranking
from star_jax.pipeline.text_scoring import TextPairScorer
from star_jax.train.plan import PLAN
from star_jax.train.reporter import METRICS as LOGGED

WEIGHED_RECALL = "weighed_sender_recall@100"
METRICS = (
    "auc_uniform",
    "auc_uniform_cold_member",
    "auc_near",
    "recall@10",
    "recall@100",
    "ndcg@10",
    "sender_recall@100",
    "active_sender_recall@100",
    WEIGHED_RECALL,
    "weighed_sender_recall@10",
    "weighed_sender_ndcg@10",
)
SENDER_PAIRS = 1 << 24
TEACHING_PAIRS = 1 << 21  # Of validation: they teach three weights.
NEIGHBOURS = "neighbours"
TEXT, BOTH, GRAPH, GROWN = "text", "text + graph", "graph", "text + graph, adaptive"
PREPARED = ("import", "train-text", "export-text", "build-graph")
Answers = dict[str, dict[str, Answer]]
"""Split -> name -> what a model says."""

LEAST_SAVED, MOST_LOST = 0.2, 0.002
DECIDING = ("auc_uniform", "auc_near")


def prepare(data: str, workdir: Path) -> RunConfig:
    """Makes what all rows read; returns the preset."""
    config = market.get_config() if data == "market" else quickstart.get_config()
    if data != "market":
        tables = dataclasses.replace(config.tables, source=Path(data))
        config = dataclasses.replace(config, tables=tables)
    run_stages([stage for stage in stages(config) if stage.name in PREPARED], workdir)
    return config


def rows(config: GraphTrainConfig) -> dict[str, GraphTrainConfig]:
    """Name -> training."""
    return {
        BOTH: config,
        GRAPH: without_text(config),
        GROWN: dataclasses.replace(config, adaptive=AdaptiveConfig()),
    }


class TestSplit:
    """The main task's test split, in both directions."""

    def __init__(self, workdir: Path, sender_pairs: int = SENDER_PAIRS) -> None:
        """Reads it; 0 `sender_pairs`: in one direction."""
        self._tables = workdir / "tables"
        self._meta = read_meta(self._tables)
        self.task = next(iter(self._meta.tasks))
        ranking = read_ranking(self._tables, self.task, "test")
        self.questions = self._asked("test", ranking, sender_pairs)

    def measure(self, method: Method) -> dict[str, float]:
        """The metrics of one method, without those that validation teaches."""
        return self._metrics(dict(ask({"method": method}, self.questions)), {})["method"]

    def answers(self, models: Mapping[str, Callable[[str], Method]]) -> Answers:
        """What models say of the validation split, and of this one.

        Args:
          models: By name, a function from a split to how the model is asked about it.
        """
        asked = {"val": self._teaching, "test": self.questions}
        return {
            split: dict(ask({name: of(split) for name, of in models.items()}, questions))
            for split, questions in asked.items()
        }

    def measure_stacked(self, answers: Answers) -> dict[str, dict[str, float]]:
        """The metrics of models, and of all together."""
        asked = (("val", self._teaching), ("test", self.questions))
        taught = teach(
            *(
                Asked(each, answers[split], warm_ends(self._tables, self._meta, self.task, split))
                for split, each in asked
            )
        )
        return self._metrics(answers["test"] | {STACKED: taught.answer}, taught.senders)

    @functools.cached_property
    def _teaching(self) -> Questions:
        return self._asked("val", None, TEACHING_PAIRS)

    def _asked(self, split: str, ranking: Ranking | None, sender_pairs: int) -> Questions:
        at = (self.task, split)
        pairs = read_pairs(self._tables, *at)
        turned = sender_ranking(self._tables, self._meta, *at, pairs, sender_pairs)
        return Questions(pairs, ranking, turned)

    def _metrics(
        self, answers: dict[str, Answer], of_senders: dict[str, SenderWeights]
    ) -> dict[str, dict[str, float]]:
        task = self._meta.tasks[self.task]
        of_all = scored(self.questions, answers.items(), task, of_senders)
        found = measurements.metrics_of(of_all, list(answers))
        return {
            method: {name: each[name] for name in METRICS if name in each}
            for method, each in found.items()
        }


def output_of(row: str, seed: int) -> str:
    """Folder of a row's model."""
    return f"{row.replace(', ', '_').replace(' + ', '_')}-{seed}"


def train(workdir: Path, config: GraphTrainConfig, test: TestSplit) -> dict[str, float]:
    """Trains, and measures the test split and how much was sampled."""
    train_graph.run(config, workdir)
    scorer = GraphPairScorer(workdir, config.output, "split")
    found = test.measure(GraphModel(scorer, test.task, "test", True))
    return found | {NEIGHBOURS: sampled(workdir / config.output) / 1e3}


def sampled(folder: Path) -> float:
    """Edges that a step of a training sampled, on average."""
    lines = map(json.loads, (folder / LOGGED).read_text("utf-8").splitlines())
    return float(np.mean([line[NEIGHBOURS] for line in lines if line["split"] == "train"]))


def row_found(
    workdir: Path,
    name: str,
    config: GraphTrainConfig,
    seeds: list[int],
    record: Record,
    test: TestSplit,
) -> list[dict[str, float]]:
    """What each seed gives, all of them trained for as many steps as the preset's first one."""
    found = []
    for seed in seeds:
        known = record.found(name, seed)
        if known is None:
            output = output_of(name, seed)
            own = dataclasses.replace(config, seed=seed, output=output)
            settled = record.settled(BOTH)
            if settled is not None and not (name == BOTH and seed == seeds[0]):
                own = dataclasses.replace(own, plan=as_long_as(own.plan, settled))
            known = train(workdir, own, test)
            if settled is None:
                record.settle(BOTH, workdir / output / PLAN)
            record.keep(name, seed, known)
        found.append(known)
    return found


def stack_found(
    workdir: Path, seeds: list[int], record: Record, test: TestSplit
) -> list[dict[str, float]]:
    """What each seed's models give together; the rows of the models are kept anew with it."""

    @functools.cache
    def of_text() -> Answers:
        text = TextModel(TextPairScorer.open(workdir), test.task)
        return test.answers({TEXT: lambda split: text})

    for seed in seeds:
        if record.found(STACKED, seed) is not None:
            continue
        scorers = {
            row: GraphPairScorer(workdir, output_of(row, seed), "split") for row in (GRAPH, BOTH)
        }
        of_graph = test.answers(
            {
                row: functools.partial(GraphModel, scorer, test.task, ranks=True)
                for row, scorer in scorers.items()
            }
        )
        measured = test.measure_stacked({s: of_text()[s] | of_graph[s] for s in of_graph})
        for name, each in measured.items():
            record.keep(name, seed, (record.found(name, seed) or {}) | each)
    return [record.found(STACKED, seed) for seed in seeds]


def missed(
    found: dict[str, list[dict[str, float]]],
    reference: dict[str, float],
    of_senders: dict[str, dict[str, float]],
) -> list[str]:
    """Which of the bars are missed.

    Args:
      found: By row, what the seeds gave.
      reference: Metrics of the set's `hybrid_gbdt`.
      of_senders: By reference method, metrics of the other direction.
    """

    def mean(name: str, metric: str) -> float:
        return float(np.mean([each[metric] for each in found[name]]))

    bars = {
        f"{metric} of {other}": (mean(STACKED, metric), value[metric])
        for metric in DECIDING
        for other, value in (("text", found[TEXT][0]), ("hybrid_gbdt", reference))
        if metric in value
    }
    below = [name for name, (ours, theirs) in bars.items() if ours <= theirs]
    if of_senders:
        best = max(of_senders, key=lambda name: of_senders[name]["recall@100"])
        if mean(STACKED, WEIGHED_RECALL) <= of_senders[best]["recall@100"]:
            below.append(f"{WEIGHED_RECALL} of {best}")
    saved = 1.0 - mean(GROWN, NEIGHBOURS) / mean(BOTH, NEIGHBOURS)
    change = mean(GROWN, DECIDING[0]) - mean(BOTH, DECIDING[0])
    print(f"\nAdaptive sampling: {saved:.1%} fewer neighbours, {DECIDING[0]} {change:+.4f}.")
    if saved < LEAST_SAVED or change < -MOST_LOST:
        below.append("adaptive sampling")
    return below


def main() -> int:
    """Trains all rows and prints the table."""
    parser = argparse.ArgumentParser(description="Quality of the graph half.")
    parser.add_argument("data", help="folder of tables, or `market`")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--record", type=Path, default=Path("bench/results/graph_quality.json"))
    options = parser.parse_args()
    workdir: Path = options.workdir
    config = prepare(options.data, workdir)
    meta = read_meta(workdir / "tables")
    record = Record(options.record, meta.dataset)
    print(f"{meta.dataset}, test split, split rule, {os.cpu_count()} cores.\n")
    columns = (*METRICS, NEIGHBOURS)
    print(f"| row | seeds | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 2) + "|")
    given = meta.reference or {}
    reference = given.get("methods", {}).get("hybrid_gbdt", {})
    of_senders = given.get("rank_members_for_job", {}).get("methods", {})
    test = TestSplit(workdir)
    known = record.found(TEXT, 0)
    if known is None:
        known = test.measure(TextModel(TextPairScorer.open(workdir), test.task))
        record.keep(TEXT, 0, known)
    found = {
        name: row_found(workdir, name, training, options.seeds, record, test)
        for name, training in rows(config.train_graph).items()
    }
    found[STACKED] = stack_found(workdir, options.seeds, record, test)
    for name in (BOTH, GRAPH, GROWN):
        found[name] = [record.found(name, seed) for seed in options.seeds]
    found[TEXT] = [record.found(TEXT, 0)]
    for name, each in {"hybrid_gbdt": [reference], **found}.items():
        print(f"| {name} | {len(each)} | {' | '.join(cells(each, columns))} |")
    below = missed(found, reference, of_senders)
    print(f"\nMissed: {', '.join(below) or 'nothing'}.")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
