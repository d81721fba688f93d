from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from nnopt_jax.ops.gradient_estimators import round_clip

FLOATS = st.floats(width=32, allow_nan=False)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@given(v=arrays(np.float32, 64, elements=FLOATS))
def test_equals_numpy_and_has_no_negative_zero(wrap, v) -> None:
    code = np.asarray(wrap(round_clip)(v, -7, 8))
    np.testing.assert_array_equal(code, np.clip(np.rint(v), -7, 8))
    assert not np.signbit(code[code == 0]).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_halves_go_to_even(dtype) -> None:
    v = jnp.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], dtype)
    code = round_clip(v, -8, 7)
    assert code.dtype == dtype
    np.testing.assert_array_equal(np.asarray(code, np.float32), [-2, -2, 0, 0, 2, 2])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_gradient_mask_is_on_the_unrounded_value(wrap) -> None:
    v = jnp.array([-7.4, -7.0, -6.6, 0.0, 6.9, 7.0, 7.000001, 7.4, jnp.inf, -jnp.inf])
    weight = jnp.arange(1.0, 11.0)
    grad = wrap(jax.grad(lambda v: jnp.sum(weight * round_clip(v, -7, 7))))(v)
    np.testing.assert_array_equal(grad, weight * np.array([0, 1, 1, 1, 1, 1, 0, 0, 0, 0]))


def test_bounds_may_be_arrays_and_get_no_gradient() -> None:
    lo, hi = jnp.array([[-1.0], [-2.0]]), jnp.array([[1.0], [2.0]])
    v = jnp.array([[-9.0, 0.6, 1.4], [-9.0, 0.6, 1.6]])
    np.testing.assert_array_equal(round_clip(v, lo, hi), [[-1, 1, 1], [-2, 1, 2]])
    dlo, dhi = jax.grad(lambda lo, hi: jnp.sum(round_clip(v, lo, hi)), (0, 1))(lo, hi)
    assert not dlo.any()
    assert not dhi.any()


def test_nan_is_not_hidden_and_infinite_bounds_only_round() -> None:
    np.testing.assert_array_equal(round_clip(np.array([np.nan, 9.0]), -7, 7), [np.nan, 7])
    np.testing.assert_array_equal(round_clip(np.array([-0.4, 1e9]), -np.inf, np.inf), [0, 1e9])
