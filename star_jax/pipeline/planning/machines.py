"""Machines to plan for: what their data sheets say, and devices to compile for."""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from star_jax.config import InputError
from star_jax.text.attention_choice import Machine
from star_jax.train.meter import data_sheet_flops

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator by its data sheet.

    Attributes:
      kind: As JAX names such a device.
      memory: Bytes.
      memory_rate: Bytes a second to and from its memory.
      link_rate: Bytes a second that it can receive from the others of its machine or slice.
    """

    kind: str
    memory: int
    memory_rate: float
    link_rate: float

    @property
    def flops(self) -> float:
        """Dense bfloat16 operations a second."""
        return data_sheet_flops(self.kind)


TPUS = {
    "v5e": Chip(memory=16 * GIB, kind="TPU v5e", memory_rate=819e9, link_rate=100e9),
    "v5p": Chip(memory=95 * GIB, kind="TPU v5", memory_rate=2765e9, link_rate=300e9),
    "v6e": Chip(memory=32 * GIB, kind="TPU v6", memory_rate=1640e9, link_rate=224e9),
}
"""https://cloud.google.com/tpu/docs: of the interconnect, half is what comes in."""

GPUS = {
    "a100-40": Chip(memory=40 * GIB, kind="A100", memory_rate=1555e9, link_rate=300e9),
    "a100-80": Chip(memory=80 * GIB, kind="A100", memory_rate=2039e9, link_rate=300e9),
    "h100-80": Chip(memory=80 * GIB, kind="H100", memory_rate=3350e9, link_rate=450e9),
    "h200": Chip(memory=141 * 10**9, kind="H200", memory_rate=4800e9, link_rate=450e9),
}
"""NVIDIA's data sheets, NVLink in one direction."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many chips of one kind that see each other.

    Attributes:
      name: As it was asked for.
      kind: Key of `TPUS` or `GPUS`.
      count: Chips.
    """

    name: str
    kind: str
    count: int

    @property
    def is_tpu(self) -> bool:
        """Whether the compiler of the chip itself is at hand."""
        return self.kind in TPUS

    @property
    def chip(self) -> Chip:
        """One of them."""
        return TPUS[self.kind] if self.is_tpu else GPUS[self.kind]

    @property
    def machine(self) -> Machine:
        """As attention chooses its kernel by."""
        return Machine("tpu", 0.0, False) if self.is_tpu else Machine("cuda", 8.0, True)


def parse_topology(name: str) -> Topology:
    """Reads `v5e:4x4`, `v5p:4x4x4`, `a100-80:8`.

    Raises:
      InputError: It is none of those known.
    """
    found = re.fullmatch(r"([\w-]+):(\d+(?:x\d+)*)", name)
    known = ", ".join([*(f"{kind}:4x4" for kind in TPUS), *(f"{kind}:8" for kind in GPUS)])
    if found is None or found[1] not in TPUS | GPUS:
        raise InputError(f"--topology {name!r} is unknown, needed one like {known}")
    sides = [int(side) for side in found[2].split("x")]
    if not all(sides) or (found[1] in GPUS and len(sides) > 1):
        raise InputError(f"--topology {name!r} has no such shape, needed one like {known}")
    return Topology(name, found[1], math.prod(sides))


def planned_devices(topology: Topology) -> Sequence[Any]:
    """Devices that programs can be compiled for: the TPU's own, CPUs in the place of GPUs.

    Raises:
      InputError: libtpu is missing or has no such topology, or JAX already has other CPU devices.
    """
    if topology.is_tpu:
        # The compiler alone is asked: for no chip, and beside whoever else asks it.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        try:
            described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name)
        except RuntimeError as error:
            raise InputError(
                f"--topology {topology.name}: {str(error).splitlines()[0]}; it needs a shape that "
                "exists, and the TPU's compiler: pip install 'jax[tpu]'"
            ) from error
        return described.devices
    jax.config.update("jax_num_cpu_devices", topology.count)
    devices = jax.devices("cpu")
    if len(devices) < topology.count:
        raise InputError(
            f"--topology {topology.name} needs {topology.count} virtual CPU devices, got "
            f"{len(devices)}: JAX was in use before"
        )
    return devices[: topology.count]
