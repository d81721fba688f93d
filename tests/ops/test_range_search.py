"""Ranges by percentile and by squared error, against sorting and brute force in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from nnopt_jax.errors import ShapeError
from nnopt_jax.ops.grid import dequantize, grid_of_range, quantize
from nnopt_jax.ops.range_search import mse_range, percentile_range

F32 = np.float32
FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)
RANDOM = np.random.default_rng(0)


def _quantile(row: np.ndarray, percent: float) -> np.float32:
    """The greatest value after `round(n (1 - percent / 100))` of the greatest are left out."""
    beyond = int(np.rint(F32((100 - percent) / 100) * F32(row.size)))
    return np.sort(row)[::-1][min(beyond, row.size - 1)] if row.size else F32(0)


@pytest.mark.parametrize("symmetric", [True, False])
@given(
    x=arrays(F32, (6, 8), elements=FLOATS),
    mask=arrays(bool, (6, 8)),
    percent=st.sampled_from([50.0, 80.0, 99.0, 100.0]),
)
def test_percentile_equals_sorting(symmetric, x, mask, percent):
    bottom, top = percentile_range(x, (3, 8), percent, symmetric=symmetric, mask=mask)
    assert top.shape == bottom.shape == (2, 1)
    for i in range(2):
        row = x[3 * i : 3 * i + 3][mask[3 * i : 3 * i + 3]]
        ends = (np.abs(row), np.abs(row)) if symmetric else (-row, row)
        assert -bottom[i, 0] == _quantile(ends[0], percent)
        assert top[i, 0] == _quantile(ends[1], percent)


def test_percentile_of_odd_values():
    x = np.array([[np.nan, 1, 2, 3], [np.inf, -np.inf, 1, 2], [0, -0.0, 1e-45, 0]], F32)
    bottom, top = percentile_range(x, (1, 4), 75.0)
    np.testing.assert_array_equal(top.ravel(), [3, np.inf, 0])
    np.testing.assert_array_equal(-bottom, top)
    _, top = percentile_range(x, (1, 4), 100.0)
    np.testing.assert_array_equal(top.ravel()[:2], [np.nan, np.inf])
    assert percentile_range(np.zeros((0, 3), F32), (0, 1))[1].shape == (1, 3)
    with pytest.raises(ShapeError, match="percentile_range: block 5 does not fit axis 1"):
        percentile_range(x, (1, 5))


def _error(x: np.ndarray, bottom: float, top: float, bits: int, symmetric: bool) -> float:
    """Squared error of one block, in double precision, from the formulas."""
    high = 2 ** (bits - 1) - 1
    low = -high if symmetric else -high - 1
    scale = F32(max(-bottom, top) / high) if symmetric else F32((top - bottom) / (high - low))
    zero = 0.0 if symmetric else np.clip(np.rint(low - bottom / scale), low, high)
    codes = np.clip(np.rint(x / np.float64(scale)) + zero, low, high)
    return float(((x - (codes - zero) * scale) ** 2).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_is_the_least_of_all_shares(bits, symmetric):
    x = RANDOM.standard_t(3, size=(400, 3)).astype(F32) + F32(0.2)
    mask = RANDOM.random((400, 3)) < 0.9
    x[~mask] = 1e3
    bottom, top = mse_range(x, bits, (400, 1), symmetric=symmetric, mask=mask)
    for j in range(3):
        kept = x[mask[:, j], j].astype(np.float64)
        ends = (-np.abs(kept).max(), np.abs(kept).max()) if symmetric else (kept.min(), kept.max())
        tried = [_error(kept, f * ends[0], f * ends[1], bits, symmetric)
                 for f in 1 - np.arange(80) / 80]  # fmt: skip
        got = _error(kept, float(bottom[0, j]), float(top[0, j]), bits, symmetric)
        assert got <= min(tried) * (1 + 1e-4)
        assert (
            bits == 8 or min(tried) < tried[0] * 0.99
        )  # or the test could not tell a search from none


def test_mse_falls_back_to_the_extremes():
    x = np.array([[np.nan, 1, 2], [0, 0, 0], [3e38, -1e38, 1]], F32)
    bottom, top = mse_range(x, 4, (1, 3))
    np.testing.assert_array_equal(top.ravel(), F32([np.nan, 0, 3e38]))
    scale, _ = grid_of_range(bottom, top, 4)
    assert scale[0, 0] == scale[1, 0] == 1


def test_mse_tries_scales_as_they_are_stored():
    x = jnp.asarray(RANDOM.normal(size=(300,)), jnp.float32)
    options = {"scale_dtype": jnp.float8_e4m3fn}  # so coarse that it changes what is best
    bottom, top = mse_range(x, 3, (300,), **options)
    scale, zero = grid_of_range(bottom, top, 3, **options)
    got = float(((dequantize(quantize(x, scale, zero, -3, 3), scale) - x) ** 2).sum())
    best = min(
        float(((dequantize(quantize(x, one, None, -3, 3), one) - x) ** 2).sum())
        for f in 1 - np.arange(80) / 80
        for one in [grid_of_range(0.0, f * jnp.abs(x).max(keepdims=True), 3, **options)[0]]
    )
    assert got <= best * (1 + 1e-5)


def test_no_gradient_and_one_answer_compiled():
    x = jnp.asarray(RANDOM.normal(size=(4, 6)), jnp.float32)
    for find in (lambda x: percentile_range(x, (4, 1), 80.0), lambda x: mse_range(x, 4, (4, 1))):
        assert not jax.grad(lambda x, find=find: find(x)[1].sum())(x).any()
        for one, other in zip(find(x), jax.jit(find)(x), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_grid_of_a_range(symmetric):
    bottom, top = np.array([-1.0, 2.0, 0.0, np.nan], F32), np.array([3.0, 4.0, 0.0, 1.0], F32)
    scale, zero = grid_of_range(bottom, top, 8, symmetric=symmetric)
    wide = [3 / 127, 4 / 127] if symmetric else [4 / 255, 4 / 255]
    np.testing.assert_allclose(scale, [*wide, 1, 1], rtol=1e-6)
    if not symmetric:
        np.testing.assert_array_equal(zero, [np.rint(-128 + 255 / 4), -128, 0, 0])
