from typing import NamedTuple

import jax
import pytest
from jax.sharding import AxisType

from star_jax.parallel.mesh import MeshConfig, make_mesh, num_row_shards


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), {"data": 8, "fsdp": 1, "tensor": 1}),
        (MeshConfig(fsdp=4), {"data": 2, "fsdp": 4, "tensor": 1}),
        (MeshConfig(fsdp=2, tensor=2), {"data": 2, "fsdp": 2, "tensor": 2}),
        (MeshConfig(data=1), {"data": 1, "fsdp": 1, "tensor": 1}),
    ],
)
def test_axes(config, shape):
    mesh = make_mesh(config)
    assert dict(mesh.shape) == shape
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert list(mesh.devices.flat) == jax.devices()[: mesh.size]
    assert num_row_shards(mesh) == shape["data"] * shape["fsdp"]


@pytest.mark.parametrize(
    "config",
    [
        MeshConfig(fsdp=3),
        MeshConfig(data=9),
        MeshConfig(fsdp=16),
        MeshConfig(data=2, fsdp=4, tensor=2),
        MeshConfig(fsdp=2, tensor=3),
    ],
)
def test_axes_that_do_not_fit(config):
    with pytest.raises(ValueError, match="does not fit the 8 cpu devices"):
        make_mesh(config)


class Device(NamedTuple):
    process_index: int


def test_a_process_without_a_device_is_named(monkeypatch):
    found = [Device(0), Device(0), Device(1)]
    monkeypatch.setattr("star_jax.parallel.processes.devices", lambda: found)
    with pytest.raises(ValueError, match=r"data 2 x .* has no device of process 1, needed some"):
        make_mesh(MeshConfig(data=2))


def test_bad_sizes():
    with pytest.raises(ValueError, match="data 0"):
        MeshConfig(data=0)
    with pytest.raises(ValueError, match="fsdp 0"):
        MeshConfig(fsdp=0)
    with pytest.raises(ValueError, match="tensor 0"):
        MeshConfig(tensor=0)
