"""Scores pairs and rankings with a trained graph model, under the split or the time rule."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int, Int32

from star_jax.graph.batches import padded
from star_jax.graph.decoders import SeedVectors
from star_jax.graph.model import GraphModel, LinkTask, Role
from star_jax.graph.store import GraphStore
from star_jax.parallel.mesh import one_device
from star_jax.pipeline.graph_embedding import (
    Embedder,
    Sampled,
    Seeds,
    Wanted,
    distinct,
    splits_before,
    view_of_splits,
    visible_until,
)
from star_jax.pipeline.graph_loader import Groups, PairSampler, Sampling
from star_jax.pipeline.graph_model import open_trained
from star_jax.pipeline.graph_programs import RowShards, decode, decode_grid, pair_logits
from star_jax.pipeline.progress import Work
from star_jax.pipeline.tables.read import PairTable, Ranking
from star_jax.shapes import PyTree

Rule = Literal["split", "time"]

_BATCH_PAIRS = 1024
_BLOCK_PAIRS = 1 << 14  # Of vectors that are there.
_GRID_RECEIVERS = 1 << 11  # Of a block of a grid.


class PairDecoder:
    """One task's decoder, compiled for blocks of pairs."""

    def __init__(self, model: GraphModel, task: LinkTask, rows: RowShards) -> None:
        """Compiles nothing yet; `rows` takes a block to each part."""
        self._model, self._task, self._rows = model, task, rows

    def __call__(
        self,
        variables: PyTree,
        senders: SeedVectors,
        receivers: SeedVectors,
        sender_row: Int[np.ndarray, " B"],
        receiver_row: Int[np.ndarray, " B"],
    ) -> Float32[np.ndarray, " B"]:
        """Logit of every pair of rows."""
        num_pairs = len(sender_row)
        block = min(_BLOCK_PAIRS, 8 * math.ceil(max(num_pairs, 1) / (8 * self._rows.count)))
        logits = np.empty(num_pairs, np.float32)
        work = Work("scoring by graph", num_pairs, "pairs")
        for group in self._rows.groups(num_pairs, block):
            parts = []
            for part in (group[number] for number in self._rows.own):
                rows = [padded(row[part], block) for row in (sender_row, receiver_row)]
                parts.append((senders.take(rows[0]), receivers.take(rows[1])))
            found = self._rows.run(decode, self._model, variables, parts, task=self._task.name)
            size = group[-1].stop - group[0].start
            logits[group[0].start : group[-1].stop] = found.reshape(-1)[:size]
            work.advance(size)
        return logits

    def grid(
        self, variables: PyTree, senders: SeedVectors, receivers: SeedVectors
    ) -> Float32[np.ndarray, "Q C"]:
        """Logit of every sender with every receiver."""
        num_senders, num_receivers = len(senders.embedding), len(receivers.embedding)
        width = max(1, min(num_receivers, _GRID_RECEIVERS))
        height = max(1, min(_BLOCK_PAIRS // width, math.ceil(num_senders / self._rows.count)))
        logits = np.empty((num_senders, num_receivers), np.float32)
        work = Work("ranking by graph", num_senders, "queries")
        for group in self._rows.groups(num_senders, height):
            rows = slice(group[0].start, group[-1].stop)
            blocks = [
                senders.take(padded(np.arange(part.start, part.stop), height))
                for part in (group[number] for number in self._rows.own)
            ]
            for start in range(0, num_receivers, width):
                columns = slice(start, min(start + width, num_receivers))
                block = receivers.take(padded(np.arange(columns.start, columns.stop), width))
                parts = [(each, block) for each in blocks]
                found = self._rows.run(
                    decode_grid, self._model, variables, parts, task=self._task.name
                )
                found = found.reshape(-1, width)[: rows.stop - rows.start]
                logits[rows, columns] = found[:, : columns.stop - columns.start]
            work.advance(rows.stop - rows.start)
        return logits


class Prepared(NamedTuple):
    """Pairs whose different seeds were sampled; `sender_row` and `receiver_row` point at them."""

    seeds: dict[Role, Sampled]
    nodes: dict[Role, Int32[np.ndarray, " S"]]  # Of the seeds, in their order.
    sender_row: Int[np.ndarray, " B"]
    receiver_row: Int[np.ndarray, " B"]


class SplitScoring:
    """One task's pairs under the split rule, with any variables."""

    def __init__(
        self,
        model: GraphModel,
        store: GraphStore,
        embedder: Embedder,
        rows: RowShards,
        task: LinkTask,
        split: str,
    ) -> None:
        """Fixes what is visible.

        Args:
          model: Without a mapped axis.
          store: The graph.
          embedder: Of the model; may be shared by tasks and splits.
          rows: Where blocks of pairs go.
          task: What the pairs are of.
          split: "val" or "test".
        """
        self._task, self._embedder = task, embedder
        self._visible = splits_before(split)
        self._until = visible_until(store, self._visible)
        self._store = view_of_splits(store, self._visible)
        self._decoder = PairDecoder(model, task, rows)

    def prepare(self, pairs: PairTable) -> Prepared:
        """Samples the different seeds of both roles, to be scored with any variables."""
        senders, receivers, sender_row, receiver_row = self._ends(pairs)
        ends: dict[Role, Seeds] = {"sender": senders, "receiver": receivers}
        return Prepared(
            {role: self._embedder.prepare(self._wanted(role, s)) for role, s in ends.items()},
            {role: seeds.node for role, seeds in ends.items()},
            sender_row,
            receiver_row,
        )

    def ends(self, variables: PyTree, prepared: Prepared) -> dict[Role, SeedVectors]:
        """Vectors of the different seeds of prepared pairs."""
        return {
            role: self._embedder(variables, role, getattr(self._task, role), seeds)
            for role, seeds in prepared.seeds.items()
        }

    def score(
        self, variables: PyTree, prepared: Prepared, ends: Mapping[Role, SeedVectors]
    ) -> Float32[np.ndarray, " B"]:
        """Logit of every prepared pair, from the vectors of its ends."""
        rows = (prepared.sender_row, prepared.receiver_row)
        return self._decoder(variables, ends["sender"], ends["receiver"], *rows)

    def score_once(self, variables: PyTree, pairs: PairTable) -> Float32[np.ndarray, " B"]:
        """Logit of every pair; few samples are held at a time."""
        senders, receivers, *rows = self._ends(pairs)
        return self._decoder(
            variables,
            self.vectors(variables, "sender", senders),
            self.vectors(variables, "receiver", receivers),
            *rows,
        )

    def grid(self, variables: PyTree, ranking: Ranking) -> Float32[np.ndarray, "Q C"]:
        """Logit of every candidate for every query."""
        queries = Seeds(ranking.sender, ranking.sender_text, ranking.t)
        candidates = self._receivers(ranking.candidates, ranking.candidate_text)
        return self._decoder.grid(
            variables,
            self.vectors(variables, "sender", queries),
            self.vectors(variables, "receiver", candidates),
        )

    def vectors(self, variables: PyTree, role: Role, seeds: Seeds) -> SeedVectors:
        """Vectors of seeds, in their order."""
        return self._embedder.embed(variables, self._wanted(role, seeds))

    def _wanted(self, role: Role, seeds: Seeds) -> Wanted:
        return Wanted(self._store, role, getattr(self._task, role), seeds, self._visible)

    def _ends(
        self, pairs: PairTable
    ) -> tuple[Seeds, Seeds, Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
        """The different seeds of both roles, and every pair's rows among them."""
        senders, sender_row = distinct(Seeds(pairs.sender, pairs.sender_text, pairs.t))
        receivers, receiver_row = distinct(self._receivers(pairs.receiver, pairs.receiver_text))
        return senders, receivers, sender_row, receiver_row

    def _receivers(self, node: Int[np.ndarray, " S"], text: Int[np.ndarray, " S"]) -> Seeds:
        """A receiver looks the same to all senders: as after the last visible edge."""
        return Seeds(node, text, np.full(len(node), self._until, np.int64))


class TimeScoring:
    """One task's pairs as in training: every group sees only what was there at its time."""

    def __init__(
        self,
        model: GraphModel,
        store: GraphStore,
        sampling: Sampling,
        rows: RowShards,
        task: LinkTask,
        split: str,
    ) -> None:
        """Fixes what is visible; arguments as those of `SplitScoring`, `sampling` as in training.

        No pair hides an edge: the links of `split` are out of sight altogether.
        """
        visible = splits_before(split)
        self._sampler = PairSampler(store, task, (), sampling, visible_splits=visible)
        self._model, self._rows, self._task = model, rows, task

    def score(self, variables: PyTree, pairs: PairTable) -> Float32[np.ndarray, " B"]:
        """Logit of every pair."""
        groups = Groups(pairs)
        batches = _whole_groups(groups.sizes, _BATCH_PAIRS)
        num_groups = max(len(chosen) for chosen in batches)
        num_pairs = max(int(groups.sizes[chosen].sum()) for chosen in batches)
        budgets = self._sampler.budgets(
            lambda number: groups.take(batches[number]),
            num_groups=num_groups,
            num_pairs=num_pairs,
            num_batches=len(batches),
        )
        found = []
        work = Work("scoring by graph under strict time", len(pairs.label), "pairs")
        for group in self._rows.groups(len(batches), 1):
            numbers = [range(len(batches))[part] for part in group]
            parts = []
            for own in (numbers[part] for part in self._rows.own):
                chosen, key = (batches[own[0]], own[0]) if own else (np.zeros(0, np.int64), 0)
                batch, num_cut = self._sampler(groups.take(chosen), budgets, num_pairs, key)
                assert num_cut == 0  # The calibration drew with the same keys.
                parts.append(batch)
            made = self._rows.run(pair_logits, self._model, variables, parts, task=self._task.name)
            for logits, own in zip(made, numbers, strict=True):
                size = int(groups.sizes[batches[own[0]]].sum()) if own else 0
                found.append(logits[:size])
                work.advance(size)
        logits = np.empty(len(pairs.label), np.float32)
        logits[groups.order] = np.concatenate(found)
        return logits

    def grid(self, variables: PyTree, ranking: Ranking) -> Float32[np.ndarray, "Q C"]:
        """Logit of every candidate for every query; each query samples all candidates anew."""
        num_queries, num_candidates = len(ranking.sender), len(ranking.candidates)

        def repeated(column: np.ndarray) -> np.ndarray:
            return np.repeat(column, num_candidates)

        size = num_queries * num_candidates
        pairs = PairTable(
            sender=repeated(ranking.sender),
            receiver=np.tile(ranking.candidates, num_queries),
            label=np.zeros(size, np.int8),
            negative=np.zeros(size, np.str_),
            t=repeated(ranking.t),
            group=repeated(np.arange(num_queries, dtype=np.int32)),
            sender_text=repeated(ranking.sender_text),
            sender_resume=repeated(ranking.sender_resume),
            receiver_text=np.tile(ranking.candidate_text, num_queries),
            warm_sender=np.ones(size, bool),
            warm_receiver=np.ones(size, bool),
            true_logit=np.full(size, np.nan, np.float32),
            slice=np.zeros(size, np.str_),
        )
        return self.score(variables, pairs).reshape(num_queries, num_candidates)


class GraphPairScorer:
    """A trained graph model, as `evaluate` asks it.

    Attributes:
      trained: The model.
      tasks: Those that it was trained on.
    """

    def __init__(self, workdir: Path, model: str, rule: Rule, mesh: Mesh | None = None) -> None:
        """Opens the model and its graph.

        Args:
          workdir: With the tables, the graph, the text vectors and the model.
          model: Folder of the model, "graph_model" or "graph_only_model".
          rule: "split": edges are visible by their split alone; "time": and only before the pair.
          mesh: Where the model lies, and what rows are split over; None: the first device.

        Raises:
          InputError: A stage is missing, or its inputs changed.
        """
        mesh = one_device() if mesh is None else mesh
        self.trained = open_trained(workdir, model, mesh)
        self.tasks = tuple(task.name for task in self.trained.model.tasks)
        self._rule, self._rows = rule, RowShards(mesh)
        self._embedder = Embedder(self.trained.model, self.trained.file.sampling, self._rows)
        self._scoring: dict[tuple[str, str], SplitScoring | TimeScoring] = {}

    def score(
        self, pairs: PairTable, split: str, task: str | None = None
    ) -> Float32[np.ndarray, " B"]:
        """Logit of every pair; without `task`, of the main task."""
        scoring = self.of(task or self.tasks[0], split)
        variables = self.trained.variables
        if isinstance(scoring, SplitScoring):
            return scoring.score_once(variables, pairs)
        return scoring.score(variables, pairs)

    def score_grid(self, task: str, ranking: Ranking, split: str) -> Float32[np.ndarray, "Q C"]:
        """Logit of every candidate for every query."""
        return self.of(task, split).grid(self.trained.variables, ranking)

    def of(self, task: str, split: str) -> SplitScoring | TimeScoring:
        """What scores one task and split."""
        if (task, split) not in self._scoring:
            self._scoring[task, split] = self._make(task, split)
        return self._scoring[task, split]

    def _make(self, name: str, split: str) -> SplitScoring | TimeScoring:
        trained = self.trained
        task = next(each for each in trained.model.tasks if each.name == name)
        rows = self._rows
        if self._rule == "split":
            return SplitScoring(trained.model, trained.store, self._embedder, rows, task, split)
        return TimeScoring(trained.model, trained.store, trained.file.sampling, rows, task, split)


def _whole_groups(sizes: Int[np.ndarray, " G"], most: int) -> list[Int[np.ndarray, " _"]]:
    """Groups in order, as many at a time as have at most `most` pairs (or one larger one)."""
    batches, chosen, filled = [], [], 0
    for group, size in enumerate(sizes.tolist()):
        if chosen and filled + size > most:
            batches.append(np.asarray(chosen))
            chosen, filled = [], 0
        chosen.append(group)
        filled += size
    return [*batches, np.asarray(chosen)]
