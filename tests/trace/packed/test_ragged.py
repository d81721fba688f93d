"""Experts of `jax.lax.ragged_dot` are multiplied by their codes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import nnopt_jax as nnopt

EXPERTS, IN, OUT, ROWS = 3, 8, 6, 10
DRAWS = np.random.default_rng(0)
PARAMS = {"w": DRAWS.normal(size=(EXPERTS, IN, OUT)).astype(np.float32)}
X = DRAWS.normal(size=(ROWS, IN)).astype(np.float32)
AXES = {"w": nnopt.Axes(1, 2, batch_axis=0)}


def apply(params, x, sizes):
    return lax.ragged_dot(x, params["w"], sizes)


def by_hand(weight, sizes):
    """Row after row, with NumPy; rows beyond the groups are zero."""
    out, row = np.zeros((ROWS, OUT), np.float32), 0
    for expert, count in enumerate(sizes):
        out[row : row + count] = X[row : row + count] @ weight[expert]
        row += count
    return out


@pytest.mark.parametrize("sizes", [(4, 0, 6), (10, 0, 0), (2, 3, 1)], ids=str)
@pytest.mark.parametrize("method", ["int8", "ternary", "factors"])
def test_rows_are_those_of_their_expert(method, sizes):
    tx = {
        "int8": nnopt.quantization.uniform(8, granularity="channel").bind(axes=AXES),
        "ternary": nnopt.quantization.twn(),
        "factors": nnopt.compression.low_rank(2).bind(axes=AXES),
    }[method]
    state = tx.init(PARAMS)
    packed, weight = tx.pack(PARAMS, state), np.asarray(tx.apply(PARAMS, state)["w"])
    run = nnopt.on_packed(apply)
    assert not run.report(packed, X, jnp.array(sizes)).materialized
    found = jax.jit(run)(packed, X, jnp.array(sizes))
    np.testing.assert_allclose(found, by_hand(weight, sizes), rtol=1e-5, atol=1e-5)


def test_slopes_reach_the_rows():
    tx = nnopt.quantization.uniform(8, granularity="channel").bind(axes=AXES)
    state, sizes = tx.init(PARAMS), jnp.array([4, 0, 6])
    packed, weight = tx.pack(PARAMS, state), np.asarray(tx.apply(PARAMS, state)["w"])
    slope = jax.grad(lambda x: nnopt.on_packed(apply)(packed, x, sizes).sum())(jnp.asarray(X))
    wanted = np.concatenate([np.tile(weight[0].sum(1), (4, 1)), np.tile(weight[2].sum(1), (6, 1))])
    np.testing.assert_allclose(slope, wanted, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_is_said():
    tx = nnopt.quantization.uniform(8)
    packed = tx.pack({"w": X}, tx.init({"w": X}))
    report = nnopt.on_packed(lambda p: lax.ragged_dot(p["w"], PARAMS["w"], jnp.array([4, 0, 6])))
    (use,) = report.report(packed).materialized
    assert use.reason == "it is not the experts of the product"
