"""The whole path with all that this project adds to the paper: preset `recommended`.

Run, on GPUs of 80 GB:
    star run configs/run/recommended.py --workdir runs/recommended --tables.source data/mine

Sizes and rates are those of SPEC section 15, as in configs/run/faithful.py, the paper without
additions; their difference is said there. configs/run/quickstart.py is this preset, as wide and as
long as two CPU cores can carry. Not yet run at this size.
"""

from configs.text import mistral_7b
from star_jax.graph.decoders import DecoderConfig
from star_jax.graph.encoder import GraphEncoderConfig
from star_jax.graph.model import GraphModelConfig
from star_jax.graph.samplers.adaptive import AdaptiveConfig
from star_jax.graph.samplers.fanouts import FanoutConfig
from star_jax.jobs.build_graph import GraphBuildConfig
from star_jax.jobs.evaluate import EvaluateConfig
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.jobs.export_text import TextExportConfig
from star_jax.jobs.import_tables import ImportConfig
from star_jax.jobs.report import ReportConfig
from star_jax.jobs.run import RunConfig
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.plan import PlanConfig


def get_config() -> RunConfig:
    """Returns the preset `recommended`."""
    return RunConfig(
        tables=ImportConfig(),
        train_text=mistral_7b.get_config(),
        export_text=TextExportConfig(),
        build_graph=GraphBuildConfig(),
        train_graph=_train_graph(),
        export_graph=GraphExportConfig(),
        evaluate=EvaluateConfig(),
        report=ReportConfig(),
    )


def _train_graph() -> GraphTrainConfig:
    return GraphTrainConfig(
        model=GraphModelConfig(
            encoder=GraphEncoderConfig(
                dim=200,
                multiplier=4,
                layers=2,
                heads=4,
                pooling="self_attention",
                include_receiver=True,
                activation="leaky_relu",
                dual=True,
                batch_norm=True,
                dropout=0.3,  # As the next one chosen on the validation splits of two real sets.
            ),
            decoder=DecoderConfig(dropout=0.5),
            kernel_l2=1e-5,
        ),
        fanouts=FanoutConfig(total=(100, 10)),
        adaptive=AdaptiveConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        plan=PlanConfig(num_epochs=1.0, budget_s=None, validate_epochs=0.1),
        batch_size=4096,
    )
