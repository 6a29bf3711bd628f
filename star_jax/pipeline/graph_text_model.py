"""The encoder that trained with a graph model, as files: opened for encoding all texts."""

from pathlib import Path

import jax
from jax.sharding import Mesh

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.parallel.rules import shardings
from star_jax.pipeline.graph_model import CHECKPOINTS, KIND, read_model_file
from star_jax.pipeline.graph_text import TREE, joined, open_text, parted
from star_jax.pipeline.text_model import TrainedText
from star_jax.text.attention_choice import BackendChoice
from star_jax.train.checkpoints import TrainedParameters, load_trained, tree_digest


def open_graph_text(
    workdir: Path, name: str, mesh: Mesh, attention_backend: BackendChoice
) -> TrainedText:
    """The encoder of a graph model's best checkpoint; it has no scorer.

    Args:
      workdir: Holds the graph model and `text`, which the encoder began as.
      name: Folder of the graph model.
      mesh: The parameters are split as `tower_rules` says.
      attention_backend: Of this machine.

    Raises:
      InputError: Training has not finished, or no text encoder was part of it, or `text` changed.
    """
    folder = workdir / name
    meta = artefacts.read_manifest(folder, KIND).meta
    file = read_model_file(folder)
    if file.text_encoder is None:
        raise InputError(
            f"{folder} was trained on the vectors of `star export-text`, needed a graph model of "
            "`star train-graph` with text_encoder, or the source text"
        )
    if file.inputs["text"] != artefacts.digest(workdir / "text"):
        raise InputError(
            f"{folder} was trained on another {workdir / 'text'}; run `star train-graph` again"
        )
    text = open_text(
        file.text_encoder, workdir / "text", mesh, seed=0, attention_backend=attention_backend
    )
    trained = text.trainable
    if trained:
        like = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            {TREE: trained},
            shardings({TREE: trained}, mesh, text.rules),
        )
        found = load_trained(
            folder / CHECKPOINTS,
            meta["best_step"],
            TrainedParameters(like, ()),
            frozen_digest=text.digest,
            partial=True,
        )
        trained = parted(found.trainable)[1]
    weights = f"{text.digest}-{tree_digest(joined({}, trained))}"
    return TrainedText(text.model, text.tower, {**text.frozen, **trained}, {}, weights)
