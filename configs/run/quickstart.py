"""The whole path with the recommended defaults, for any set of tables, on two CPU cores.

Run:
    launch/quickstart.sh [DATA_DIR]
or, where star_jax is installed:
    star run configs/run/quickstart.py --workdir runs/market
    star run configs/run/quickstart.py --workdir runs/mine --tables.source data/mine

Without `--tables.source` it makes a synthetic labour market of 2,000 members whose best reachable
AUC is known and logged. The text half adapts all-MiniLM-L6-v2 (fetched from the package index) by
LoRA within 20 minutes, the graph half trains within 10 minutes, twice: with the text vectors and
without. Every default was chosen on validation splits.
"""

from star_jax.jobs.build_graph import GraphBuildConfig
from star_jax.jobs.evaluate import EvaluateConfig
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.jobs.export_text import TextExportConfig
from star_jax.jobs.import_tables import ImportConfig
from star_jax.jobs.report import ReportConfig
from star_jax.jobs.run import RunConfig
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.jobs.train_text import TextTrainConfig


def get_config() -> RunConfig:
    """Returns the preset `recommended`: each stage's own defaults."""
    return RunConfig(
        tables=ImportConfig(),
        train_text=TextTrainConfig(),
        export_text=TextExportConfig(),
        build_graph=GraphBuildConfig(),
        train_graph=GraphTrainConfig(),
        export_graph=GraphExportConfig(),
        evaluate=EvaluateConfig(),
        report=ReportConfig(),
    )
