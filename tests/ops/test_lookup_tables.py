"""Levels: the tables against their definitions, and rounding against a search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import norm

from nnopt_jax.ops.lookup_tables import BINARY, E2M1, NF4, TERNARY, level_values, nearest_level

TABLES = {"signs": BINARY, "ternary": TERNARY, "E2M1": E2M1, "NF4": NF4}


def test_nf4_is_made_of_quantiles():
    """QLoRA, appendix E: 8 quantiles above zero, 7 below and zero, so that the ends are +-1."""
    offset = 0.9677083
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    wanted = np.sort([*above, 0, *below]) / above.max()
    np.testing.assert_allclose(NF4, wanted, atol=2e-7)


def test_e2m1_is_made_of_bits():
    """Sign, two bits of exponent of bias 1, one bit of mantissa; exponent 0 is subnormal."""
    values = {0.0}
    for exponent in range(4):
        for mantissa in range(2):
            size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
            values |= {size, -size}
    assert sorted(values) == list(E2M1)


@pytest.mark.parametrize("table", TABLES)
@given(seed=st.integers(0, 2**32 - 1))
def test_nearest_is_nearest(table, seed):
    levels = np.array(TABLES[table], np.float32).astype(np.float64)
    v = np.random.default_rng(seed).normal(0, levels[-1], 50).astype(np.float32)
    codes = np.asarray(nearest_level(v, TABLES[table])).astype(int)
    off = np.abs(levels[codes] - v)
    np.testing.assert_allclose(off, np.abs(levels - v[:, None]).min(1), atol=1e-7)
    np.testing.assert_array_equal(level_values(codes, TABLES[table]), levels[codes])


def test_halfway_takes_the_smaller_magnitude():
    halves = np.array([0.25, 0.75, 2.5, 5.0], np.float32)
    for sign in (1, -1):
        shown = level_values(nearest_level(sign * halves, E2M1), E2M1)
        np.testing.assert_array_equal(np.abs(shown), [0.0, 0.5, 2.0, 4.0])
    np.testing.assert_array_equal(nearest_level(np.array([0.0, -0.0]), BINARY), [1, 1])


@pytest.mark.parametrize("table", TABLES)
def test_ends_and_nan(table):
    codes = nearest_level(np.array([-np.inf, np.inf, np.nan], np.float32), TABLES[table])
    np.testing.assert_array_equal(codes, [0, len(TABLES[table]) - 1, np.nan])
    assert np.isnan(level_values(codes, TABLES[table])[2])
