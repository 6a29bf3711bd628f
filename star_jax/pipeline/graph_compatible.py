"""A graph training that stays compatible with an older version: its config, its vectors, its maps.

The new encoder and a bias-free linear map B_k are trained together so that B_k z_k comes near the
vectors z_(k-1) that consumers of the older version know (Hu et al. 2022, "BC-Aligner"; STAR Eq.
8-9). What is compared is what the encoders give: no vector is normalised for the loss. Where all
older vectors have length 1, the transform normalises what the map gives, as the older encoder did.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int32

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.id_index import rows_among
from star_jax.embeddings.registry.registry import Registry, locate
from star_jax.embeddings.reuse import VectorFiles
from star_jax.embeddings.table import open_vectors, read_columns
from star_jax.embeddings.transforms.files import read_transform, write_transform
from star_jax.embeddings.transforms.maps import Identity, Linear, lengths_of, linear
from star_jax.embeddings.transforms.transform import SHARED, Step, Transform
from star_jax.graph.batches import ROLES, OldVectors, Role
from star_jax.graph.compatible import MAPS, Alignment, CompatibleMap
from star_jax.graph.model import LinkTask
from star_jax.pipeline.tables.read import read_nodes
from star_jax.shapes import PyTree

KIND = "graph_embeddings"

_LOOKED_AT = 4096  # Vectors of a table, from all over it, to see whether they have length 1.

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompatibleConfig:
    """The new encoder is trained with a map to the vectors of an older version.

    L = L_tasks + weight * [ MSE_sender + MSE_receiver + MSE_negatives ] of B_k z_k - z_(k-1); see
    `Alignment`. The width, the depth and the features may differ from the older version's. Nodes
    that it lacks do not count, nor do roles that it has no table of.

    Attributes:
      old: Folder of the older `graph_embeddings`, or their version in the registry. They may tell
        of what their export saw (`visible`): of validation's edges too, if they are of this graph.
      registry: Where versions are looked up.
      mode: "joint": the difference in the space of the older version. "joint_multi": also what
        older versions see of it, through the maps of `chain`.
      weight: lambda. An MSE is a mean over the numbers of a vector: of vectors of length 1 it is
        smaller by their width than of those whose numbers have variance 1.
      shared: One map for all tables; else each table of embeddings has its own.
      chain: For joint_multi: transforms (folders, or versions) that lead from the older version
        to those before it, the newest first. They stay as they are.
      oldest: In the place of `chain`: the version that the registry finds the way to.
      settled: Share of the steps before which no checkpoint counts as the best, because the map
        still moves: until then the newest one does.
    """

    old: str
    registry: str | None = None
    mode: Literal["joint", "joint_multi"] = "joint"
    weight: float = 16.0
    shared: bool = False
    chain: tuple[str, ...] = ()
    oldest: str | None = None
    settled: float = 0.5

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight {self.weight} must be > 0")
        if not 0 <= self.settled <= 1:
            raise ValueError(f"settled {self.settled} must be in [0, 1]")
        given = (len(self.chain) > 0) + (self.oldest is not None)
        if given != (self.mode == "joint_multi"):
            needed = "one of them" if self.mode == "joint_multi" else "neither"
            raise ValueError(
                f"chain {self.chain}, oldest {self.oldest} with mode {self.mode}, needed {needed}"
            )
        if self.oldest is not None and self.registry is None:
            raise ValueError(f"oldest {self.oldest} without registry, which finds the way to it")

    @property
    def folder(self) -> Path:
        """Of the older embeddings."""
        return locate(self.old, self.registry)

    @property
    def transforms(self) -> list[Path]:
        """Folders of the transforms of older versions, the newest first."""
        if self.oldest is not None and self.registry is not None:
            return Registry(self.registry).chain(self.old, self.oldest)
        return [locate(ref, self.registry) for ref in self.chain]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compatible:
    """What a trained model knows of the older version.

    Attributes:
      maps: To its vectors.
      mode: As in `CompatibleConfig`.
      old: Digest of the older embeddings.
      unit_norm: Whether these have length 1.
    """

    maps: tuple[CompatibleMap, ...]
    mode: str
    old: str
    unit_norm: bool


def embedding_tables(tasks: tuple[LinkTask, ...]) -> dict[tuple[str, Role], str]:
    """Tables of the ends of tasks: `<type>`, and `<type>.<role>` where a type has a second role."""
    found: dict[tuple[str, Role], str] = {}
    for task in tasks:
        for role in ROLES:
            node_type = getattr(task, role)
            first = all(other != node_type for other, _ in found)
            found.setdefault((node_type, role), node_type if first else f"{node_type}.{role}")
    return found


def compatible_inputs(config: CompatibleConfig | None) -> dict[str, str]:
    """Name -> digest of the artefacts of older versions that a training reads."""
    if config is None:
        return {}
    found = {"compatible.old": artefacts.digest(config.folder)}
    digests = map(artefacts.digest, config.transforms)
    return found | {f"compatible.chain.{number}": each for number, each in enumerate(digests)}


def describe_compatible(
    config: CompatibleConfig, tasks: tuple[LinkTask, ...], graph: str
) -> Compatible:
    """The maps that a training has.

    Args:
      config: Names the older version.
      tasks: Of the new model.
      graph: Version of the graph that it is trained on.

    Raises:
      InputError: There are no older embeddings, none of a role of the tasks, or a table of the
        same name is of another role.
    """
    folder = config.folder
    meta = artefacts.read_manifest(folder, KIND).meta
    artefacts.check_meta(folder, meta, "roles", "embedding_size", "graph", "visible")
    if meta["graph"] == graph and meta["visible"] != "train":
        _log.warning(
            "%s was exported from this graph with visible=%s: validation may look too good",
            *(folder, meta["visible"]),
        )
    maps = []
    for (node_type, role), table in embedding_tables(tasks).items():
        theirs = meta["roles"].get(table)
        if theirs is None:
            _log.warning("%s has no table %s: its vectors have no map", folder, table)
            continue
        if theirs != role:
            raise InputError(
                f"compatible.old {folder}: table {table} is of the {theirs}s' encoder, needed "
                f"the {role}s', as in this model's tasks; list the tasks in the older order"
            )
        maps.append(
            CompatibleMap(
                node_type=node_type,
                role=role,
                table=table,
                name=SHARED if config.shared else table,
                width=meta["embedding_size"],
            )
        )
    if not maps:
        raise InputError(
            f"compatible.old {folder} has tables {', '.join(meta['roles'])}, needed one of "
            f"{', '.join(embedding_tables(tasks).values())}"
        )
    unit_norm = all(_have_unit_norm(folder, each.table) for each in maps)
    return Compatible(
        maps=tuple(maps), mode=config.mode, old=artefacts.digest(folder), unit_norm=unit_norm
    )


def _have_unit_norm(folder: Path, table: str) -> bool:
    vectors = open_vectors(folder, table)
    num_rows = vectors.shape[0]
    rows = np.linspace(0, num_rows, min(num_rows, _LOOKED_AT), endpoint=False).astype(np.int64)
    return lengths_of(vectors.take(rows)).are_one()


def alignment_of(config: CompatibleConfig, compatible: Compatible) -> Alignment:
    """The loss of the maps.

    Raises:
      InputError: The chain does not lead on from the older version, or is not linear.
    """
    folders = config.transforms
    transforms = [read_transform(folder) for folder in folders]
    at = compatible.old
    for folder, transform in zip(folders, transforms, strict=True):
        if transform.new != at:
            raise InputError(
                f"compatible.chain {folder} maps vectors of {transform.new[:12]}, needed those of "
                f"{at[:12]}; it begins at compatible.old and goes back version by version"
            )
        at = transform.old
    older = {each.table: _composed(folders, transforms, each) for each in compatible.maps}
    return Alignment(weight=config.weight, maps=compatible.maps, older=older)


def _composed(
    folders: list[Path], transforms: list[Transform], of: CompatibleMap
) -> tuple[Float32[np.ndarray, "E _"], ...]:
    """B_(k-1), B_(k-2) B_(k-1), ... of a table, as far back as it was mapped.

    They act on a difference of vectors: of a map with a bias the bias cancels out, and
    normalisation, which compares directions alone, is left out.
    """
    product, found = np.eye(of.width), []
    for folder, transform in zip(folders, transforms, strict=True):
        if not transform.has(of.table):
            break
        for step in transform.of(of.table):
            if not isinstance(step.map, Linear | Identity):
                raise InputError(
                    f"compatible.chain {folder} has a network for {of.table}, needed linear maps "
                    "for mode joint_multi; use mode joint"
                )
            if (size := step.map.widths()[0]) != product.shape[1]:
                raise InputError(
                    f"compatible.chain {folder} maps {of.table} vectors of {size} dimensions, "
                    f"needed {product.shape[1]}"
                )
            if isinstance(step.map, Linear):
                product = product @ step.map.matrix()
        found.append(product.astype(np.float32))
    return tuple(found)


class OldVersion:
    """The older vectors of this graph's nodes, on disk until they are asked for."""

    def __init__(self, config: CompatibleConfig, compatible: Compatible, tables: Path) -> None:
        """Matches nodes by their ids; logs how many the older version knows.

        Args:
          config: Names the older version.
          compatible: Its tables.
          tables: `W/tables`, whose nodes are numbered anew.
        """
        folder = config.folder
        self.maps = compatible.maps
        self._rows: dict[str, Int32[np.ndarray, " N"]] = {}
        self._vectors: dict[str, VectorFiles] = {}
        for each in compatible.maps:
            ids = read_nodes(tables, each.node_type)["id"]
            row = rows_among(ids, read_columns(folder, each.table, "id")["id"])
            self._rows[each.table] = row.astype(np.int32)
            self._vectors[each.table] = open_vectors(folder, each.table)
            known = int((row >= 0).sum())
            _log.info("older vectors: %d of %d rows of %s", known, len(row), each.table)

    def take(self, of: CompatibleMap, nodes: Int32[np.ndarray, " S"], size: int) -> OldVectors:
        """The vectors of nodes, with padding up to `size` rows."""
        row = np.full(size, -1, np.int32)
        row[: len(nodes)] = self._rows[of.table][nodes]
        vectors, known = np.zeros((size, of.width), np.float32), row >= 0
        vectors[known] = self._vectors[of.table].take(row[known])
        return OldVectors(vectors, known)

    def of_task(
        self,
        task: LinkTask,
        nodes: Mapping[Role, Int32[np.ndarray, " _"]],
        sizes: Mapping[Role, int],
    ) -> dict[str, OldVectors]:
        """By table, the vectors of the seeds of both roles, padded up to their sizes."""
        return {
            each.table: self.take(each, nodes[each.role], sizes[each.role])
            for each in self.maps
            if each.node_type == getattr(task, each.role)
        }


def write_maps(folder: Path, compatible: Compatible, params: PyTree, new: str) -> None:
    """Writes the maps of a trained model as a transform.

    Args:
      folder: Where it will be.
      compatible: Of the model.
      params: Of the model.
      new: Digest of the embeddings that it exported.
    """
    steps = {}
    for each in compatible.maps:
        step = Step(linear(np.asarray(params[MAPS][each.name])), compatible.unit_norm)
        steps[each.name] = (step,)
    transform = Transform(compatible.mode, new, compatible.old, steps)
    write_transform(folder, transform, {})
