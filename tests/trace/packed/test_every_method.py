"""Leaves of every registered method, moved and multiplied, are what their arrays would be."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import nnopt_jax as nnopt
from tests.contract.cases import SINGLE, replaces, single

MOVES = {
    "as it is": lambda w: w,
    "axes turned": lambda w: w.transpose(0, 2, 1),
    "all axes turned": lambda w: w.T,
    "a layer": lambda w: w[1],
    "the last layer alone": lambda w: w[-1:].squeeze(0),
    "backwards": lambda w: w[::-1, ::-1],
    "axes merged": lambda w: w.reshape(-1, w.shape[-1]),
    "axes split": lambda w: w.reshape(2, 4, 4, 8),
    "a part": lambda w: w[:, 2:10, 1:5],
    "a part told late": lambda w: lax.dynamic_slice_in_dim(w, jnp.int32(4), 4, 1),
    "rows looked up": lambda w: w[jnp.array([1, 0, 1])],
    "rolled": lambda w: jnp.roll(w, 3, 1),
    "an axis between": lambda w: w[:, None],
    "twice": lambda w: jnp.concatenate([w, w], 1),
    "scaled": lambda w: w * 0.5,
    "narrow": lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
    "multiplied": lambda w: jnp.einsum("bi,lio->lbo", X, w),
    "multiplied on the other side": lambda w: jnp.einsum("bo,lio->bli", X[:, :8], w),
    "layer by layer": lambda w: lax.scan(lambda c, w: (c, X @ w), 0, w)[1],
}
PRODUCTS = ("multiplied", "multiplied on the other side", "layer by layer")
X = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
PARAMS = {
    "layers": {"kernel": np.random.default_rng(0).normal(size=(2, 16, 8)).astype(np.float32)},
    "embed": np.random.default_rng(2).normal(size=(8, 4)).astype(np.float32),
}
SHORTLY = (
    "quantization.uniform-1", "quantization.ttq-0", "quantization.grouped-0",
    "quantization.mxfp4-0", "quantization.twn-0", "compression.codebook-0",
    "pruning.magnitude-4", "transfer.lora-0",
)  # fmt: skip


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, marks=() if key in SHORTLY else pytest.mark.slow)
        for key in SINGLE
        if not replaces(key)  # those want leaves of their own
    ],
)
def test_a_leaf_is_moved_as_its_array(key):
    tx = single(key).bind(axes={"layers/kernel": nnopt.Axes(1, 2, batch_axis=0)})
    stats = dict.fromkeys(tx.needs, jax.tree.map(np.abs, PARAMS))
    packed = tx.pack(PARAMS, tx.init(PARAMS, stats=stats, key=jax.random.key(0)))

    def moves(params):
        return {name: move(params["layers"]["kernel"]) for name, move in MOVES.items()}

    @jax.jit
    def outcomes(packed):
        found = nnopt.on_packed(moves)(packed)
        return nnopt.materialize(found), moves(nnopt.materialize(packed))

    found, wanted = outcomes(packed)
    for name in MOVES:
        if "quantize_activations" in key and name in PRODUCTS:
            continue  # their inputs are rounded; test_rounded.py looks at that
        far = 1e-2 if name == "narrow" else 1e-5  # what stays packed is rounded less
        np.testing.assert_allclose(
            found[name], wanted[name], rtol=far, atol=far, err_msg=f"{key}: {name}"
        )


def test_two_scales_follow_a_movement():
    """Of negative numbers, and of others, one for each row; by hand."""
    tx = nnopt.quantization.ttq(granularity="channel")
    params = {"w": jnp.array([[1.0, -2.0], [3.0, -8.0]])}
    packed = tx.pack(params, tx.init(params))
    dense = nnopt.materialize(packed)["w"]
    found = nnopt.on_packed(lambda p: (p["w"].T, p["w"][0], jnp.ones(2) @ p["w"].T))(packed)
    turned, row, product = nnopt.materialize(found)
    np.testing.assert_array_equal(turned, np.asarray(dense).T)
    np.testing.assert_array_equal(row, np.asarray(dense)[0])
    np.testing.assert_allclose(product, np.asarray(dense).sum(1))
