"""Inference on a mesh: rows first, and parameters of the plan."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nnopt_jax import parallel
from nnopt_jax.errors import ShapeError
from tests.parallel import networks

PARAMS = {"w": jnp.arange(3.0)}


def forward(apply):
    return parallel.predict(apply, networks.plan({"data": 8}, PARAMS))


@pytest.mark.parametrize("rows", [1, 5, 8, 16])
def test_rows_that_do_not_divide_are_filled_up_and_cut(rows):
    x = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    found = forward(lambda p, x: {"y": x @ p["w"], "x": x})(PARAMS, x)
    np.testing.assert_allclose(found["y"], x @ np.arange(3.0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["x"], x)


def test_outputs_without_rows_are_refused():
    run = forward(lambda p, x: {"t": x.T, "sum": x.sum(), "x": x})
    with pytest.raises(ShapeError) as error:
        run(PARAMS, np.ones((15, 24), np.float32))
    told = str(error.value)
    assert "t: has shape (24, 16) for a batch of 16 rows; rows come first" in told
    assert "sum: has shape ()" in told
    assert "x: " not in told


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"w": jnp.ones(4)}, r"w: is float32\[4\], planned for float32\[3\]"),
        ({"w": jnp.ones(3, jnp.bfloat16)}, r"w: is bfloat16\[3\], planned for"),
        ({"v": jnp.ones(3)}, "v: is not in the plan"),
    ],
)
def test_parameters_of_another_plan_are_refused(params, text):
    with pytest.raises(ShapeError, match=text):
        forward(lambda p, x: x)(params, np.ones((8, 3), np.float32))
