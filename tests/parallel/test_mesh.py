"""Meshes of named axes."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import AxisType

from nnopt_jax import parallel
from nnopt_jax.errors import ShapeError, ValueRangeError


def test_axes_are_automatic_and_in_the_order_given():
    mesh = parallel.mesh(data=2, fsdp=-1, model=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "model": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_some_devices_will_do():
    assert parallel.mesh(devices=jax.devices()[:3], data=-1).size == 3


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ({"data": 3}, r"data=3 takes 3 devices, and there are 8.*devices=jax.devices\(\)\[:3\]"),
        ({"data": 16}, "data=16 takes 16 devices, and there are 8; change an axis"),
        ({"data": 3, "model": -1}, "takes a multiple of 3 devices"),
    ],
)
def test_sizes_that_do_not_multiply_to_the_devices(axes, told):
    with pytest.raises(ShapeError, match=told):
        parallel.mesh(**axes)


def test_sizes_that_are_none():
    with pytest.raises(ValueRangeError, match=r"names no axis"):
        parallel.mesh()
    with pytest.raises(ValueRangeError, match=r"more than one -1(.|\n)*model=1.5"):
        parallel.mesh(data=-1, fsdp=-1, model=1.5)
    with pytest.raises(ShapeError, match="devices are none, or one is there twice"):
        parallel.mesh(data=-1, devices=[])
    with pytest.raises(ShapeError, match="one is there twice"):
        parallel.mesh(data=2, devices=jax.devices()[:1] * 2)
