"""Rounding of activations: values by NumPy, gradients by the formula, and a model that learns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.quantization import EmaRange, dynamic, ema_grid, ema_range, fake_quant

F32 = np.float32
X = np.random.default_rng(1).normal(size=(5, 7)).astype(F32)


@pytest.mark.parametrize("zero", [None, 3.0])
def test_fake_quant_by_the_formula(zero):
    low, high = (-7, 7) if zero is None else (-8, 7)
    shift = zero or 0.0
    x = np.append(X.ravel() * 4, [low - 0.2 - shift, low - shift, high - shift, high + 0.2 - shift])
    x = x.astype(F32)
    slope = np.cos(np.arange(x.size)).astype(F32)
    shown, pull = jax.vjp(lambda x: fake_quant(x, 1.0, zero, bits=4), x)
    codes = np.clip(np.rint(x) + shift, low, high)
    np.testing.assert_array_equal(shown, codes - shift)
    inside = (low <= x + F32(shift)) & (x + F32(shift) <= high)
    np.testing.assert_array_equal(pull(slope)[0], np.where(inside, slope, 0))
    assert 0 < inside.sum() < x.size
    assert list(inside[-4:]) == [False, True, True, False]


def test_fake_quant_per_channel_in_small_dtypes_and_with_nan():
    scale = jnp.asarray([[0.5], [1.0], [2.0], [4.0], [8.0]])
    shown = fake_quant(jnp.asarray(X, jnp.bfloat16), scale)
    assert shown.dtype == jnp.bfloat16
    np.testing.assert_array_equal(shown.astype(jnp.float32) % scale, 0)
    shown = np.asarray(fake_quant(jnp.array([jnp.nan, jnp.inf, -0.1]), 1.0))
    np.testing.assert_array_equal(shown, [np.nan, 127, 0])
    assert not np.signbit(shown[2])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [None, -1, (0, 1)])
def test_dynamic_rounds_on_the_range_of_its_rows(axis, symmetric):
    x = X.copy()
    if axis == -1:
        x[0] = 0
    shown = np.asarray(dynamic(x, 6, axis, symmetric))
    axes = (0, 1) if axis is None else axis
    top = np.maximum(x.max(axes, keepdims=True), 0)
    bottom = -np.minimum(x.min(axes, keepdims=True), 0)
    step = np.maximum(top, bottom) / 31 if symmetric else (top + bottom) / 63
    assert (np.abs(shown - x) <= step * 0.5001).all()
    steps = shown / np.where(step > 0, step, 1)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert (jax.grad(lambda x: dynamic(x, 6, axis, symmetric).sum())(jnp.asarray(x)) == 1).all()


def test_settings_are_checked_at_once():
    with pytest.raises(ValueRangeError) as caught:
        dynamic(X, 1, axis=2, symmetric=1)  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == (
        "quantization.dynamic: 3 problems\n"
        "  bits=1 is not a whole number from 2 to 16.\n"
        "  symmetric=1 is neither True nor False.\n"
        "  axis=2 is not a whole number from -2 to 1."
    )
    with pytest.raises(ValueRangeError, match="fake_quant: bits=32"):
        fake_quant(X, 1.0, bits=32)


@pytest.mark.slow
def test_a_model_learns_with_weights_and_activations_of_8_bits():
    """Weights by a transform, activations by functions in the model, ranges carried beside it."""
    tx = nnopt.quantization.uniform(8, granularity="channel")
    x = jnp.asarray(np.random.default_rng(2).normal(size=(64, 6)), jnp.float32)
    target = jnp.tanh(x @ jnp.arange(6.0)[:, None])
    params = {"a": jax.random.normal(jax.random.key(0), (6, 16)),
              "b": jax.random.normal(jax.random.key(1), (16, 1)) / 4}  # fmt: skip

    def loss(params, seen):
        hidden = jax.nn.relu(dynamic(x, axis=-1) @ params["a"])
        seen = ema_range(seen, hidden, 0.9)
        hidden = fake_quant(hidden, *ema_grid(seen, symmetric=False))
        return jnp.mean((hidden @ params["b"] - target) ** 2), seen

    optimizer = optax.adam(3e-2)
    state, seen = tx.init(params), EmaRange.start()
    moments = optimizer.init(nnopt.trainable(tx, params, state))

    @jax.jit
    def step(params, state, moments, seen):
        (value, seen), grads = nnopt.value_and_grad(loss, tx, has_aux=True)(params, state, seen)
        moving = nnopt.trainable(tx, params, state)
        updates, moments = optimizer.update(grads.train, moments, moving)
        return *nnopt.step(tx, params, state, updates, grads), moments, seen, value

    values = []
    for _ in range(60):
        params, state, moments, seen, value = step(params, state, moments, seen)
        values.append(float(value))
    assert values[-1] < 0.2 * values[0]
    packed = nnopt.materialize(tx.pack(params, state))
    trained, _ = jax.jit(loss)(tx.apply(params, state), seen)
    np.testing.assert_array_equal(jax.jit(loss)(packed, seen)[0], trained)
