"""What a plan says that GPUs hold, against what compiled programs say of themselves."""

import json
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from bench.shapes import MISTRAL_7B, hf_config
from bench.text_gpu import batch_of, model_of
from bench.text_gpu_rows import STAR
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline.planning import memory, text
from star_jax.pipeline.text_model import TextModelConfig, initial_shapes
from star_jax.text.attention_choice import this_machine
from star_jax.text.families import TokenLimits
from star_jax.text.packing import Tokens
from star_jax.text.scorer import ScorerConfig
from star_jax.text.tower import TowerConfig
from tests.jobs import tiny_text

SMALL = replace(
    MISTRAL_7B,
    vocab_size=300,
    width=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_width=32,
    mlp_width=512,
)
WITHIN = 0.1

TERMS = {
    "kept": "states for the backward pass",
    "block": "working set of a block",
    "gradients": "gradients",
    "loss": "vectors and logits of the loss",
}
# In each, the term of its name is large.
CASES: dict[str, dict[str, Any]] = {
    "kept": {"batch": 32},
    "block": {"batch": 32, "remat": "full", "length": 128},
    "gradients": {"mode": "full", "length": 16, "batch": 8, "shape": {"width": 256}},
    "loss": {"length": 8, "batch": 1024, "microbatch": 16, "remat": "full"},
}


def tower(folder, length, remat):
    limits = TokenLimits(job=length, profile=length, resume=length, other=length)
    return TowerConfig(base=str(folder), prompts="none", limits=limits, remat=remat)


def measured(folder, remat="none", length=64, batch=16, microbatch=None, mode="lora", shape=None):
    """What is estimated, and what the compiler says, in bytes."""
    (folder / "config.json").write_text(json.dumps(hf_config(replace(SMALL, **shape or {}))))
    config = tiny_text.config(
        tower=tower(folder, length, remat),
        batch_size=batch,
        microbatch_size=microbatch or batch,
        mode=mode,
    )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    model_config, rows = config.model_of(1.0), text.longest_batch(config, 1)
    step = text.text_step(config, model_config, mesh, this_machine(), rows)
    model = model_config.build(machine=this_machine())
    found = memory.training_bytes(model_config, model, rows, mesh, step.trainable)
    analysis = step.lower().compile().memory_analysis()
    assert analysis is not None
    return found, analysis.temp_size_in_bytes


@pytest.mark.parametrize("name", CASES)
def test_terms_add_up_to_what_a_compiler_says(tmp_path, name):
    found, real = measured(tmp_path, **CASES[name])
    assert sum(found.values()) == pytest.approx(real, rel=WITHIN)
    without = sum(found.values()) - found[TERMS[name]]
    assert without != pytest.approx(real, rel=WITHIN)


def test_an_encoding_holds_what_a_compiler_says(tmp_path):
    length, tokens = 64, 4096
    (tmp_path / "config.json").write_text(json.dumps(hf_config(SMALL)))
    config = tiny_text.config(tower=tower(tmp_path, length, "none")).model_of(1.0)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    step = text.text_export(config, mesh, this_machine(), tokens=tokens, length=length)
    analysis = step.lower().compile().memory_analysis()
    assert analysis is not None
    narrow: Any = np.zeros((tokens // length, 1), np.int32)
    token: Any = np.zeros((tokens // length, length), np.int32)
    rows = Tokens(token, narrow + length, narrow, narrow)
    (found,) = memory.encoding_bytes(config, config.build(), rows, mesh).values()
    assert found == pytest.approx(analysis.temp_size_in_bytes, rel=WITHIN)


# Peaks of the process up to a row, GB, as bench/results/text_gpu.md has them: rows that made it.
PEAKS = {"rows": 78, "packed": 80, "rows-8": 142}


@pytest.mark.parametrize("name", [*PEAKS, "packed-8"])
def test_a_gpu_s_peaks_are_estimated(name):
    """Of the step of bench/text_gpu.py; what needed more than the card has is seen to."""
    row, mesh = STAR[name], make_mesh(MeshConfig(data=1), jax.devices()[:1])
    model = model_of(row, MISTRAL_7B)
    model = replace(model, tower=model.tower.clone(attention_backend=row.backend))
    assert model.lora is not None
    config = TextModelConfig(
        tower=TowerConfig(base="random", param_dtype="bfloat16", compute_dtype="bfloat16"),
        mode="lora",
        lora=model.lora,
        scorer=ScorerConfig(),
        objective=model.objective,
    )
    split = initial_shapes(config, model)
    trains, stays = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for tree in split
    )
    working = memory.training_bytes(config, model, batch_of(row, MISTRAL_7B, 1), mesh, trains)
    gigabytes = (3 * trains + stays + sum(working.values())) / 1e9  # AdamW keeps two more.
    if name == "packed-8":
        assert gigabytes > 0.95 * 150.1  # What JAX was given of the card.
    else:
        assert gigabytes == pytest.approx(PEAKS[name], rel=0.03)


def test_a_flash_kernel_keeps_no_logits(tmp_path):
    """Heads of 32 and texts of 64 tokens, which the stand-in fills up."""
    (tmp_path / "config.json").write_text(json.dumps(hf_config(SMALL)))
    config = tiny_text.config(tower=tower(tmp_path, 64, "none"), mesh=MeshConfig(data=1))
    model_config, rows = config.model_of(1.0), text.longest_batch(config, 1)
    mesh, plain = make_mesh(config.mesh, jax.devices()[:1]), model_config.build()
    flash = replace(plain, tower=plain.tower.clone(attention_backend="tokamax"))
    logits, states = (
        memory.training_bytes(model_config, model, rows, mesh, 0)[TERMS["kept"]]
        for model in (plain, flash)
    )
    row_count, length = rows.texts[0].tokens.shape
    matrix = row_count * SMALL.num_heads * length**2 * 4 * SMALL.num_layers
    assert matrix < logits - states < 3 * matrix
