"""Our side of bench/gnn_step.py: makes the batches, writes them for the peer, measures star_jax."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from bench.gnn_step_world import (
    EXPORTED,
    OPTIMIZER,
    RATE,
    TASK,
    Size,
    describe,
    make_world,
    pack,
    pack_pairs,
    whole,
)
from bench.turns import Answer, take_turns
from star_jax.graph.model import init_model
from star_jax.graph.objective import make_loss
from star_jax.graph.samplers import sample as sampling
from star_jax.parallel.mesh import one_device
from star_jax.parallel.rules import FSDP_RULES
from star_jax.pipeline import graph_programs
from star_jax.pipeline.graph_buckets import Shapes
from star_jax.pipeline.graph_embedding import Embedder, Wanted, split_view
from star_jax.pipeline.graph_layers import LayerEncoder
from star_jax.pipeline.graph_programs import RowShards
from star_jax.pipeline.graph_states import StateFiles, complete
from star_jax.pipeline.graph_streams import count_pairs, make_batches
from star_jax.train.optimizers import make_optimizer
from star_jax.train.state import create_state
from star_jax.train.step import make_step

_ROLE = "receiver"  # Of the exported nodes.


class Star:
    """The model under training, and the functions of a turn."""

    def __init__(self, folder: Path, size: Size) -> None:
        """Draws everything, writes what the peer reads, compiles."""
        self._folder, self._size, self._world = folder, size, make_world(folder, size)
        world = self._world
        self._view = split_view(world.store, "val")
        self._model = world.file.build()
        (folder / "model.json").write_text(json.dumps(describe(world.file)), encoding="utf-8")
        self._edges = 0
        for number in range(size.num_batches):
            batch = world.maker(number)
            self._edges += int(count_pairs(batch).figures["neighbours"])
            pairs = jax.tree.map(lambda array: array[0], batch.tasks[TASK.name])
            arrays: Any = pack_pairs(pairs)
            np.savez(folder / f"step_{number}.npz", **arrays)
        self._loss = make_loss(
            self._model, task_weights={TASK.name: 1.0}, positive_weight={TASK.name: 1.0}
        )
        self._forward = jax.jit(lambda *arguments: self._loss(*arguments)[0])
        params, statistics = init_model(self._model, 0)
        optimizer = make_optimizer(OPTIMIZER)
        mesh = self._mesh = one_device()
        self._state = create_state(
            params, optimizer, seed=0, mesh=mesh, rules=FSDP_RULES, statistics=statistics
        )
        self._step = make_step(self._loss, optimizer, state=self._state, mesh=mesh, stateful=True)
        self._embedder = Embedder(self._model, world.file.sampling, RowShards(mesh))
        for number, batches in enumerate(self._embedder.batches(self._wanted())):
            arrays = pack(batches.parts[0], EXPORTED)
            np.savez(folder / f"nodes_{number}.npz", **arrays)
        arrays = pack(whole(world, self._model, self._view, self._exported()), EXPORTED)
        np.savez(folder / "whole.npz", **arrays)

    def about(self) -> Answer:
        """Compiles everything, and counts."""
        batch, state = self._step.place(self._world.maker(0)), self._state
        begun = time.monotonic()
        with jax.set_mesh(self._mesh):  # As the step has it: calling it then compiles nothing.
            update = self._step._update.lower(
                state=state, frozen={}, batch=batch, rate=jnp.float32(RATE)
            )
            step_gflop = _gflop(update.compile())
        self._update(batch)
        compile_s = time.monotonic() - begun
        state = self._state
        jax.block_until_ready(
            self._forward(state.trainable, state.statistics, {}, batch, state.rng)
        )
        with _counted() as sampled:
            self._sampled()
        with _counted() as exported:
            self._layered()
        return {
            "compile_s": compile_s,
            "step_gflop": step_gflop,
            "sampled_gflop": sampled.gflop,
            "export_gflop": exported.gflop,
            "edges": self._edges,
            "num_nodes": self._world.store.num_nodes,
            "num_exported": len(self._exported()),
        }

    def step(self) -> Answer:
        """Some updates, one phase after the other; seconds of every phase, and losses."""
        found: dict[str, list[float]] = {
            name: [] for name in ("sample", "gather", "place", "forward", "compute", "loss")
        }
        for number in range(self._size.num_steps):
            drawn = _Stopwatch(sampling.expand)
            begun = time.monotonic()
            with mock.patch.object(sampling, "expand", drawn):
                host = self._world.maker(number % self._size.num_batches)
            made = time.monotonic()
            batch = jax.block_until_ready(self._step.place(host))
            placed = time.monotonic()
            state = self._state
            jax.block_until_ready(
                self._forward(state.trainable, state.statistics, {}, batch, state.rng)
            )
            forward = time.monotonic()
            loss = self._update(batch)
            found["sample"].append(drawn.seconds)
            found["gather"].append(made - begun - drawn.seconds)
            found["place"].append(placed - made)
            found["forward"].append(forward - placed)
            found["compute"].append(time.monotonic() - forward)
            found["loss"].append(loss)
        return found

    def epoch(self) -> Answer:
        """All batches once, made by threads meanwhile."""
        begun = time.monotonic()
        batches = make_batches(self._world.maker)
        for _ in range(self._size.num_batches):
            batch = self._step.place(next(batches))
            self._state, _ = self._step(self._state, {}, batch, RATE)
        jax.block_until_ready(self._state)
        seconds = time.monotonic() - begun
        batches.close()  # Those made ahead must not run into the peer's turn.
        return {"seconds": seconds}

    def sampled(self) -> Answer:
        """Vectors of all nodes of a type, each from a sample of its own, drawn meanwhile."""
        begun = time.monotonic()
        self._sampled()
        seconds = time.monotonic() - begun
        for _ in self._embedder.batches(self._wanted()):
            pass
        return {"seconds": seconds, "sample": time.monotonic() - begun - seconds}

    def export(self) -> Answer:
        """The same vectors layer by layer, the states between them in files."""
        begun = time.monotonic()
        self._layered()
        return {"seconds": time.monotonic() - begun}

    def _sampled(self) -> None:
        vectors = self._embedder.embed(self._variables, self._wanted())
        assert np.isfinite(vectors.embedding).all()

    def _layered(self) -> None:
        nodes, view = self._exported(), self._view
        encoder = LayerEncoder(
            self._model,
            self._variables,
            self._world.file.sampling,
            view,
            RowShards(self._mesh),
            neighbours="fanout",
            shapes=Shapes(),
        )
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            files = StateFiles(
                Path(scratch),
                {},
                num_nodes=view.store.num_nodes,
                part_nodes=1 << 17,
                size=self._world.file.model.encoder.dim,
                precision="float32",
            )
            outputs = encoder.outputs(_ROLE, EXPORTED)
            complete(encoder, files, outputs)
            rows = [files.read(state, nodes) for state in outputs]
            assert np.isfinite(encoder.vectors(_ROLE, EXPORTED, rows)).all()

    @property
    def _variables(self) -> dict[str, Any]:
        return {"params": self._state.trainable, "batch_stats": self._state.statistics}

    def _exported(self) -> np.ndarray:
        total = self._world.store.num_nodes[EXPORTED]
        return np.arange(min(total, self._size.num_exported), dtype=np.int32)

    def _wanted(self) -> Wanted:
        return Wanted.of_view(self._view, _ROLE, EXPORTED, self._exported())

    def _update(self, batch: Any) -> float:
        self._state, metrics = self._step(self._state, {}, batch, RATE)
        jax.block_until_ready(self._state)
        loss = float(metrics["loss"])
        assert np.isfinite(float(metrics["gradient_norm"])), f"loss {loss}"
        return loss


def _gflop(program: Any) -> float:
    return program.cost_analysis()["flops"] / 1e9


class _Counted:
    """Arithmetic of compiled functions, call by call."""

    def __init__(self) -> None:
        self.gflop, self._known = 0.0, dict[Any, float]()

    def wrap(self, function: Any) -> Any:
        """The same function; what it is called with is counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            shapes = jax.tree.map(lambda leaf: getattr(leaf, "shape", leaf), (args, kwargs))
            key = (function, str(shapes))
            if key not in self._known:
                self._known[key] = _gflop(function.lower(*args, **kwargs).compile())
            self.gflop += self._known[key]
            return function(*args, **kwargs)

        return counted


@contextmanager
def _counted() -> Iterator[_Counted]:
    """Counts what programs of inference do."""
    found, known = _Counted(), graph_programs.program
    with mock.patch.object(graph_programs, "program", lambda *args: found.wrap(known(*args))):
        yield found


class _Stopwatch:
    """A function that adds up how long it takes."""

    def __init__(self, function: Any) -> None:
        self._function, self.seconds = function, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        begun = time.monotonic()
        result = self._function(*args, **kwargs)
        self.seconds += time.monotonic() - begun
        return result


def main() -> None:
    """Takes turns, as bench/gnn_step.py asks for them."""
    folder, sizes = sys.argv[1:]
    star = Star(Path(folder), Size(*json.loads(sizes)))
    take_turns(
        {
            "about": star.about,
            "step": star.step,
            "epoch": star.epoch,
            "sampled": star.sampled,
            "export": star.export,
        }
    )


if __name__ == "__main__":
    main()
