"""What consumers lose when embeddings are trained anew: three versions, and ways to map them back.

Run:
    PYTHONPATH=. python bench/compatibility.py DATA_DIR --workdir W [--seeds 0 1 2] [--steps 200]
    PYTHONPATH=. python bench/compatibility.py market --workdir W

Tables, the text half, its vectors and the graph are made once in W by the preset
configs/run/quickstart.py (configs/run/market.py of a synthetic market), or lie there already. The
text vectors stay as they are; the graph half has three versions:

    v1  trained on the first half of the training pairs, on the graph as it was then
    v2  the same model, on all of them
    v3  on all of them, twice as wide and one layer deeper

Consumers (configs/contract/default.py: logistic regression, boosted trees, a small network) are
trained once on the vectors of v1, as Hu et al. (2022) do, and read each later version

    keep old       not at all: they go on with v1
    no map         as it is; of another width it cannot be read
    ridge          through matrices fitted afterwards, one per version, multiplied
    joint          through matrices trained with the encoder, against the version before
    joint + ridge  through matrices fitted afterwards to the vectors of joint's encoders
    joint_multi    as joint, also against what the versions before that one see

`task` is the version's own model on the test split; its change is that against `no map`, that of
consumers against v1, in percent of the metric: of consumers that predict links, and of those that
predict attributes of nodes, where they have learned something (an AUC of 0.55 on v1); `anew`: of
those trained on the version itself, which is what a team would gain by training again. `mixed
recall@10` is that of an index of dot products whose two sides are of v1 and of the version. All
with the 95 % interval of the mean over seeds (Student's t). Every training is of the main task
alone and has as many steps, in smaller batches and over fewer neighbours than the preset has: they
are to be compared. What was found is kept in bench/results/compatibility.json and not done again.
Exit code 1: no way reaches parity at v3, which is that neither the task nor consumers lose more
than 1 % on average.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from bench.first_part import first_part
from bench.graph_quality import PREPARED, TestSplit
from bench.record import Record
from configs.contract import default as contract
from configs.run import market, quickstart, tiny
from star_jax.embeddings.transforms.files import read_chain, write_transform
from star_jax.embeddings.transforms.fit import TransformConfig
from star_jax.graph.samplers.fanouts import FanoutConfig
from star_jax.jobs import build_graph, check_consumers, export_graph, fit_transform, train_graph
from star_jax.jobs.evaluate import GraphModel
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.jobs.run import RunConfig, run_stages, stages
from star_jax.pipeline.consumers.limits import Limits
from star_jax.pipeline.graph_compatible import CompatibleConfig
from star_jax.pipeline.graph_scoring import GraphPairScorer
from star_jax.pipeline.graph_training import GraphTrainConfig
from star_jax.pipeline.tables.read import read_meta

KEPT, PLAIN, RIDGE, JOINT, MULTI = "keep old", "no map", "ridge", "joint", "joint_multi"
REFITTED = "joint + ridge"
MODES = (KEPT, PLAIN, RIDGE, JOINT, REFITTED, MULTI)
VERSIONS = ("v1", "v2", "v3")
FIRST = "first"  # Folder in W of what v1 sees.
SHARE = 0.5  # Of the training pairs, seen by v1.
FANOUTS = (16, 4)
BATCH_SIZE = 128
TASK = ("auc_uniform", "recall@10")
CHANGES = ("links", "attributes")
MOST_LOST = 1.0  # Percent, of what is at parity.
LEARNED = 0.55  # AUC on v1 of the consumers that count.
SPACES = ("alignment", "relative", "overlap@10", "mixed recall@10")
COLUMNS = (
    *(f"task {metric}" for metric in TASK),
    "task",
    *CHANGES,
    *(f"{name} anew" for name in CHANGES),
    *SPACES,
)
_NO_LIMITS = Limits(**dict.fromkeys(field.name for field in dataclasses.fields(Limits)))


class Trained(NamedTuple):
    """One training's folders."""

    workdir: Path
    name: str
    fitted: bool = False  # Whether its map was fitted to its vectors, not trained with them.

    @property
    def vectors(self) -> Path:
        """Its embeddings."""
        return self.workdir / f"{self.name}-vectors"

    @property
    def map(self) -> Path:
        """To the version before, where it has one."""
        return self.workdir / f"{self.name}-{'ridge' if self.fitted else 'map'}"


