"""Draws one block of a streamed market: its nodes, what begins or ends at them, texts and pairs.

A block of members has their edges, those of messages and contacts among them; a block of jobs has
the attributes of jobs. The parts of a block are files of a folder that appears whole.
"""

import functools
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from star_jax.pipeline.market.fixed_pairs import SLICE_NAMES, SPLITS, split_of
from star_jax.pipeline.market.scale.draws import Draws, below
from star_jax.pipeline.market.scale.latents import MOVES_EVERY, Latents
from star_jax.pipeline.market.scale.links import EdgeRows, job_links, member_links
from star_jax.pipeline.market.scale.size import Block, LargeMarketConfig, nodes_of
from star_jax.pipeline.market.scale.texts import TextVectors
from star_jax.pipeline.market.scale.visits import Applications, Visits
from star_jax.pipeline.market.truth import true_logit
from star_jax.pipeline.market.world import DAY_S, NEVER, START, TEST_FROM, VAL_FROM, Members

NODES, PAIRS = "nodes.parquet", "pairs.parquet"
WARM_UNTIL = (VAL_FROM, VAL_FROM, TEST_FROM)
"""Who applied before is known to a split: in an earlier one, and for train in train itself."""
_NEGATIVE_TRIES = 16
_ACCOUNTS, _WORKPLACES, _EMPLOYMENTS = 2, 3, 3
CATEGORIES = {
    "member": {"account": _ACCOUNTS + 1},
    "job": {"workplace": _WORKPLACES + 1, "employment": _EMPLOYMENTS + 1},
}
"""Columns and their codes, 0 for what is missing."""
DENSE = {"member": ["connections_log"], "job": ["openings_log"]}


def edges_part(name: str) -> str:
    """File of the edges of a type in a block's folder."""
    return f"edges-{name}.parquet"


def texts_part(state: int) -> str:
    """File of the text vectors; state 1: of those who moved."""
    return f"texts-{state}.npy"


def node_ids(node_type: str, index: Int[np.ndarray, " N"]) -> pa.Array:
    """The nodes' own ids."""
    parts = [pa.scalar(node_type), pa.array(index).cast(pa.string()), pa.scalar("-")]
    return pc.call_function("binary_join_element_wise", parts)


