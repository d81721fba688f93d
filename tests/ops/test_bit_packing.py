from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from nnopt_jax.errors import ShapeError, ValueRangeError
from nnopt_jax.ops.bit_packing import pack_bits, packed_size, unpack_bits

WIDTHS = range(1, 17)
SIZES = (0, 1, 7, 8, 64, 100)
PLANES = {1: [1], 2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1], 8: [8]}
PLANES |= {8 + width: [8, *planes] for width, planes in PLANES.items()}

ROUND_TRIP = jax.jit(
    lambda codes, width: unpack_bits(pack_bits(codes, width), width, codes.shape[-1]),
    static_argnums=1,
)


def reference_pack(codes: np.ndarray, width: int) -> np.ndarray:
    """Writes each bit of each code where the layout says, one by one."""
    out, shift = [], 0
    for bits in PLANES[width]:
        n = -(-len(codes) * bits // 8)
        plane = [0] * n
        for i, code in enumerate(codes):
            part, byte = divmod(i, n)
            for bit in range(bits):
                plane[byte] |= ((int(code) >> (shift + bit)) & 1) << (part * bits + bit)
        out += plane
        shift += bits
    return np.array(out, np.uint8)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("size", SIZES)
def test_layout_and_size(width, size) -> None:
    codes = np.random.default_rng(size).integers(0, 2**width, size)
    words = pack_bits(codes, width)
    assert words.dtype == jnp.uint8
    np.testing.assert_array_equal(words, reference_pack(codes, width))
    assert words.size == packed_size(size, width)
    assert packed_size(size, width) <= -(-size * width // 8) + 2
    np.testing.assert_array_equal(unpack_bits(words, width, size), codes)


@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.sampled_from([1, 3, 8, 13]),
    size=st.sampled_from([7, 64]),
)
def test_round_trip(seed, width, size) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**width, (3, size), np.uint16)
    back = ROUND_TRIP(codes, width)
    assert back.dtype == (jnp.uint8 if width <= 8 else jnp.uint16)
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("axis", [0, 1, -1, -3])
def test_any_axis(axis) -> None:
    codes = np.random.default_rng(0).integers(0, 32, (5, 6, 7))
    words = pack_bits(codes, 5, axis)
    assert words.shape[axis] == packed_size(codes.shape[axis], 5)
    np.testing.assert_array_equal(unpack_bits(words, 5, codes.shape[axis], axis), codes)


def test_masks_and_vmap() -> None:
    mask = np.random.default_rng(0).random((4, 33)) < 0.5
    words = jax.vmap(lambda row: pack_bits(row, 1))(mask)
    np.testing.assert_array_equal(words, pack_bits(mask, 1))
    np.testing.assert_array_equal(unpack_bits(words, 1, 33).astype(bool), mask)


def test_bad_arguments() -> None:
    with pytest.raises(ValueRangeError, match="width 17"):
        pack_bits(np.zeros(3, np.uint8), 17)
    with pytest.raises(ValueRangeError, match="width 0"):
        packed_size(3, 0)
    with pytest.raises(ShapeError, match="scalar"):
        pack_bits(np.uint8(3), 4)
    with pytest.raises(ShapeError, match="5 codes of 4 bits need 3"):
        unpack_bits(np.zeros(2, np.uint8), 4, 5)
