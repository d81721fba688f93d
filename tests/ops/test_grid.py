from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from nnopt_jax.errors import ShapeError, ValueRangeError
from nnopt_jax.ops.grid import dequantize, expand, fit_grid, integer_range, quantize

FIT = jax.jit(fit_grid, static_argnums=(1, 2), static_argnames=("symmetric", "scale_dtype"))
BLOCKS = [(6, 8), (6, 1), (1, 8), (1, 1), (3, 8), (6, 2), (2, 4)]
FLOATS = st.floats(-1e4, 1e4, width=32)


def blocks_of(x: np.ndarray, block: tuple[int, ...]) -> np.ndarray:
    """Lays blocks out as rows: (blocks on axis 0, blocks on axis 1, entries of a block)."""
    a, b = x.shape[0] // block[0], x.shape[1] // block[1]
    return x.reshape(a, block[0], b, block[1]).transpose(0, 2, 1, 3).reshape(a, b, -1)


def reference_fit(x, mask, bits, symmetric, block):
    """Float32 arithmetic, as the formulas say."""
    rows = blocks_of(np.where(mask, x, 0), block)
    one = np.float32(1)
    hi = np.float32(2 ** (bits - 1) - 1)
    if symmetric:
        scale = np.abs(rows).max(-1) * (one / hi)
        return np.where(scale < np.finfo(np.float32).tiny, one, scale), None
    lo, levels = -hi - 1, 2 * hi + 1
    top, bottom = np.maximum(rows.max(-1), 0), np.minimum(rows.min(-1), 0)
    scale = (top / 2 - bottom / 2) * np.float32(2 / levels)
    bad = scale < np.finfo(np.float32).tiny
    scale = np.where(bad, one, scale)
    return scale, np.where(bad, 0, np.clip(np.rint(lo - bottom / scale), lo, hi))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("symmetric", [True, False])
@given(
    x=arrays(np.float32, (6, 8), elements=FLOATS),
    mask=arrays(bool, (6, 8)),
    bits=st.sampled_from([2, 8]),
)
def test_fit_equals_numpy(block, symmetric, x, mask, bits) -> None:
    scale, zero = FIT(x, bits, block, symmetric=symmetric, mask=mask)
    wanted, wanted_zero = reference_fit(x, mask, bits, symmetric, block)
    np.testing.assert_array_equal(scale, wanted)
    if symmetric:
        assert zero is None
    else:
        assert zero.dtype == jnp.float32
        np.testing.assert_array_equal(zero, wanted_zero)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("symmetric", [True, False])
