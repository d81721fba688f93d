"""Block formats against their formulas, one block and one number at a time."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnopt_jax.ops import block_formats
from nnopt_jax.ops.block_formats import _Q4_0_STARTS

F32 = np.float32
X = np.random.default_rng(2).normal(0, 0.05, (12, 4)).astype(F32)
MASK = np.random.default_rng(3).random((12, 4)) < 0.6


def _blocks(x):
    """Blocks of 4 along the first axis: shape (3, 4 entries, columns)."""
    return x.reshape(3, 4, x.shape[1])


@pytest.mark.isa
def test_means_and_extremes_count_what_is_kept():
    size = _blocks(np.where(MASK, np.abs(X), 0))
    count = np.maximum(_blocks(MASK).sum(1), 1)
    np.testing.assert_array_equal(block_formats.block_count(X.shape, (4, 1), MASK), count)
    np.testing.assert_array_equal(block_formats.block_largest(X, (4, 1), MASK), size.max(1))
    np.testing.assert_allclose(
        block_formats.block_mean(X, (4, 1), MASK), size.sum(1) / count, rtol=1e-6
    )
    np.testing.assert_allclose(
        block_formats.block_mean(X, (12, 4)), [[np.abs(X).mean()]], rtol=1e-6
    )


def test_a_mean_of_large_weights_does_not_overflow():
    assert float(block_formats.block_mean(np.full(100, 3e38, F32), (100,))[0]) == pytest.approx(
        3e38
    )


def test_exponents_are_floors_of_logarithms():
    sizes = np.array([1e-30, 0.1, 1.0, 1.99999, 2.0, 3.0, 7.99, 1e30], F32)
    wanted = [127 + math.floor(math.log2(size)) - 2 for size in sizes]
    found = block_formats.shared_exponent(sizes)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(
        block_formats.power_of_two(found), 2.0 ** (np.array(wanted) - 127)
    )
    np.testing.assert_array_equal(block_formats.shared_exponent(np.array([0.0, 1e-45])), [0, 0])


def test_in_units_of_a_scale_of_no_use():
    units = block_formats.in_units(np.array([[1.0, -2.0, np.nan]], F32), np.array([[0.0]], F32))
    np.testing.assert_array_equal(units, [[0, 0, np.nan]])


@pytest.mark.parametrize("compiled", [False, True])
def test_q8_0_rounds_away_from_zero(compiled):
    step = (jax.jit if compiled else lambda f, **_: f)(
        lambda x: block_formats.q8_0_step(x, (4, 1))
    )(X)
    wanted = np.abs(_blocks(X)).max(1) / F32(127)
    np.testing.assert_array_equal(step, wanted)
    v = X * (F32(1) / np.repeat(wanted, 4, 0))
    away = np.sign(v) * np.floor(np.abs(v).astype(np.float64) + 0.5)
    codes = (jax.jit if compiled else lambda f: f)(block_formats.q8_0_codes)(X, step)
    np.testing.assert_array_equal(codes, away)
    halves = block_formats.q8_0_codes(
        np.array([[0.5, 1.5, -2.5, -0.25]], F32), np.ones((1, 1), F32)
    )
    np.testing.assert_array_equal(halves, [[1, 2, -3, 0]])
    assert not np.signbit(halves[0, 3])


@pytest.mark.parametrize("compiled", [False, True])
def test_q4_0_truncates_a_rounded_sum(compiled):
    """Values around every step between two codes, where one rounding more would tell."""
    step = np.ones((1, 1), F32)
    near = [
        F32(k - 8.5) + F32(i) * np.spacing(F32(k - 8.5)) for k in range(16) for i in range(-9, 9)
    ]
    v = np.array(near, F32)[None]
    with np.errstate(all="ignore"):
        wanted = np.clip(np.trunc(v + F32(8.5)), 0, 15) - 8
    codes = (jax.jit if compiled else lambda f: f)(block_formats.q4_0_codes)(v, step)
    np.testing.assert_array_equal(codes, wanted)
    assert len(set(_Q4_0_STARTS)) == 15


def test_the_first_of_equal_magnitudes_gives_the_sign():
    x = np.array([[1.0, -4.0, 2.0], [4.0, 4.0, 0.0], [-4.0, -4.0, 0.0]], F32).T
    np.testing.assert_array_equal(block_formats.q4_0_step(x, (3, 1)), [[0.5, -0.5, 0.5]])
    kept = np.array([[True, False, True], [False, True, True], [True, True, True]]).T
    np.testing.assert_array_equal(block_formats.q4_0_step(x, (3, 1), kept), [[-0.25, -0.5, 0.5]])


def test_scales_stay_in_the_range_of_their_dtype():
    scale = block_formats.stored_scale(jnp.array([1e9, -1e9, jnp.nan, jnp.inf, 6e-8]), jnp.float16)
    np.testing.assert_array_equal(scale, np.array([65504, -65504, 1, 1, 6e-8], np.float16))