def prepare(data: str, workdir: Path, num_steps: int) -> RunConfig:
    """Makes what all trainings read; returns the preset for the main task, so many short steps."""
    presets = {"market": market, "tiny": tiny}
    config = presets.get(data, quickstart).get_config()
    if data not in presets:
        tables = dataclasses.replace(config.tables, source=Path(data))
        config = dataclasses.replace(config, tables=tables)
    run_stages([stage for stage in stages(config) if stage.name in PREPARED], workdir)
    first = workdir / FIRST
    first_part(workdir / "tables", first / "tables", SHARE)
    if not (first / "text_embeddings").exists():
        (first / "text_embeddings").symlink_to((workdir / "text_embeddings").resolve())
    if not (first / "graph").exists():
        build_graph.run(config.build_graph, first)
    main_task = next(iter(read_meta(workdir / "tables").tasks))
    graph = dataclasses.replace(
        config.train_graph,
        tasks=(main_task,),
        plan=dataclasses.replace(config.train_graph.plan, num_steps=num_steps, budget_s=None),
        fanouts=FanoutConfig(total=FANOUTS[: config.train_graph.model.encoder.layers]),
        batch_size=BATCH_SIZE,
    )
    return dataclasses.replace(config, train_graph=graph)


def wider_and_deeper(config: GraphTrainConfig) -> GraphTrainConfig:
    """Twice the width, and a layer more, of as many neighbours as the last one."""
    encoder = config.model.encoder
    larger = dataclasses.replace(encoder, dim=2 * encoder.dim, layers=encoder.layers + 1)
    total = config.fanouts.total
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, encoder=larger),
        fanouts=FanoutConfig(total=(*total, min(total[-1], 4))),
    )


class Trainer:
    """Trains, exports and maps the versions of one seed; what is there is not done again."""

    def __init__(self, workdir: Path, config: GraphTrainConfig, seed: int) -> None:
        """Takes the training of v1 and v2."""
        self._workdir, self._seed = workdir, seed
        self._configs = {"v1": config, "v2": config, "v3": wider_and_deeper(config)}

    def train(self, version: str, mode: str, compatible: CompatibleConfig | None = None) -> Trained:
        """The model of a version, its vectors and, trained with it, its map."""
        folder = self._workdir / FIRST if version == "v1" else self._workdir
        made = Trained(folder, f"{version}-{mode.replace(' ', '_')}-{self._seed}")
        if made.vectors.exists():
            return made
        config = dataclasses.replace(
            self._configs[version], seed=self._seed, output=made.name, compatible=compatible
        )
        train_graph.run(config, folder)
        export = GraphExportConfig(
            model=made.name, output=made.vectors.name, transform=made.map.name
        )
        export_graph.run(export, folder)
        return made

    def ridge(self, new: Trained, old: Trained) -> Trained:
        """The same model with a map that is fitted afterwards."""
        fitted = new._replace(fitted=True)
        if not fitted.map.exists():
            where = {"old": str(old.vectors), "new": str(new.vectors), "output": str(fitted.map)}
            fit_transform.run(TransformConfig(), **where)
        return fitted

    def lineage(self, mode: str) -> list[Trained]:
        """v1 to v3, each with a map to the one before, where the mode has maps."""
        first = self.train("v1", PLAIN)
        if mode in (RIDGE, REFITTED):
            found = [first]
            for new in self.lineage(PLAIN if mode == RIDGE else JOINT)[1:]:
                found.append(self.ridge(new, found[-1]))
            return found
        if mode not in (JOINT, MULTI):
            return [first, *(self.train(version, PLAIN) for version in VERSIONS[1:])]
        second = self.train("v2", JOINT, CompatibleConfig(old=str(first.vectors)))
        chain = (str(second.map),) if mode == MULTI else ()
        old = CompatibleConfig(
            old=str(second.vectors), mode="joint_multi" if chain else "joint", chain=chain
        )
        return [first, second, self.train("v3", mode, old)]


def own_task(model: Trained) -> dict[str, float]:
    """The version's own model on the main task's test split."""
    test = TestSplit(model.workdir, sender_pairs=0)
    scorer = GraphPairScorer(model.workdir, model.name, "split")
    found = test.measure(GraphModel(scorer, test.task, "test", True))
    return {f"task {metric}": found[metric] for metric in TASK if metric in found}


def consumed(workdir: Path, lineage: Sequence[Trained], mode: str) -> dict[str, float]:
    """What consumers of the first version make of the last one."""
    first, last = lineage[0], lineage[-1]
    way = mode.replace(" ", "_")
    output, chain = (last.workdir / f"{last.name}-{way}-{what}" for what in ("contract", "chain"))
    if mode != PLAIN:
        write_transform(chain, read_chain([each.map for each in reversed(lineage[1:])]), {})
    config = dataclasses.replace(contract.get_config(), limits=_NO_LIMITS)
    check_consumers.run(
        config,
        workdir,
        old=str(first.vectors),
        new=str(last.vectors),
        transform=None if mode == PLAIN else str(chain),
        output=str(output),
    )
    return summary(json.loads((output / "contract.json").read_text("utf-8")))