class BlockDrawer:
    """Draws any block of one market."""

    def __init__(self, config: LargeMarketConfig) -> None:
        """Measures rates on a sample."""
        self._seed, self._num_pairs = config.seed, config.num_pairs
        self._nodes = nodes_of(config)
        self._latents = Latents(config.seed, self._nodes)
        self._visits = Visits(config.seed, self._latents)
        self._texts = TextVectors(config.seed, config.text_size)

    def draw(self, block: Block, parts: Path) -> None:
        """Writes a block's folder unless it is there."""
        folder = parts / block.name
        if folder.is_dir():
            return
        partial = parts / f".{block.name}-{uuid.uuid4().hex}"
        partial.mkdir(parents=True)
        index = np.arange(block.start, block.stop)
        if block.node_type == "member":
            self._members(partial, block, index)
        elif block.node_type == "job":
            self._jobs(partial, block, index)
        else:
            _write_nodes(partial, block, index, None, {})
        if folder.is_dir():  # Another process was faster.
            shutil.rmtree(partial)
        else:
            partial.rename(folder)

    @functools.cached_property
    def pair_rates(self) -> dict[str, float]:
        """Share of the applications of a split that become pairs."""
        shares = self._visits.shares_of_splits()
        total = self._visits.applications_per_member * self._nodes["member"]
        wanted = {"train": self._num_pairs, "val": self._num_pairs / 10}
        wanted["test"] = wanted["val"]
        return {split: wanted[split] / (total * shares[i]) for i, split in enumerate(SPLITS)}

    def _members(self, folder: Path, block: Block, index: Int[np.ndarray, " N"]) -> None:
        members = self._latents.members(index)
        u = Draws(self._seed, "member columns").uniform(index, 2)
        columns = {
            "cat_account": 1 + below(u[0], _ACCOUNTS),
            "dense_connections_log": (2.0 + 4.0 * u[1]).astype(np.float32),
        }
        _write_nodes(folder, block, index, members.joined, columns)
        for name, rows in member_links(self._seed, self._latents, index, members).items():
            _write_edges(folder, name, rows, timed=False)
        applied, saved = self._visits.act(index, members)
        sent = self._visits.messages(index, members)
        answered = sent.replied
        asking = self._latents.recruiters("hire_project", sent.project[answered])
        replies = sent.member[answered], asking, sent.replied_at[answered]
        events = {
            "member__apply__job": (applied.member, applied.job, applied.time),
            "member__save__job": saved,
            "hire_project__inmail__member": (sent.project, sent.member, sent.time),
            "member__positive__recruiter": replies,
            "recruiter__contact__member": self._visits.contacts(applied, members),
        }
        for name, columns in events.items():
            _write_edges(folder, name, EdgeRows.lasting(*columns), timed=True)
        pq.write_table(self._pairs(members, applied), folder / PAIRS)
        every, moved = np.arange(len(index)), np.flatnonzero(index % MOVES_EVERY == 0)
        for state, rows in enumerate((every, moved)):
            codes = self._texts.of_members(block.number, members, rows, state)
            np.save(folder / texts_part(state), codes)
        np.save(folder / "moved.npy", members.moved[moved])

    def _jobs(self, folder: Path, block: Block, index: Int[np.ndarray, " N"]) -> None:
        offer = self._latents.offers("job", index)
        position, posted = self._latents.posts(index)
        u = Draws(self._seed, "job columns").uniform(index, 3)
        workplace = np.where(offer.remote, _WORKPLACES, 1 + below(u[0], _WORKPLACES - 1))
        columns = {
            "cat_workplace": workplace,
            "cat_employment": 1 + below(u[1] ** 2, _EMPLOYMENTS),
            "dense_openings_log": np.log1p(-np.log1p(-u[2])).astype(np.float32),
        }
        _write_nodes(folder, block, index, posted, columns)
        links = job_links(self._seed, self._latents, index, offer, position, posted)
        for name, rows in links.items():
            _write_edges(folder, name, rows, timed=False)
        np.save(folder / texts_part(0), self._texts.of_jobs(block.number, offer))

    def _pairs(self, members: Members, applied: Applications) -> pa.Table:
        """Some applications, each followed by a job that was open and not applied to."""
        num_jobs = self._nodes["job"]
        key = applied.member * num_jobs + applied.job  # Ascending.
        u = Draws(self._seed, "pairs").uniform(key, 1 + 2 * _NEGATIVE_TRIES)
        split = split_of(applied.time)
        rates = np.array([self.pair_rates[name] for name in SPLITS])
        chosen = np.flatnonzero(u[0] < rates[split])
        rows, time = applied.row[chosen], applied.time[chosen]
        negative = np.full(len(chosen), -1)
        day = np.clip((time - START) // DAY_S, 0, None)
        for which in np.split(u[1:, chosen], _NEGATIVE_TRIES):
            tried = self._latents.calendar.open_on(day, *which)
            other = ~np.isin(applied.member[chosen] * num_jobs + tried, key)
            negative = np.where((negative < 0) & other, tried, negative)
        found = negative >= 0
        chosen, rows, time = chosen[found], rows[found], time[found]
        receivers = np.stack([applied.job[chosen], negative[found]], 1).ravel()
        rows, time = np.repeat(rows, 2), np.repeat(time, 2)
        logit = true_logit(
            self._visits.apply, members, rows, time, self._latents.job_offers, receivers
        )
        member, moved = np.repeat(applied.member[chosen], 2), members.moved[rows] < time
        late = self._nodes["member"] + member // MOVES_EVERY
        return pa.table(
            {
                "sender": member.astype(np.int32),
                "receiver": receivers.astype(np.int32),
                "label": np.tile(np.array([1, 0], np.int8), len(chosen)),
                "t": time,
                "sender_text": np.where(moved, late, member).astype(np.int32),
                "warm_sender": _warm(applied, rows, np.repeat(split[chosen], 2)),
                "true_logit": logit.astype(np.float32),
                "slice": _named_slices(members.speaks[rows]),
            }
        )


def _warm(
    applied: Applications, rows: Int[np.ndarray, " B"], split: Int[np.ndarray, " B"]
) -> np.ndarray:
    """Whether members applied before `WARM_UNTIL` of a split."""
    before = [np.unique(applied.row[applied.time < until]) for until in WARM_UNTIL]
    return np.select([split == i for i in range(3)], [np.isin(rows, known) for known in before])


def _named_slices(speaks: Int[np.ndarray, " B"]) -> pa.Array:
    names = ["", *(SLICE_NAMES[s] for s in sorted(SLICE_NAMES))]
    return pa.array(names, pa.string()).take(pa.array(speaks))


def _write_nodes(
    folder: Path,
    block: Block,
    index: Int[np.ndarray, " N"],
    time: Int[np.ndarray, " N"] | None,
    columns: Mapping[str, np.ndarray],
) -> None:
    times = pa.nulls(len(index), pa.int64()) if time is None else pa.array(time)
    ids = node_ids(block.node_type, index)
    typed = {
        name: values.astype(np.int32 if name.startswith("cat_") else np.float32)
        for name, values in columns.items()
    }
    table = pa.table({"idx": index.astype(np.int32), "id": ids, "t": times, **typed})
    pq.write_table(table, folder / NODES, compression="zstd")


def _write_edges(folder: Path, name: str, rows: EdgeRows, *, timed: bool) -> None:
    """Attributes are visible from every split, events from the one that they lie in."""
    split = 1 + split_of(rows.time) if timed else np.zeros(len(rows.time))
    table = pa.table(
        {
            "sender": rows.sender.astype(np.int32),
            "receiver": rows.receiver.astype(np.int32),
            "t": rows.time,
            "removed_t": pa.array(rows.removed, mask=rows.removed == NEVER),
            "weight": rows.weight,
            "split": split.astype(np.int8),
        }
    )
    pq.write_table(table, folder / edges_part(name), compression="zstd")
