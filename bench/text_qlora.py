"""Int8 base weights against bfloat16 ones: bytes of the base, val AUC after 200 steps of LoRA.

Run (needs the extra qwix):
    PYTHONPATH=. python bench/text_qlora.py [--base FOLDER|minilm] > bench/results/text_qlora.md

Both runs see the same batches of the tiny market and differ in `tower.base_quantisation` alone.
Without --base the base is a generated Mistral with random weights and a byte tokenizer, whose
embeddings are as small a part of it as those of the 7B model. With --base, whose embeddings may be
half of it, the bytes of the 7B shape are judged instead. Exit code 1: a bar is missed.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from bench.shapes import MISTRAL_7B, hf_config
from star_jax import trees
from star_jax.jobs import import_tables, train_text
from star_jax.jobs.import_tables import ImportConfig
from star_jax.jobs.train_text import TextTrainConfig
from star_jax.parallel.mesh import MeshConfig
from star_jax.pipeline.market.size import MarketConfig
from star_jax.shapes import PyTree
from star_jax.text import random_base, tensor_names
from star_jax.text.families import TokenLimits, defaults
from star_jax.text.lora import LoraConfig
from star_jax.text.tower import TextTower, TowerConfig, build_tower, load_params, param_shapes
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.plan import PlanConfig

NUM_STEPS = 200
MOST_BYTES = 0.6  # Of bfloat16.
MOST_AUC = 0.01

SHAPE = dataclasses.replace(
    random_base.SHAPE, width=128, num_layers=4, head_width=32, mlp_width=384
)


class Trained(NamedTuple):
    """What a run left."""

    base_bytes: int
    auc_before: float
    auc: float


def write_base(folder: Path) -> None:
    """A Mistral of random weights as a Hugging Face folder."""
    tower = TextTower(SHAPE, defaults(SHAPE).pooling, "float32", "none", "xla")
    shapes = param_shapes(tower)["encoder"]
    leaves = dict(zip(trees.paths(shapes), jax.tree.leaves(shapes), strict=True))
    rng, tensors = np.random.default_rng(0), {}
    for name, target in tensor_names.targets(SHAPE, leaves):
        size = leaves[target.path].shape[0 if target.layer is None else 1 :]
        values = rng.normal(size=size[::-1] if target.path.endswith("/kernel") else size)
        scale = 1.0 if target.path.endswith("/embedding") else size[0] ** -0.5
        norm = target.path.endswith("/scale")
        tensors[name] = np.ones(size, np.float32) if norm else (values * scale).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(random_base.TOKENIZER, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(hf_config(SHAPE)), encoding="utf-8")


def train(workdir: Path, config: TextTrainConfig) -> Trained:
    """Trains in an empty `text` folder of a working directory that has tables."""
    train_text.run(config, workdir)
    lines = (workdir / "text" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    val = [row for row in map(json.loads, lines) if row["split"] == "val"]
    params = load_params(config.tower, build_tower(config.tower))
    return Trained(trees.size_bytes(params), val[0]["score"], val[-1]["score"])


def config_of(base: str) -> TextTrainConfig:
    """The same run for both; bfloat16 as a 7B base would be kept and computed."""
    limit = 256 if base == "minilm" else 64
    return TextTrainConfig(
        tower=TowerConfig(
            base=base,
            prompts="none",
            limits=TokenLimits(job=limit, profile=limit, resume=limit, other=limit),
            param_dtype="bfloat16",
            compute_dtype="bfloat16",
        ),
        lora=LoraConfig(rank=8),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        plan=PlanConfig(num_steps=NUM_STEPS, validate_epochs=1e6),
        mesh=MeshConfig(data=1),
        batch_size=16,
        microbatch_size=16,
        num_tables=1,
        validation_lengths=1,
    )


def bytes_of_7b() -> float:
    """Share of bfloat16 that the 7B base takes in int8, from its shapes."""
    shape = MISTRAL_7B
    tower = TextTower(shape, defaults(shape).pooling, "bfloat16", "none", "xla")
    params: PyTree = param_shapes(tower)
    kernels = trees.select(params, ".*/kernel")
    num_scales = sum(leaf.shape[0] * leaf.shape[2] for leaf in jax.tree.leaves(kernels))
    before = 2 * trees.count(params)
    return (before - trees.count(kernels) + 4 * num_scales) / before


def main() -> int:
    """Prints the table; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="default: a generated one")
    base = given = parser.parse_args().base
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        if base is None:
            base = str(root / "base")
            write_base(root / "base")
        config, found = config_of(base), {}
        for name in ("none", "int8"):
            workdir = root / name
            import_tables.run(ImportConfig(market=MarketConfig(size="tiny")), workdir)
            tower = dataclasses.replace(config.tower, base_quantisation=name)
            found[name] = train(workdir, dataclasses.replace(config, tower=tower))
    share = found["int8"].base_bytes / found["none"].base_bytes
    apart = abs(found["int8"].auc - found["none"].auc)
    asked = " ".join(["PYTHONPATH=. python bench/text_qlora.py", *sys.argv[1:]])
    print(f"# Int8 base weights\n\n    {asked} > bench/results/text_qlora.md\n")
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}; {NUM_STEPS} steps, tiny market.\n"
    )
    print(
        "| base kernels | bytes of the base | val AUC before | val AUC after |\n|---|---|---|---|"
    )
    for name, label in (("none", "bfloat16"), ("int8", "int8 + float32 scales")):
        run = found[name]
        print(f"| {label} | {run.base_bytes:,} | {run.auc_before:.4f} | {run.auc:.4f} |")
    print(f"\nBytes: {share:.3f} of bfloat16 (bar {MOST_BYTES}); the 7B base: {bytes_of_7b():.3f}.")
    print(f"AUC: {apart:.4f} apart (bar {MOST_AUC}).")
    judged = share if given is None else bytes_of_7b()
    return int(judged > MOST_BYTES or apart > MOST_AUC)


if __name__ == "__main__":
    sys.exit(main())
