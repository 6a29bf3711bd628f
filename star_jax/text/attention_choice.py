"""Which implementation of attention a tower uses: chosen once, before anything is computed."""

import logging
from importlib.util import find_spec
from typing import Literal, NamedTuple, get_args

import jax

from star_jax.config import InputError
from star_jax.text.attention import Backend
from star_jax.text.pooling import AttentionSpan

_log = logging.getLogger(__name__)

BackendChoice = Literal["auto", Backend]

_FASTEST: dict[str, tuple[Backend, ...]] = {"cuda": ("cudnn", "tokamax"), "tpu": ("splash",)}
"""By platform, best first; `xla` is what remains."""


class Machine(NamedTuple):
    """What the devices of a run are."""

    platform: str
    """`cpu`, `cuda`, `rocm`, `tpu`."""
    compute_capability: float
    """Of an NVIDIA GPU; 0 elsewhere."""
    tokamax: bool
    """Whether that library is installed."""


class Case(NamedTuple):
    """What the attention of a tower has to do."""

    head_width: int
    dtype: Literal["float32", "bfloat16"]
    span: AttentionSpan
    window: int | None
    """None too where no text is longer than the window."""
    packed: bool
    """Rows may hold several texts."""
    biased: bool
    """The logits get a bias by position."""


def this_machine() -> Machine:
    """The devices that JAX runs on here."""
    device = jax.devices()[0]
    platform, capability = device.platform, 0.0
    if platform == "gpu":
        platform = "cuda" if "cuda" in device.client.platform_version else "rocm"
    if platform == "cuda":
        capability = float(device.compute_capability)
    return Machine(platform, capability, find_spec("tokamax") is not None)


def choose_backend(asked: BackendChoice, case: Case, machine: Machine) -> Backend:
    """The back end asked for, or for `auto` the fastest one that can do the case; logs it.

    Raises:
      InputError: The one asked for cannot do it.
    """
    if asked != "auto":
        obstacle = _obstacle(asked, case, machine)
        if obstacle is not None:
            able = [b for b in get_args(Backend) if _obstacle(b, case, machine) is None]
            raise InputError(
                f"attention_backend {asked} {obstacle}; or choose auto, {', '.join(able)}"
            )
        _log.info("attention by %s, as attention_backend says", asked)
        return asked
    obstacles = []
    for backend in _FASTEST.get(machine.platform, ()):
        obstacle = _obstacle(backend, case, machine)
        if obstacle is None:
            return _chosen(backend, machine, obstacles)
        obstacles.append(f"{backend} {obstacle}")
    return _chosen("xla", machine, obstacles)


def _chosen(backend: Backend, machine: Machine, obstacles: list[str]) -> Backend:
    why = "".join(f"; {obstacle}" for obstacle in obstacles)
    _log.info("attention by %s, chosen for %s%s", backend, machine.platform, why)
    return backend


def _obstacle(backend: Backend, case: Case, machine: Machine) -> str | None:
    """Why a back end cannot do a case on a machine, and what it would need; None if it can."""
    if backend == "xla":
        return None
    platform = "tpu" if backend == "splash" else "cuda"
    if machine.platform != platform:
        return f"got platform {machine.platform}, needed {platform}"
    if case.biased:
        return "got a base with a bias by position, needed another base"
    if backend == "splash":
        if case.head_width % 64:
            return f"got heads of width {case.head_width}, needed a multiple of 64"
        return None
    if machine.compute_capability < 8.0:
        return f"got compute capability {machine.compute_capability}, needed 8.0 or newer"
    if backend == "tokamax":
        if not machine.tokamax:
            return "got no tokamax, needed `pip install tokamax` on Python 3.12 or newer"
        return None
    return _cudnn_obstacle(case)


def _cudnn_obstacle(case: Case) -> str | None:
    if case.packed:
        return "got rows of several texts, needed one text a row"
    if case.dtype != "bfloat16":
        return f"got compute_dtype {case.dtype}, needed bfloat16"
    if case.head_width % 8 or case.head_width > 128:
        return f"got heads of width {case.head_width}, needed a multiple of 8 up to 128"
    if case.window is not None and case.span == "bidirectional":
        return f"got a window of {case.window} that looks ahead, needed pooling.attention=causal"
    return None
