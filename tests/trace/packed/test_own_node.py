"""A node that somebody else wrote runs packed, by the hooks that it defines."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import nnopt_jax as nnopt
from nnopt_jax.arrays import Node, Reshaped
from nnopt_jax.errors import CompositionError
from tests.trace.packed.own_node import Signed

W = Signed(jax.random.bernoulli(jax.random.key(0), shape=(8, 6)), jnp.float32(0.25))
X = jax.random.normal(jax.random.key(1), (3, 8))


def convolution(w, x):
    images, kernel = x.reshape(1, 4, 6), w.reshape(2, 6, 4)
    return lax.conv_general_dilated(
        images, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )


PROGRAMS = {
    "product": lambda w, x: x @ w,
    "transposed": lambda w, x: w.T @ x.T,
    "cut": lambda w, x: x[:, 2:5] @ w[2:5],
    "looked up": lambda w, x: w[jnp.array([3, 1])].sum() * x,
    "scanned": lambda w, x: lax.scan(lambda c, row: (c + x[:, :6] @ row, row), jnp.zeros(3), w)[0],
    "convolved": convolution,
    "experts": lambda w, x: lax.ragged_dot(x[:, :4], w.reshape(2, 4, 6), jnp.array([1, 2])),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_node_with_hooks_runs_packed(name):
    run = nnopt.on_packed(PROGRAMS[name])
    assert run.report(W, X).materialized == ()
    wanted = PROGRAMS[name](W.materialize(), X)
    np.testing.assert_allclose(jax.jit(run)(W, X), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda w: w * 2, "its outcome is returned"),
        (lambda w: w.astype(jnp.bfloat16), "its outcome is returned"),
        (
            lambda w: jnp.concatenate([w, w]),
            "it is concatenated, and has fields that cannot be",
        ),
    ],
)
def test_a_hook_that_it_lacks_says_why(function, reason):
    with pytest.raises(CompositionError, match=reason):
        nnopt.on_packed(function, strict=True)(W)
    np.testing.assert_array_equal(nnopt.on_packed(function)(W), function(W.materialize()))


def test_padding_with_zeros_masks_it():
    padded = nnopt.on_packed(lambda w: jnp.pad(w, ((0, 2), (0, 0))))(W)
    assert isinstance(padded, nnopt.arrays.Masked)
    np.testing.assert_array_equal(padded.materialize(), jnp.pad(W.materialize(), ((0, 2), (0, 0))))


def test_it_trains():
    def loss(magnitude, x, y):
        run = nnopt.on_packed(lambda w, x: x @ w, strict=True)
        return jnp.mean((run(W.replace(magnitude=magnitude), x) - y) ** 2)

    y = X @ W.replace(magnitude=jnp.float32(0.75)).materialize()
    magnitude = W.magnitude
    for _ in range(50):
        magnitude -= 0.02 * jax.jit(jax.grad(loss))(magnitude, X, y)
    assert float(magnitude) == pytest.approx(0.75, abs=1e-3)


def test_it_is_saved_and_loaded(tmp_path):
    nnopt.save(tmp_path / "own.nnopt", {"w": W})
    back = nnopt.load(tmp_path / "own.nnopt")["w"]
    assert type(back) is Signed
    np.testing.assert_array_equal(back.positive, W.positive)
    np.testing.assert_array_equal(back.magnitude, W.magnitude)


def test_it_is_prepacked_by_its_hook():
    ready = nnopt.prepack({"w": W}, dense=True)["w"]
    assert ready.positive.outline() == "Reshaped(base bool[6,8])"
    np.testing.assert_array_equal(ready.materialize(), W.materialize())
    run = nnopt.on_packed(lambda w, x: x @ w, strict=True)
    np.testing.assert_allclose(run(ready, X), X @ W.materialize(), rtol=1e-5, atol=1e-6)


def test_without_a_product_of_its_own_it_is_materialized_once():
    class NoProduct(Signed):
        dot = Node.dot

    ready = nnopt.prepack({"w": NoProduct(W.positive, W.magnitude)}, dense=True)["w"]
    assert isinstance(ready, Reshaped)
    np.testing.assert_array_equal(ready.materialize(), W.materialize())
