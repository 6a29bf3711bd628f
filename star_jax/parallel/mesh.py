"""The device mesh: axes `data` (batches) and `fsdp` (batches and parameters)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from star_jax.config import InputError
from star_jax.parallel import processes

DATA = "data"
FSDP = "fsdp"
REST = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; the batch is split over both, parameters over `fsdp`."""

    data: int = REST  # -1: all devices that `fsdp` leaves.
    fsdp: int = 1

    def __post_init__(self) -> None:
        if self.data < 1 and self.data != REST:
            raise ValueError(f"data {self.data} is no number of devices, needed >= 1, or {REST}")
        if self.fsdp < 1:
            raise ValueError(f"fsdp {self.fsdp} is no number of devices, needed >= 1")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Lays devices out on the two axes; with both sizes given, the first ones are used.

    Args:
      config: Sizes of the axes.
      devices: All devices of the run when None.

    Raises:
      InputError: There are fewer devices than asked for, or `fsdp` does not divide them.
    """
    devices = processes.devices() if devices is None else devices
    data = len(devices) // config.fsdp if config.data == REST else config.data
    needed = data * config.fsdp
    if needed > len(devices) or (config.data == REST and needed != len(devices)):
        raise InputError(
            f"mesh data {config.data} x fsdp {config.fsdp} does not fit the {len(devices)} "
            f"{devices[0].platform} devices of this run"
        )
    return jax.make_mesh(
        (data, config.fsdp), (DATA, FSDP), (AxisType.Auto, AxisType.Auto), devices=devices[:needed]
    )
