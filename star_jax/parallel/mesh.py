"""The device mesh: axes `data` (batches), `fsdp` (batches, parameters), `tensor` (heads, MLPs)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from star_jax.config import InputError
from star_jax.parallel import processes

DATA = "data"
FSDP = "fsdp"
TENSOR = "tensor"
ROW_AXES = (DATA, FSDP)
"""Split the rows of a batch; along `tensor` these are copied."""
REST = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; a batch is split over `data` and `fsdp`, parameters over `fsdp`.

    Attributes:
      data: -1: all devices that the others leave.
      fsdp: Every parameter that is large is split so many times.
      tensor: Heads, MLPs and the embedding of a text encoder are split so many times, and what is
        computed with them; it must divide the number of key-value heads. The graph half has
        copies.
    """

    data: int = REST
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        if self.data < 1 and self.data != REST:
            raise ValueError(f"data {self.data} is no number of devices, needed >= 1, or {REST}")
        for axis in (FSDP, TENSOR):
            if (size := getattr(self, axis)) < 1:
                raise ValueError(f"{axis} {size} is no number of devices, needed >= 1")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Lays devices out on the three axes; with all sizes given, the first ones are used.

    Args:
      config: Sizes of the axes.
      devices: All devices of the run when None.

    Raises:
      InputError: There are fewer devices than asked for, or the other axes do not divide them, or
        a process of the run has none of those that are used.
    """
    given, devices = devices, processes.devices() if devices is None else devices
    others = config.fsdp * config.tensor
    data = len(devices) // others if config.data == REST else config.data
    needed = data * others
    if not needed or needed > len(devices) or (config.data == REST and needed != len(devices)):
        raise InputError(
            f"mesh data {config.data} x fsdp {config.fsdp} x tensor {config.tensor} does not fit "
            f"the {len(devices)} {devices[0].platform} devices of this run"
        )
    without = {d.process_index for d in devices} - {d.process_index for d in devices[:needed]}
    if given is None and without:
        raise InputError(
            f"mesh data {config.data} x fsdp {config.fsdp} x tensor {config.tensor} has no device "
            f"of process {min(without)}, needed some of each process of this run"
        )
    axes = (*ROW_AXES, TENSOR)
    shape = (data, config.fsdp, config.tensor)
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(shape, axes, types, devices=devices[:needed])


def one_device() -> Mesh:
    """A mesh of the first device of this process."""
    return make_mesh(MeshConfig(data=1), jax.local_devices()[:1])


def num_shards(mesh: Mesh, axes: tuple[str, ...]) -> int:
    """Parts of what is split over some axes."""
    return math.prod(mesh.shape[axis] for axis in axes)


def num_row_shards(mesh: Mesh) -> int:
    """Parts of a batch."""
    return num_shards(mesh, ROW_AXES)
