"""Checkpoints: Orbax for the arrays, an artefact manifest for the digests, one folder per step.

A checkpoint folder is written beside its place and renamed when complete, so a killed save leaves
nothing that looks like a checkpoint. Frozen parameters are not stored: their digest is, and
restoring onto others is refused.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.tree_util import keystr

from star_jax import artefacts
from star_jax.config import InputError, check_same, difference, to_json
from star_jax.parallel import processes
from star_jax.parallel.pieces import blocks
from star_jax.parallel.rules import laid_like
from star_jax.shapes import PyTree
from star_jax.train.state import TrainState, abstract

_KIND = "checkpoint"
_ARRAYS = "arrays"
_RECORD = "record.json"
_NO_INPUTS: Mapping[str, str] = MappingProxyType({})

_log = logging.getLogger(__name__)


class Best(NamedTuple):
    """The step that validation liked most so far."""

    step: int
    value: float


class Restored(NamedTuple):
    """A checkpoint read back."""

    state: TrainState
    position: dict[str, Any]  # Of the batch iterator.
    best: Best | None


class Checkpointer:
    """The checkpoints of one run: the last ones and the best one."""

    def __init__(
        self,
        folder: Path,
        *,
        config: object,
        frozen_digest: str,
        inputs: Mapping[str, str] = _NO_INPUTS,
        keep: int = 1,
    ) -> None:
        """Opens a folder of checkpoints; what a killed save left behind is removed.

        Args:
          folder: Holds one folder per checkpoint.
          config: Of the whole job; resuming with another one is refused.
          frozen_digest: `tree_digest` of the parameters that are not stored.
          inputs: Name -> digest of what is trained on; resuming on other ones is refused.
          keep: How many of the last checkpoints stay, beside the best.
        """
        self.folder = folder
        self._config = config
        self._frozen_digest = frozen_digest
        self._inputs = dict(inputs)
        self._keep = keep
        processes.write_once(self._clean, "checkpoints")

    def _clean(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left_over in self.folder.glob(".*"):
            shutil.rmtree(left_over)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in order."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def save(self, state: TrainState, position: dict[str, Any], best: Best | None) -> None:
        """Saves the state after `state.step` updates, then removes what is not to be kept.

        All processes call it, and each writes what its devices hold.

        Args:
          state: Arrays may lie on any mesh.
          position: JSON of where the batch iterator stands after this step.
          best: Best validation so far; its checkpoint is kept.
        """
        step = int(state.step)
        record = {
            "step": step,
            "position": position,
            "best": best,
            "frozen_digest": self._frozen_digest,
            "inputs": self._inputs,
            "config": json.loads(to_json(self._config)),
        }
        path = step_path(self.folder, step)
        if processes.is_first():
            with artefacts.writing(path, _KIND) as partial:
                _save_arrays(partial, state)
                (partial / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
            kept = {*self.steps()[-self._keep :]} | ({best.step} if best else set())
            for old in set(self.steps()) - kept:
                artefacts.remove(step_path(self.folder, old))
        else:
            _save_arrays(artefacts.partial_of(path), state)
        processes.wait("checkpoint saved")

    def restore_last(self, like: TrainState) -> Restored | None:
        """The newest checkpoint, or None when there is none; see `restore`."""
        steps = self.steps()
        return self.restore(steps[-1], like) if steps else None

    def restore(self, step: int, like: TrainState) -> Restored:
        """Reads a checkpoint onto the shapes, dtypes and shardings of `like`.

        Raises:
          InputError: A file does not have the bytes it was written with, or the run was begun
            with another config, other inputs or other frozen parameters.
        """
        path = step_path(self.folder, step)
        record = _read_record(path, self._frozen_digest)
        check_same(json.dumps(record["config"]), self._config, path)
        changed = difference(json.dumps(record["inputs"]), json.dumps(self._inputs))
        if changed:
            raise InputError(
                f"{path} was trained on other inputs ({', '.join(changed)}); give another "
                f"--workdir, or remove {self.folder}"
            )
        with _reading():
            parts = ocp.load_checkpointables(str(path.absolute() / _ARRAYS), _parts(abstract(like)))
        best = Best(*record["best"]) if record["best"] else None
        _log.info("restored %s", path)
        state = like._replace(**{name: part[name] for part in parts.values() for name in part})
        state = jax.tree.map(laid_like, state, like)
        return Restored(state, record["position"], best)


class TrainedParameters(NamedTuple):
    """What a checkpoint holds of the model, without its optimizer."""

    trainable: PyTree
    statistics: PyTree


def load_trained(
    folder: Path,
    step: int,
    like: TrainedParameters,
    *,
    frozen_digest: str | None,
    partial: bool = False,
) -> TrainedParameters:
    """Reads the model of a checkpoint for export and scoring.

    Args:
      folder: Of the checkpoints.
      step: Which one.
      like: Arrays, or shapes with a dtype and a sharding: what comes back lies where they lie.
      frozen_digest: Of the parameters it will be joined with; None: it will not be.
      partial: There may be parameters that `like` does not name, which stay unread.

    Raises:
      InputError: There is no such checkpoint, a file changed, or the frozen parameters differ.
    """
    path = step_path(folder, step)
    _read_record(path, frozen_digest)
    model = {name: tree for name, tree in like._asdict().items() if jax.tree.leaves(tree)}
    shapes = {"model": jax.tree.map(_shape, model)}
    context = _reading()
    context.pytree.loading.partial_load = partial
    with context:
        loaded = ocp.load_checkpointables(str(path.absolute() / _ARRAYS), shapes)
    return like._replace(**loaded["model"])


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` updates is."""
    return folder / f"step-{step:08d}"


def tree_digest(tree: PyTree) -> str:
    """The sha256 of all leaves with their paths, dtypes and shapes, wherever they lie."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        sha.update(f"{keystr(path, simple=True, separator='/')} {leaf.dtype} {leaf.shape}".encode())
        for block in blocks(leaf) if isinstance(leaf, jax.Array) else (leaf,):
            sha.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _save_arrays(partial: Path, state: TrainState) -> None:
    processes.wait("folder of a checkpoint made")
    ocp.save_checkpointables(str(partial.absolute() / _ARRAYS), _parts(state))


def _reading() -> ocp.Context:
    """In which Orbax waits for none but the processes that read; all save together, always."""
    context = ocp.Context()
    if processes.is_alone():
        context.multiprocessing.active_processes = {jax.process_index()}
    return context


def _parts(state: TrainState) -> dict[str, dict[str, PyTree]]:
    """Model and optimizer apart, so that one can be read without the other.

    Fields without leaves are left out: Orbax refuses empty trees.
    """
    fields = {name: tree for name, tree in state._asdict().items() if jax.tree.leaves(tree)}
    model = {name: fields.pop(name) for name in TrainedParameters._fields if name in fields}
    return {"model": model, "optimizer": fields}


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _read_record(path: Path, frozen_digest: str | None) -> dict[str, Any]:
    """The record of a checkpoint whose every byte is as it was written."""
    artefacts.verify(path)
    record = json.loads((path / _RECORD).read_text(encoding="utf-8"))
    if frozen_digest is not None and record["frozen_digest"] != frozen_digest:
        raise InputError(
            f"{path} was trained on frozen parameters {record['frozen_digest'][:12]}, "
            f"got {frozen_digest[:12]}; give the same base model"
        )
    return record
