"""`star audit-leaks`: plants what training may not see, and fails if any of it reaches a loss.

Reads `W/tables`, `W/graph` and, with text features, `W/text_embeddings`, or `W/text` where the
training encodes texts itself; writes `W/leaks`. The
graph is built again for every kind of canary (`pipeline/canaries.py`). Batches of early training
examples are then sampled as in training: none may hold a canary, and with the future changed the
batches, the loss and its gradient must be the same in every bit. That the canaries can be reached
at all is shown by sampling with the rules off. Neighbours by rank have scores and no edges that
could be told apart: there the future alone is audited, and what is reached without rules counts
the arrays that it changes.
"""

import dataclasses
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Int

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.graph.batches import PairBatch
from star_jax.graph.build import BuildOptions, build
from star_jax.graph.build_source import GraphTables
from star_jax.graph.engines.drawing import Drawing
from star_jax.graph.engines.protocol import GraphEngine
from star_jax.graph.model import ROLES, GraphBatch, LinkTask, init_model
from star_jax.graph.store import GraphStore
from star_jax.jobs.build_graph import files_of
from star_jax.parallel.mesh import one_device
from star_jax.pipeline import canaries
from star_jax.pipeline.graph_engines import make_engine
from star_jax.pipeline.graph_loader import TRAIN_SPLITS, Groups, Pairs, PairSampler, RoleBudgets
from star_jax.pipeline.graph_model import GraphModelFile, open_training_store
from star_jax.pipeline.graph_text import joined, open_text, with_text
from star_jax.pipeline.graph_text_validation import EncodedTexts
from star_jax.pipeline.graph_training import GraphTrainConfig, describe, make_model_loss
from star_jax.pipeline.tables.read import TablesMeta, read_meta, read_pairs
from star_jax.shapes import NO_TIME

KIND = "leaks"
_EARLY = 0.5  # Share of the training groups, by time, that examples are taken from.
_GROUPS = 64  # Examples of one task.
_SINGLE = 16  # Of those, for the canaries that only their own example may not see.
_ALL_SPLITS = 0b1111

_log = logging.getLogger(__name__)


class _Examples(NamedTuple):
    """Training examples of one task."""

    groups: Groups
    chosen: Int[np.ndarray, " G"]  # Which of them.
    first: int  # Number of the first one across tasks, from 1 on.
    pairs: Pairs
    budgets: RoleBudgets


class _Graph(NamedTuple):
    """A graph and the engine of the config over it, on one device."""

    store: GraphStore
    engine: GraphEngine
    draw: Drawing

    @classmethod
    def of(cls, config: GraphTrainConfig, store: GraphStore) -> "_Graph":
        mesh = one_device()
        engine = make_engine(config.engine, store, mesh)
        return cls(store, engine, Drawing(engine))


class _Audit(NamedTuple):
    """What is sampled, and how."""

    config: GraphTrainConfig
    workdir: Path
    file: GraphModelFile
    meta: TablesMeta
    examples: dict[str, _Examples]

    def sampler(self, graph: _Graph, task: LinkTask, *, rules: bool) -> PairSampler:
        """As in training; without rules, canaries are as visible as any edge."""
        sampling = self.file.sampling
        if not rules:
            sampler = dataclasses.replace(sampling.sampler, max_age=None)
            sampling = dataclasses.replace(sampling, sampler=sampler)
        return PairSampler(
            graph.store,
            task,
            tuple(self.meta.tasks[task.name].edge_types) if rules else (),
            sampling,
            visible_splits=TRAIN_SPLITS if rules else _ALL_SPLITS,
            use_time=rules,
            engine=graph.engine,
        )

    def batches(self, graph: _Graph, *, rules: bool) -> dict[str, PairBatch]:
        """All examples, one batch per task."""
        found = {}
        for task in self.file.tasks:
            made = self.examples[task.name]
            sampler = self.sampler(graph, task, rules=rules)
            size = len(made.pairs.label)
            batch, _ = sampler(made.pairs, made.budgets, size, self.config.seed)
            batch = graph.draw(batch)
            if self.config.model.decoder.kind == "softmax":  # Any links do: both graphs have them.
                batch = batch._replace(linked=np.eye(size, dtype=np.bool_))
            found[task.name] = batch
        return found

    def canaries(self, graph: _Graph, *, rules: bool) -> dict[str, int]:
        """Where canaries that are nobody's were sampled, and how many."""
        batches = self.batches(graph, rules=rules)
        return _counts((name, batch, 0) for name, batch in batches.items())

    def own_targets(self, graph: _Graph, *, rules: bool) -> dict[str, int]:
        """Where examples met their own pairs: those of others they may see, so one at a time."""

        def single() -> Iterator[tuple[str, PairBatch, int]]:
            for task in self.file.tasks:
                made = self.examples[task.name]
                sampler = self.sampler(graph, task, rules=rules)
                for number, group in enumerate(made.chosen[:_SINGLE]):
                    pairs = made.groups.take(np.asarray([group]))
                    size = len(made.pairs.label)
                    batch, _ = sampler(pairs, made.budgets, size, self.config.seed)
                    batch = graph.draw(batch)
                    yield task.name, batch, made.first + number

        return _counts(single())


