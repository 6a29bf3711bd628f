"""The trained text model as PEFT, Hugging Face and sentence-transformers folders, verified.

Run, after `pip install -r requirements-interop.txt`:
    star export-model configs/export_model/all_formats.py --workdir runs/market
"""

from star_jax.jobs.export_model import ModelExportConfig


def get_config() -> ModelExportConfig:
    """Returns the defaults: every format, each reloaded by its own library."""
    return ModelExportConfig()
