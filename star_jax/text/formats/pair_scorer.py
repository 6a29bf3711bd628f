"""The trained scorer as safetensors and JSON, for whoever serves the pairs' logits."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Bool, Float32
from safetensors.numpy import load_file, save_file

from star_jax.shapes import PyTree
from star_jax.text.scorer import Feature, ScorerConfig

_SLOPE = 0.01
_INPUT = (
    "sqrt(embedding_size) times each of the features, then has_profile, has_resume, all one after "
    "the other; vectors have length 1, missing ones are zeros"
)
_FEATURES: Mapping[Feature, tuple[str, ...]] = MappingProxyType(
    {
        "product": ("document * profile", "document * resume"),
        "request_product": ("profile * resume",),
        "vectors": ("document", "profile", "resume"),
        "difference": (
            "has_profile * abs(document - profile)",
            "has_resume * abs(document - resume)",
        ),
    }
)


def write_scorer(folder: Path, params: PyTree, config: ScorerConfig, embedding_size: int) -> None:
    """Writes scorer.safetensors, its weights in torch's layout, and scorer.json."""
    tensors = {}
    for path, leaf in flatten_dict(params, sep="/").items():
        layer, _, name = path.rpartition("/")
        value = np.asarray(leaf, np.float32)
        stored = value.T if name == "kernel" else value
        weight = {"kernel": "weight", "bias": "bias"}[name]
        tensors[f"{layer}.{weight}"] = np.ascontiguousarray(stored)
    content = {
        "embedding_size": embedding_size,
        "input": _INPUT,
        "features": [feature for name in config.features for feature in _FEATURES[name]],
        "layers": [*(f"hidden_{i}" for i in range(len(config.hidden))), "logit"],
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
    has_resume: Bool[np.ndarray, " B"],
    has_profile: Bool[np.ndarray, " B"],
) -> Float32[np.ndarray, " B"]:
    """Logits of pairs, computed from the files as scorer.json says."""
    content = json.loads((folder / "scorer.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "scorer.safetensors")
    scale = np.float32(content["embedding_size"] ** 0.5)
    one, two = (has[:, None].astype(np.float32) for has in (has_profile, has_resume))
    d, p, r = document, profile * one, resume * two
    known = {
        "document * profile": d * p,
        "document * resume": d * r,
        "profile * resume": p * r,
        "document": d,
        "profile": p,
        "resume": r,
        "has_profile * abs(document - profile)": one * np.abs(d - p),
        "has_resume * abs(document - resume)": two * np.abs(d - r),
    }
    features = [scale * known[feature] for feature in content["features"]]
    x = np.concatenate([*features, one, two], axis=1)
    slope = np.float32(content["activation"]["negative_slope"])
    for i, layer in enumerate(content["layers"]):
        x = x if i == 0 else np.where(x > 0, x, slope * x)
        x = x @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"]
    return x[:, 0]
