"""Learned clipping against its closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnopt_jax.errors import ValueRangeError
from nnopt_jax.quantization import pact

F32 = np.float32


@pytest.mark.parametrize("bits", [1, 4])
def test_value_and_gradients_by_the_formula(bits):
    x = np.append(np.random.default_rng(0).normal(size=60) * 3, [0, 2.5, -0.0]).astype(F32)
    slope = np.cos(np.arange(63)).astype(F32)
    alpha = 2.5
    shown, pull = jax.vjp(lambda x, a: pact(x, a, bits), jnp.asarray(x), jnp.float32(alpha))
    dx, dalpha = pull(slope)
    levels = 2**bits - 1
    y = 0.5 * (np.abs(x.astype(np.float64)) - np.abs(x - alpha) + alpha)  # equation 1
    np.testing.assert_allclose(shown, np.rint(y * levels / alpha) * alpha / levels, rtol=1e-6)
    np.testing.assert_array_equal(dx, np.where((x >= 0) & (x < alpha), slope, 0))
    np.testing.assert_allclose(dalpha, slope[x >= alpha].sum(), rtol=1e-5)
    assert len(np.unique(np.asarray(shown))) <= 2**bits
    assert not np.signbit(np.asarray(shown)).any()


@pytest.mark.slow
def test_odd_values():
    x = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 1.0])
    np.testing.assert_allclose(pact(x, 1.5), [np.nan, 1.5, 0, 1], rtol=1e-6)
    for alpha in (0.0, -1.0, 1e-40):
        shown, slope = jax.value_and_grad(lambda a: pact(x[1:], a).sum())(alpha)
        assert shown == 0
        assert slope > 0, "alpha cannot come back"
    assert pact(x.astype(jnp.bfloat16), 1.5).dtype == jnp.bfloat16
    with pytest.raises(ValueRangeError, match="pact: bits=0 is not a whole number"):
        pact(x, 1.0, bits=0)


def test_a_level_that_is_broken_is_seen():
    assert np.isnan(pact(jnp.ones(3), jnp.nan)).all()
