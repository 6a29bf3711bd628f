"""What a checkpoint holds, read without knowing what trained."""

import hashlib
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp

from star_jax import artefacts
from star_jax.train.checkpoints import tree_digest


def newest(folder: Path) -> Path:
    """The checkpoint of most steps."""
    return max(folder.glob("step-*"))


def digest(checkpoint: Path) -> str:
    """The same for the same arrays and the same record. Files of equal arrays differ in name."""
    artefacts.verify(checkpoint)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sharding info not provided")
        tree = ocp.load_checkpointables(str(checkpoint.absolute() / "arrays"))
    record = (checkpoint / "record.json").read_text(encoding="utf-8")
    return hashlib.sha256(
        f"{tree_digest(jax.tree.map(_plain, tree))} {record}".encode()
    ).hexdigest()


def _plain(leaf: jax.Array) -> jax.Array:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf
