"""What the folder of a training job was begun with: going on with anything else is refused."""

import json
from collections.abc import Mapping
from pathlib import Path

from star_jax import artefacts
from star_jax.config import InputError, check_same, to_json


def check_begun(path: Path, config: object, inputs: Mapping[str, str]) -> None:
    """Goes on only with the config and the inputs that the folder was begun with.

    Args:
      path: Where `note_begun` wrote; nothing there is a folder that has not begun.
      config: Of the whole job.
      inputs: Name -> digest of what is trained on.

    Raises:
      InputError: With the difference.
    """
    if path.is_file():
        begun = artefacts.read_json(path, "config", "inputs")
        check_same(json.dumps(begun["config"]), config, path.parent)
        for name, digest in inputs.items():
            was = begun["inputs"].get(name, "(nothing)")
            if was != digest:
                raise InputError(
                    f"{path.parent} was begun with {name} {was[:12]}, got {digest[:12]}; give "
                    "another --workdir, or remove that folder"
                )


def note_begun(path: Path, config: object, inputs: Mapping[str, str]) -> None:
    """Not before all that the user gave has been read: a wrong config must not stay behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"config": json.loads(to_json(config)), "inputs": dict(inputs)}
    artefacts.write_text(path, json.dumps(content, indent=1))