def run(config: GraphTrainConfig, workdir: Path) -> None:
    """Audits the sampling of a training config.

    Raises:
      InputError: A canary was seen, or none could have been.
    """
    meta = read_meta(workdir / "tables")
    store = open_training_store(workdir, config.model.features, config.text_encoder)
    file = describe(config, workdir, store, meta)
    graph = _Graph.of(config, store)
    audit = _Audit(config, workdir, file, meta, _examples(config, workdir, file, graph, meta))
    clean = audit.batches(graph, rules=True)
    scratch = workdir / ".leaks"
    shutil.rmtree(scratch, ignore_errors=True)
    found = {}
    try:
        for kind in ("future",) if config.sampler.by_rank else canaries.KINDS:
            planted = _planted(kind, audit, store, clean, workdir, scratch / kind)
            found[kind] = _compare(kind, audit, graph, clean, _Graph.of(config, planted))
            _log.info("%s: %s", kind, found[kind])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    problems = [f"{kind}: {each['problem']}" for kind, each in found.items() if each["problem"]]
    with artefacts.writing(workdir / KIND, KIND) as partial:
        content = {"passed": not problems, "kinds": found}
        artefacts.write_text(partial / "audit.json", json.dumps(content, indent=1))
        artefacts.set_meta(partial, {"passed": not problems, "graph": store.version})
    if problems:
        raise InputError(f"leaks: {'; '.join(problems)}; see {workdir / KIND / 'audit.json'}")


def _examples(
    config: GraphTrainConfig,
    workdir: Path,
    file: GraphModelFile,
    graph: _Graph,
    meta: TablesMeta,
) -> dict[str, _Examples]:
    """Groups of the earlier half of the training pairs, drawn at random."""
    found: dict[str, _Examples] = {}
    for task in file.tasks:
        groups = Groups(read_pairs(workdir / "tables", task.name, "train"))
        time = groups.take(np.arange(len(groups))).time
        timed = time != NO_TIME
        if not timed.any():
            raise InputError(f"the training pairs of {task.name} have no times to audit")
        early = np.flatnonzero(timed & (time <= np.quantile(time[timed], _EARLY)))
        rng = np.random.default_rng(config.seed)
        chosen = np.sort(rng.permutation(early)[:_GROUPS])
        pairs = groups.take(chosen)
        sampler = _Audit(config, workdir, file, meta, {}).sampler(graph, task, rules=True)
        budgets = sampler.budgets(
            lambda _, pairs=pairs: pairs,
            num_groups=len(chosen),
            num_pairs=len(pairs.label),
            num_batches=1,
        )
        first = 1 + sum(len(each.chosen) for each in found.values())
        found[task.name] = _Examples(groups, chosen, first, pairs, budgets)
    return found


def _planted(
    kind: canaries.Kind,
    audit: _Audit,
    store: GraphStore,
    clean: dict[str, PairBatch],
    workdir: Path,
    folder: Path,
) -> GraphStore:
    """The graph with canaries of one kind."""
    folder.mkdir(parents=True)
    time = np.concatenate([each.pairs.time for each in audit.examples.values()])
    targets = [
        canaries.Targets(
            tuple(audit.meta.tasks[name].edge_types),
            made.pairs.sender,
            made.pairs.receiver,
            made.first + made.pairs.group,
        )
        for name, made in audit.examples.items()
    ]
    tables: GraphTables = canaries.plant(
        kind,
        files_of(audit.meta, workdir / "tables", store.meta.num_texts),
        store.meta.schema,
        folder,
        near=_reached(store, clean),
        times=canaries.Times(int(time.min()) - 1, int(time.min()), int(time.max())),
        targets=targets,
        seed=audit.config.seed,
    )
    options = BuildOptions(age_unit=store.meta.age_unit, text_kinds=store.meta.text_kind)
    with artefacts.writing(folder / "graph", "graph") as output:
        build(output, store.meta.schema, tables, store.meta.time_unit, options)
    return GraphStore.open(folder / "graph", store.text, store.min_edges)


def _reached(store: GraphStore, clean: dict[str, PairBatch]) -> dict[str, Int[np.ndarray, " _"]]:
    """Nodes in the samples that enough training edges end in: a canary does not make them so."""
    found: dict[str, list[np.ndarray]] = {}
    for batch in clean.values():
        for role in ROLES:
            for name, table in getattr(batch, role).nodes.items():
                found.setdefault(name, []).append(np.asarray(table.node)[table.mask & table.seen])
    return {name: np.unique(np.concatenate(parts)) for name, parts in found.items()}


def _compare(
    kind: canaries.Kind,
    audit: _Audit,
    graph: _Graph,
    clean: dict[str, PairBatch],
    planted: _Graph,
) -> dict[str, Any]:
    """What was reached with the rules and without, and what differs."""
    count = audit.own_targets if kind == "target" else audit.canaries
    reached = count(planted, rules=True)
    if audit.config.sampler.by_rank:
        unruled = (audit.batches(each, rules=False) for each in (graph, planted))
        reachable = _changed(*unruled)
    else:
        reachable = sum(count(planted, rules=False).values())
    result = {"reachable": reachable, "reached": reached, "problem": ""}
    if reached:
        where = ", ".join(f"{number} by {name}" for name, number in reached.items())
        result["problem"] = f"canaries were sampled, {where}"
    elif not reachable:
        result["problem"] = "no canary can be reached even with the rules off: nothing is shown"
    elif kind == "future":
        with_rules = audit.batches(planted, rules=True)
        loss = _loss(audit)
        result |= {"loss": loss(clean), "loss_planted": loss(with_rules)}
        if _changed(clean, with_rules):
            result["problem"] = "the future changed a batch"
        elif result["loss"] != result["loss_planted"]:
            result["problem"] = "the future changed the loss or its gradient"
    return result


def _changed(a: dict[str, PairBatch], b: dict[str, PairBatch]) -> int:
    """How many arrays differ."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(not np.array_equal(x, y) for x, y in leaves)


def _counts(batches: Iterable[tuple[str, PairBatch, int]]) -> dict[str, int]:
    """Task, role, relation and hop -> canaries of the example named beside the batch."""
    found: Counter[str] = Counter()
    for task, batch, example in batches:
        for role in ROLES:
            for where, number in canaries.count(getattr(batch, role), example).items():
                found[f"{task} {role} {where}"] += number
    return dict(found)


def _loss(audit: _Audit) -> Callable[[dict[str, PairBatch]], list[float]]:
    """Gives the training loss of a fresh model, and the norm of its gradient."""
    config, model = audit.config, audit.file.build()
    params, statistics = init_model(model, config.seed)
    loss, texts, frozen = make_model_loss(config, model, audit.meta), None, {}
    if config.text_encoder is not None:
        mesh = one_device()
        text = open_text(config.text_encoder, audit.workdir / "text", mesh, seed=config.seed)
        texts = EncodedTexts(config.text_encoder, text, audit.workdir, mesh, seed=config.seed)
        params, loss, frozen = joined(params, text.trainable), with_text(loss, text), text.frozen
    key = jax.random.key(config.seed)
    both = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def of_batches(batches: dict[str, PairBatch]) -> list[float]:
        tasks = {name: jax.tree.map(lambda leaf: leaf[None], b) for name, b in batches.items()}
        mask = np.concatenate([batch.mask for batch in tasks.values()], axis=1)
        batch = GraphBatch(tasks, mask)
        tokens = batch if texts is None else texts.batches(lambda _: batch)(0)
        (value, _), gradient = both(params, statistics, frozen, tokens, key)
        return [float(value), float(optax.tree.norm(gradient))]

    return of_batches