def summary(content: dict[str, Any]) -> dict[str, float]:
    """Means over consumers, questions and tables of a contract; changes in percent."""
    changes: dict[str, list[float]] = {}
    for row in content["consumers"]:
        if row["old"] < LEARNED:
            continue
        kind = "attributes" if row["metric"] == "auc" else "links"
        for name, column in ((kind, "served"), (f"{kind} anew", "retrained")):
            changes.setdefault(name, []).append(100 * (row[column] / row["old"] - 1))
    found = {name: float(np.mean(values)) for name, values in changes.items()}
    keys = ("alignment_error", "relative_alignment_error", "overlap@10_served")
    for name, key in zip(SPACES, keys, strict=False):
        found[name] = float(np.mean([row[key] for row in content["spaces"]]))
    mixed = [row for row in content["indexes"] if row["queries"] != row["candidates"]]
    if mixed:
        found[SPACES[-1]] = float(np.mean([row["recall@10"] for row in mixed]))
    return found


def rows_of(workdir: Path, config: GraphTrainConfig, seed: int, record: Record) -> None:
    """Measures every version in every mode with one seed."""
    trainer = Trainer(workdir, config, seed)
    for mode in MODES:
        for number, version in enumerate(VERSIONS[1:], start=2):
            name = f"{version} {mode}"
            if record.found(name, seed) is not None or name == f"v2 {MULTI}":
                continue  # With one version before it there is nothing more to align with.
            if mode == KEPT:
                first = trainer.train("v1", PLAIN)
                found = own_task(first) | dict.fromkeys(CHANGES, 0.0)
                same = dict(zip(SPACES, (0.0, 0.0, 1.0), strict=False))
                record.keep(name, seed, found | same)
                continue
            lineage = trainer.lineage(mode)[:number]
            same_models = record.found(f"{version} {JOINT}", seed) if mode == REFITTED else None
            found = dict(same_models or own_task(lineage[-1]))
            if mode != PLAIN or version == "v2":
                found |= consumed(workdir, lineage, mode)
            record.keep(name, seed, found)


def interval(values: Sequence[float]) -> str:
    """Mean, and the 95 % interval of it over seeds."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.4f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(stats.sem(values))
    return f"{mean:.4f} [{mean - half:.4f}, {mean + half:.4f}]"


def with_changes(record: Record, version: str, mode: str, seeds: Sequence[int]) -> list[dict]:
    """What the seeds of a row gave, with the task's change against the version without a map."""
    found = []
    for seed in seeds:
        each = record.found(f"{version} {mode}", seed)
        plain = record.found(f"{version} {PLAIN}", seed)
        key = f"task {TASK[0]}"
        found.append(each | {"task": 100 * (each[key] / plain[key] - 1)})
    return found


def at_parity(found: Sequence[dict[str, float]]) -> bool:
    """Whether neither the task nor any kind of consumers loses more than that on average."""
    changes = [[each[name] for each in found if name in each] for name in ("task", *CHANGES)]
    return all(float(np.mean(values)) >= -MOST_LOST for values in changes if values)


def main() -> int:
    """Trains and measures all rows, and prints the table."""
    parser = argparse.ArgumentParser(description="Consumers over three versions of embeddings.")
    parser.add_argument("data", help="folder of tables, `market`, or `tiny` to see that it runs")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200, help="of every training")
    parser.add_argument("--record", type=Path, default=Path("bench/results/compatibility.json"))
    options = parser.parse_args()
    workdir: Path = options.workdir
    config = prepare(options.data, workdir, options.steps)
    record = Record(options.record, read_meta(workdir / "tables").dataset)
    for seed in options.seeds:
        rows_of(workdir, config.train_graph, seed, record)
    print(f"{len(options.seeds)} seeds, {options.steps} steps of a training, changes in %.\n")
    print(f"| version | way | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    parity = []
    for version in VERSIONS[1:]:
        for mode in MODES:
            if (version, mode) == ("v2", MULTI):
                continue
            found = with_changes(record, version, mode, options.seeds)
            columns = [[each[name] for each in found if name in each] for name in COLUMNS]
            cells = [interval(values) if values else "-" for values in columns]
            print(f"| {version} | {mode} | {' | '.join(cells)} |")
            if version == VERSIONS[-1] and mode not in (KEPT, PLAIN) and at_parity(found):
                parity.append(mode)
    print(f"\nParity at {VERSIONS[-1]}: {', '.join(parity) or 'none'}.")
    return 0 if parity else 1


if __name__ == "__main__":
    sys.exit(main())
