"""Codes of three values: the layout, the way back, and NumPy's twin of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from nnopt_jax.errors import ShapeError
from nnopt_jax.ops.bit_packing import (
    host_pack_ternary,
    host_unpack_ternary,
    pack_ternary,
    unpack_ternary,
)

ROUND_TRIP = jax.jit(lambda codes: unpack_ternary(pack_ternary(codes), codes.shape[-1]))


def reference_pack(codes: np.ndarray) -> list[int]:
    """Each byte by itself, as the docstring says."""
    count = -(-len(codes) // 5)
    digits = [int(code) for code in codes] + [0] * (5 * count - len(codes))
    values = [sum(3 ** (4 - i) * digits[i * count + j] for i in range(5)) for j in range(count)]
    return [-(-256 * value // 243) for value in values]


@pytest.mark.parametrize("size", [0, 1, 4, 5, 6, 99])
def test_layout(size):
    codes = np.random.default_rng(size).integers(0, 3, size)
    words = pack_ternary(codes)
    assert words.dtype == jnp.uint8
    np.testing.assert_array_equal(words, reference_pack(codes))
    np.testing.assert_array_equal(unpack_ternary(words, size), codes)


def test_every_byte_comes_back():
    """All 243 combinations of five digits."""
    codes = np.stack(np.unravel_index(np.arange(243), (3,) * 5), -1)
    np.testing.assert_array_equal(ROUND_TRIP(codes), codes)
    assert len(np.unique(pack_ternary(codes))) == 243


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([7, 60]))
def test_round_trip_and_the_twin_of_the_file(seed, size):
    codes = np.random.default_rng(seed).integers(0, 3, (3, size), np.uint8)
    words = np.asarray(pack_ternary(codes))
    np.testing.assert_array_equal(ROUND_TRIP(codes), codes)
    np.testing.assert_array_equal(host_pack_ternary(codes), words)
    np.testing.assert_array_equal(host_unpack_ternary(words, size), codes)


def test_any_axis():
    codes = np.random.default_rng(1).integers(0, 3, (12, 2))
    words = pack_ternary(codes, axis=0)
    assert words.shape == (3, 2)
    np.testing.assert_array_equal(unpack_ternary(words, 12, axis=0), codes)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="codes is a scalar"):
        pack_ternary(jnp.uint8(1))
    with pytest.raises(ShapeError, match="11 codes need 3 there"):
        unpack_ternary(jnp.zeros(2, jnp.uint8), 11)
