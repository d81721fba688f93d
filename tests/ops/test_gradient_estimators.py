from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnopt_jax.errors import ShapeError
from nnopt_jax.ops.gradient_estimators import gate, straight_through

ODD = np.array([np.inf, -np.inf, np.nan, -0.0, 1e-45, 3e38], np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "bool", "complex64"])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.vmap], ids=["eager", "jit", "vmap"])
def test_shows_y_bit_for_bit(dtype, wrap) -> None:
    y = jnp.asarray(np.where(np.isfinite(ODD), ODD, 1) if dtype in ("int8", "bool") else ODD)
    y = jnp.clip(y, -100, 100).astype(dtype) if dtype == "int8" else y.astype(dtype)
    shown = wrap(straight_through)(y, jnp.ones(6))
    assert shown.dtype == y.dtype
    assert np.asarray(shown).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_gradient_reaches_both(wrap) -> None:
    weight = jnp.array([1.0, -2.0, 3.0])

    def loss(y, x):
        return jnp.sum(weight * straight_through(jnp.sin(y), x.astype(jnp.float32)))

    y, x = jnp.array([0.1, 0.2, 0.3]), jnp.array([5.0, 6.0, 7.0], jnp.bfloat16)
    dy, dx = wrap(jax.grad(loss, (0, 1)))(y, x)
    np.testing.assert_allclose(dy, weight * jnp.cos(y), rtol=1e-6)
    np.testing.assert_array_equal(dx, weight.astype(jnp.bfloat16))
    assert dx.dtype == jnp.bfloat16


def test_tangent_is_cast_to_what_is_shown() -> None:
    y, x = jnp.ones(2, jnp.bfloat16), jnp.ones(2)
    _, tangent = jax.jvp(straight_through, (y, x), (y, 2 * x))
    assert tangent.dtype == jnp.bfloat16
    np.testing.assert_array_equal(tangent, jnp.full(2, 3.0, jnp.bfloat16))


def test_integers_pass_without_gradient() -> None:
    grad = jax.grad(lambda x: jnp.sum(x * straight_through(jnp.arange(3), x)))(jnp.ones(3))
    np.testing.assert_array_equal(grad, [0.0, 1.0, 2.0])


def test_shapes_must_be_equal() -> None:
    with pytest.raises(ShapeError, match=r"y has shape \(2,\) and x \(3,\)"):
        straight_through(np.ones(2), np.ones(3))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_gate(wrap) -> None:
    inside = np.array([True, False, True, False, True, False])
    shown = wrap(gate)(ODD, inside)
    assert np.asarray(shown).tobytes() == ODD.tobytes()
    grad = wrap(jax.grad(lambda x: jnp.sum(gate(x, inside) * 3)))(jnp.ones(6))
    np.testing.assert_array_equal(grad, 3.0 * inside)


def test_gate_stops_even_infinite_gradients() -> None:
    grad = jax.grad(lambda x: jnp.inf * gate(x, jnp.asarray(False)))(1.0)
    assert grad == 0
