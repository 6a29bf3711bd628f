"""`W/text` as after training on a tiny pretrained base, without the training."""

import jax
import numpy as np

from star_jax import artefacts
from star_jax.config import to_json
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import FSDP_RULES
from star_jax.pipeline.text_model import CHECKPOINTS, KIND, MODEL, TextModelConfig, initial
from star_jax.text.bi_encoder import Mode
from star_jax.text.families import TokenLimits
from star_jax.text.lora import LoraConfig
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.pooling import PoolingConfig
from star_jax.text.scorer import ScorerConfig
from star_jax.text.tower import TowerConfig
from star_jax.train.checkpoints import Best, Checkpointer, tree_digest
from star_jax.train.optimizers import OptimizerConfig, make_optimizer
from star_jax.train.state import create_state

LIMITS = TokenLimits(job=39, profile=39, resume=39, other=39)
LORA = LoraConfig(rank=2, alpha=5.0, targets=r".*/(q_proj|v_proj|down_proj)")


def write(
    folder,
    base,
    *,
    pooling=PoolingConfig(),  # noqa: B008 - frozen
    mode: Mode = "lora",
    moved=0.1,
    prompts="e5-1",  # Short: the tiny tokenizers have nearly a token per letter.
    lora=LORA,
):
    """Saves a model whose trained parameters were moved by random amounts."""
    config = TextModelConfig(
        tower=TowerConfig(base=str(base), pooling=pooling, limits=LIMITS, prompts=prompts),
        mode=mode,
        lora=lora,
        scorer=ScorerConfig(hidden=(8, 4)),
        objective=ObjectiveConfig(),
    )
    trainable, frozen = initial(config, config.build(), 0, make_mesh(MeshConfig(data=1)))
    rng = np.random.default_rng(1)
    trainable = jax.tree.map(
        lambda leaf: leaf + np.float32(moved) * rng.standard_normal(leaf.shape, np.float32),
        jax.device_get(trainable),
    )
    state = create_state(
        trainable,
        make_optimizer(OptimizerConfig()),
        seed=0,
        mesh=make_mesh(MeshConfig(data=1)),
        rules=FSDP_RULES,
    )
    folder.mkdir(parents=True)
    checkpointer = Checkpointer(
        folder / CHECKPOINTS, config=config, frozen_digest=tree_digest(frozen)
    )
    checkpointer.save(state, {}, Best(0, 0.0))
    artefacts.write_text(folder / MODEL, to_json(config))
    artefacts.seal(folder, KIND, {"best_step": 0})