@given(x=arrays(np.float32, (6, 8), elements=FLOATS))
def test_values_come_back_within_half_a_step(block, symmetric, x) -> None:
    lo, hi = integer_range(8, symmetric=symmetric)
    scale, zero = FIT(x, 8, block, symmetric=symmetric)
    codes = quantize(x, scale, zero, lo, hi)
    assert codes.dtype == jnp.float32
    assert np.all((codes >= lo) & (codes <= hi) & (codes == np.rint(codes)))
    back = dequantize(codes, scale, zero)
    np.testing.assert_array_less(np.abs(back - x), expand(scale, x.shape) * 0.5001 + 1e-30)
    assert not np.signbit(np.asarray(back)[np.asarray(back) == 0]).any()
    np.testing.assert_array_equal(dequantize(codes.astype(jnp.int8), scale, zero), back)
    wanted = np.repeat(np.repeat(scale, block[0], 0), block[1], 1)
    np.testing.assert_array_equal(expand(scale, x.shape), wanted)


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_those_of_torch_fake_quantize(symmetric) -> None:
    x = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32) * 3
    lo, hi = integer_range(4, symmetric=symmetric)
    scale, zero = np.full((6, 1), 0.3, np.float32), np.full((6, 1), -3.0, np.float32)
    zero = None if symmetric else zero
    inverse = np.float32(1) / scale
    wanted = np.clip(np.rint(x * inverse) + (0 if symmetric else -3), lo, hi)
    np.testing.assert_array_equal(quantize(x, scale, zero, lo, hi), wanted)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_eager_equals_jit(symmetric, dtype) -> None:
    x = jnp.asarray(np.random.default_rng(1).standard_normal((64, 96)), dtype)
    lo, hi = integer_range(8, symmetric=symmetric)

    def run(x):
        scale, zero = fit_grid(x, 8, (16, 1), symmetric=symmetric)
        codes = quantize(x, scale, zero, lo, hi)
        return scale, codes, dequantize(codes, scale, zero, dtype)

    for eager, compiled in zip(run(x), jax.jit(run)(x), strict=True):
        assert eager.dtype == compiled.dtype
        np.testing.assert_array_equal(eager, compiled)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "row",
    [
        [0, 0, 0],
        [np.nan, 1, -2],
        [np.inf, 1, -2],
        [-np.inf, 1, 2],
        [1e-45, -1e-44, 0],
        [1e-38, 0, 0],
        [3.4e38, -3.4e38, 1],
    ],
)
@pytest.mark.parametrize("scale_dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_blocks_of_no_use(symmetric, row, scale_dtype) -> None:
    x = np.array([row, [1, 2, -3]], np.float32)
    lo, hi = integer_range(8, symmetric=symmetric)
    scale, zero = jax.jit(
        lambda x: fit_grid(x, 8, (1, 3), symmetric=symmetric, scale_dtype=scale_dtype)
    )(x)
    assert scale.dtype == scale_dtype
    assert np.isfinite(np.asarray(scale, np.float32)).all()
    if max(np.abs(row)) < 1e30:  # also NaN and infinities fail this
        assert scale[0, 0] == 1
    codes = quantize(x, scale, zero, lo, hi)
    np.testing.assert_array_equal(np.isnan(codes), np.isnan(x))
    assert np.isfinite(codes[~np.isnan(x)]).all()
    np.testing.assert_allclose(dequantize(codes, scale, zero)[1], x[1], atol=0.03)


def test_empty_scalar_and_masked_out() -> None:
    for shape in ((0, 3), ()):
        scale, zero = fit_grid(np.zeros(shape, np.float32), 8, shape, symmetric=False)
        assert scale.shape == zero.shape == tuple(1 for _ in shape)
        codes = quantize(np.zeros(shape, np.float32), scale, zero, -128, 127)
        assert dequantize(codes, scale, zero).shape == shape
    x = np.full((2, 3), np.nan, np.float32)
    x[1] = [1, 2, 3]
    scale, _ = fit_grid(x, 8, (1, 3), mask=~np.isnan(x))
    np.testing.assert_array_equal(scale, np.array([[1], [3 * np.float32(1 / 127)]], np.float32))


def test_scale_is_cast_before_it_is_used() -> None:
    x = np.array([1.0, 0.5, -0.3], np.float32)
    scale, zero = fit_grid(x, 8, (3,), symmetric=False, scale_dtype=jnp.bfloat16)
    exact = np.float32(1.3) * np.float32(1 / 255)
    assert float(scale[0]) == float(jnp.bfloat16(exact)) != exact
    assert float(zero[0]) == np.rint(-128 + np.float32(0.3) / np.float32(scale[0]))


@pytest.mark.parametrize("zero", [None, 3.0])
def test_gradients(zero) -> None:
    x = jnp.array([-5.0, -0.6, 0.24, 1.9, 9.0])
    step, weight = jnp.array([0.5]), jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
    zeros = None if zero is None else jnp.array([zero])

    def loss(x, step):
        return jnp.sum(weight * dequantize(quantize(x, step, zeros, -7, 7), step, zeros))

    dx, dstep = jax.grad(loss, (0, 1))(x, step)
    shift = zero or 0.0
    ratio = np.asarray(x) / 0.5
    inside = (ratio + shift >= -7) & (ratio + shift <= 7)
    codes = np.clip(np.rint(ratio), -7 - shift, 7 - shift)
    np.testing.assert_allclose(dx, weight * inside, rtol=1e-6)
    wanted = np.sum(weight * np.where(inside, codes - ratio, codes))
    np.testing.assert_allclose(dstep, [wanted], rtol=1e-6)


def test_no_gradient_through_the_fit() -> None:
    grad = jax.grad(lambda x: jnp.sum(fit_grid(x, 8, (3,))[0]))(jnp.array([1.0, 2.0, 3.0]))
    assert not grad.any()


def test_bad_arguments() -> None:
    x = np.ones((6, 8), np.float32)
    with pytest.raises(ValueRangeError, match="bits=1 is not one of 2 to 16"):
        fit_grid(x, 1, (6, 8))
    with pytest.raises(ShapeError, match=r"(?s)block 7 does not fit axis 0.*block 0 .* axis 1"):
        fit_grid(x, 8, (7, 0))
    with pytest.raises(ShapeError, match="one size an axis"):
        fit_grid(x, 8, (6,))
    with pytest.raises(ShapeError, match=r"a scale of shape \(4, 1\)"):
        expand(np.ones((4, 1), np.float32), x.shape)
    with pytest.raises(ShapeError, match=r"a scale of shape \(6,\)"):
        quantize(x, np.ones(6, np.float32), None, -7, 7)
