"""The text model as files: what `train-text` leaves in `W/text` and the later stages open."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from star_jax import artefacts
from star_jax.config import from_json
from star_jax.parallel.mesh import one_device
from star_jax.parallel.rules import Rules, placed, shardings
from star_jax.shapes import PyTree
from star_jax.text.attention_choice import BackendChoice, Machine
from star_jax.text.bi_encoder import (
    BiEncoder,
    Mode,
    build_bi_encoder,
    init_scorer,
    init_variables,
    trainable_split,
)
from star_jax.text.lora import COLLECTION, LoraConfig, init_lora
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.quantise import quantise
from star_jax.text.scorer import ScorerConfig
from star_jax.text.tower import TowerConfig, load_params, param_shapes, tower_rules
from star_jax.train.checkpoints import TrainedParameters, load_trained, tree_digest

KIND = "text_model"
MODEL = "model.json"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class TextModelConfig:
    """All that decides what the variables mean."""

    tower: TowerConfig
    mode: Mode
    lora: LoraConfig
    scorer: ScorerConfig
    objective: ObjectiveConfig

    def build(self, *, packed: bool = False, machine: Machine | None = None) -> BiEncoder:
        """The model; there are adapters only in mode `lora`, packed rows where it says so."""
        lora = self.lora if self.mode == "lora" else None
        return build_bi_encoder(
            self.tower, self.scorer, self.objective, lora, packed=packed, machine=machine
        )

    def rules(self, model: BiEncoder) -> Rules:
        """Where what trains lies on a mesh."""
        return tower_rules(model.tower, base=self.mode == "full")


class Split(NamedTuple):
    """Variables before training."""

    trainable: PyTree
    frozen: PyTree


class TrainedText(NamedTuple):
    """A trained model, ready to encode and score."""

    model: BiEncoder
    tower: TowerConfig
    variables: PyTree
    meta: dict[str, Any]
    weights: str  # Digest of all parameters that decide a vector: base and adapters.


def initial(config: TextModelConfig, model: BiEncoder, seed: int, mesh: Mesh) -> Split:
    """Pretrained base on the mesh, fresh adapters, fresh scorer."""
    tower = config.tower
    if config.mode == "full":  # What trains is float32: no copy in another dtype beside it.
        tower = replace(tower, param_dtype="float32")
    variables = init_variables(model, tower, jax.random.key(seed), mesh)
    return Split(*trainable_split(variables, config.mode))


def initial_shapes(config: TextModelConfig, model: BiEncoder) -> Split:
    """As `initial`, of shapes: the base's weights are not read, and nothing is placed."""

    def variables() -> PyTree:
        key, shapes = jax.random.key(0), param_shapes(model.tower)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        params = {"encoder": zeros.pop("encoder")}
        if config.mode != "full":
            dtype = jnp.dtype(config.tower.param_dtype)
            params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
            params = params if config.tower.base_quantisation == "none" else quantise(params)
        found = {"params": params, "scorer": init_scorer(model, key), **zeros}  # Learned pooling.
        if config.mode == "lora":
            found[COLLECTION] = init_lora(key, params, config.lora)
        return found

    return Split(*jax.eval_shape(lambda: trainable_split(variables(), config.mode)))


def read_config(folder: Path) -> TextModelConfig:
    """What the variables of `W/text` mean."""
    config = from_json(TextModelConfig, (folder / MODEL).read_text(encoding="utf-8"))
    # The attention's back end was chosen for the machine that trained.
    return replace(config, tower=replace(config.tower, attention_backend="auto"))


def open_trained(
    folder: Path, mesh: Mesh, attention_backend: BackendChoice = "auto"
) -> TrainedText:
    """The best checkpoint of a finished `train-text` on its base, placed on a mesh.

    Args:
      folder: `W/text`.
      mesh: The parameters are split as `tower_rules` says.
      attention_backend: Of this machine, not the one that trained.

    Raises:
      InputError: Training has not finished, the files changed, or the base is another one.
    """
    meta = artefacts.read_manifest(folder, KIND).meta
    config = read_config(folder)
    config = replace(config, tower=replace(config.tower, attention_backend=attention_backend))
    model = config.build()
    frozen = {}
    if config.mode != "full":
        frozen["params"] = load_params(config.tower, model.tower, mesh)
    digest = tree_digest(frozen)
    like = _like(initial_shapes(config, model).trainable, mesh, config.rules(model))
    trainable = load_trained(
        folder / CHECKPOINTS, meta["best_step"], like, frozen_digest=digest
    ).trainable
    encoder = {name: tree for name, tree in trainable.items() if name != "scorer"}
    weights = f"{digest}-{tree_digest(encoder)}"
    return TrainedText(model, config.tower, {**frozen, **trainable}, meta, weights)


def open_scorer(folder: Path) -> tuple[BiEncoder, PyTree]:
    """The trained scorer alone, as {"scorer"}; the base's weights are not read."""
    meta = artefacts.read_manifest(folder, KIND).meta
    config = read_config(folder)
    model = config.build()
    mesh = one_device()
    like = _like(initial_shapes(config, model).trainable, mesh, config.rules(model))
    trained = load_trained(folder / CHECKPOINTS, meta["best_step"], like, frozen_digest=None)
    return model, {"scorer": trained.trainable["scorer"]}


def _like(trainable: PyTree, mesh: Mesh, rules: Rules) -> TrainedParameters:
    return TrainedParameters(placed(trainable, shardings(trainable, mesh, rules)), ())
