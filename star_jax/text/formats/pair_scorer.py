"""The trained scorer as safetensors and JSON, for whoever serves the pairs' logits."""

import json
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float32
from safetensors.numpy import load_file, save_file

from star_jax.shapes import PyTree

_SLOPE = 0.01
_INPUT = (
    "sqrt(embedding_size) * document * profile, sqrt(embedding_size) * document * resume, "
    "has_profile, has_resume: one after the other; vectors have length 1, missing ones are zeros"
)


def write_scorer(folder: Path, params: PyTree, embedding_size: int) -> None:
    """Writes scorer.safetensors, its weights in torch's layout, and scorer.json."""
    tensors = {}
    for path, leaf in flatten_dict(params, sep="/").items():
        layer, _, name = path.rpartition("/")
        value = np.asarray(leaf, np.float32)
        stored = value.T if name == "kernel" else value
        weight = {"kernel": "weight", "bias": "bias"}[name]
        tensors[f"{layer}.{weight}"] = np.ascontiguousarray(stored)
    layers = sorted(name for name in params if name != "logit")
    content = {
        "embedding_size": embedding_size,
        "input": _INPUT,
        "layers": [*layers, "logit"],
        "activation": {"name": "leaky_relu", "negative_slope": _SLOPE},
        "output": "logit",
    }
    save_file(tensors, folder / "scorer.safetensors", {"format": "pt"})
    text = json.dumps(content, indent=2) + "\n"
    (folder / "scorer.json").write_text(text, encoding="utf-8")


def read_logits(
    folder: Path,
    document: Float32[np.ndarray, "B E"],
    profile: Float32[np.ndarray, "B E"],
    resume: Float32[np.ndarray, "B E"],
) -> Float32[np.ndarray, " B"]:
    """Logits of pairs with both components, computed from the files as scorer.json says."""
    content = json.loads((folder / "scorer.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "scorer.safetensors")
    scale = np.float32(content["embedding_size"] ** 0.5)
    present = np.ones((len(document), 2), np.float32)
    x = np.concatenate([scale * document * profile, scale * document * resume, present], axis=1)
    slope = np.float32(content["activation"]["negative_slope"])
    for i, layer in enumerate(content["layers"]):
        x = x if i == 0 else np.where(x > 0, x, slope * x)
        x = x @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"]
    return x[:, 0]
