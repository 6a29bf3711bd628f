"""Text half, production: e5-mistral-7b-instruct with LoRA on q, k and v, in bfloat16.

Run, after `star import` into the same folder:
    launch/gpu_a100.sh ... runs a whole config; for this stage alone:
    star train-text configs/text/mistral_7b.py --workdir runs/mine

Meant for GPUs of 80 GB, more of them with `--mesh.fsdp N` or `--mesh.tensor N`; a step of this
shape was timed on one (bench/results/text_gpu.md), the preset has not run to a metric. The base is
14.2 GB in bfloat16 and is downloaded from the Hugging Face hub, unless `--tower.base` names a
folder.
4,718,592 adapter parameters train. With the defaults that SPEC section 15 recommends: negatives of
the whole batch by a gradient cache, with a gap to the positive. EOS averaged over all layers,
causal, limits 1800 / 1800 / 1024 and the instruction prompts are the family's.
"""

from star_jax.jobs.train_text import TextTrainConfig
from star_jax.losses.semi_hard import SemiHardConfig
from star_jax.text.lora import LoraConfig
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.tower import TowerConfig
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.plan import PlanConfig


def get_config() -> TextTrainConfig:
    """Returns the production preset."""
    return TextTrainConfig(
        tower=TowerConfig(
            base="intfloat/e5-mistral-7b-instruct",
            param_dtype="bfloat16",
            compute_dtype="bfloat16",
            remat="full",  # A block's activations are computed again in the backward pass.
        ),
        lora=LoraConfig(rank=8, alpha=32.0, dropout=0.1, targets=r".*/(q_proj|k_proj|v_proj)"),
        objective=ObjectiveConfig(
            # Of 3072 pairs the hardest negatives are often positives nobody recorded.
            semi_hard=SemiHardConfig(temperature=0.02, min_gap=0.02),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.01),
        plan=PlanConfig(num_epochs=1.0, budget_s=None, validate_epochs=0.1),
        batch_size=3072,
        microbatch_size=16,  # At most 51,392 tokens of their texts are encoded at a time,
        mining="global",  # and again in the backward pass: one loss over all 3072 pairs.
        pack_length=2048,
        validation_tokens=32768,
    )
