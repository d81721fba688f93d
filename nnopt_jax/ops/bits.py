"""Integer codes of 1 to 16 bits packed into bytes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nnopt_jax.errors import ShapeError, ValueRangeError


def _planes(width: int) -> list[tuple[int, int]]:
    """Splits a width into (shift, bits) planes: 5 -> [(0, 4), (4, 1)], 12 -> [(0, 8), (8, 4)]."""
    if not 1 <= width <= 16:
        raise ValueRangeError(f"pack_bits: width {width} is not one of 1 to 16")
    planes, shift = [], 0
    while shift < width:
        bits = min(8, 1 << (width - shift).bit_length() - 1)
        planes.append((shift, bits))
        shift += bits
    return planes


def packed_size(size: int, width: int) -> int:
    """Counts the bytes that hold `size` codes of `width` bits.

    `sum(ceil(size * p / 8))` over the planes `p` of the width: at most two bytes above the bound.

    Args:
        size: number of codes along the packed axis.
        width: bits a code, 1 to 16.

    Returns:
        The number of bytes along that axis.

    Example:
        >>> packed_size(100, 4), packed_size(100, 5)
        (50, 63)
    """
    return sum(-(-size * bits // 8) for _, bits in _planes(width))


def pack_bits(codes: ArrayLike, width: int, axis: int = -1) -> Array:
    """Packs unsigned codes into bytes, exactly.

    The width is written as planes of 8, 4, 2 and 1 bits, the largest first and holding the lowest
    bits of the code (5 = 4 + 1). A plane of `p` bits and `n` bytes lies split: byte `j` holds codes
    `j`, `j + n`, `j + 2n`, ... from its lowest bits upwards, so that packing and unpacking are
    whole-array shifts, without shuffles. The planes follow one another along the axis, each filled
    up with zeros to full bytes.

    Args:
        codes: integers (or bool) in `[0, 2**width)`, at least one axis; higher bits are dropped.
        width: bits a code, 1 to 16.
        axis: the axis to pack.

    Returns:
        uint8 words; `axis` has `packed_size(codes.shape[axis], width)` of them.

    Raises:
        ValueRangeError: if the width is not one of 1 to 16.
        ShapeError: if `codes` is a scalar.

    Example:
        >>> import numpy as np
        >>> print(pack_bits(np.array([1, 2, 3, 4]), 4))
        [49 66]
    """
    codes = jnp.asarray(codes)
    if codes.ndim == 0:
        raise ShapeError("pack_bits: codes is a scalar; give it an axis, codes[None]")
    return _packed(codes, width, axis)


# One program for each shape, where nothing else is compiled around it: a dozen small ones take
# longer to compile.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _packed(codes: Array, width: int, axis: int) -> Array:
    codes = jnp.moveaxis(codes.astype(jnp.uint16), axis, -1)
    words = [_pack_plane(codes >> shift, bits) for shift, bits in _planes(width)]
    return jnp.moveaxis(jnp.concatenate(words, -1), -1, axis)


def unpack_bits(words: ArrayLike, width: int, size: int, axis: int = -1) -> Array:
    """Inverts `pack_bits`.

    Args:
        words: uint8, as `pack_bits` returned them.
        width: bits a code, 1 to 16.
        size: number of codes along the packed axis.
        axis: the packed axis.

    Returns:
        Codes: uint8 up to 8 bits, uint16 above.

    Raises:
        ShapeError: if the axis does not hold `packed_size(size, width)` words.

    Example:
        >>> import numpy as np
        >>> codes = np.array([1, 9, 30, 4, 5])
        >>> print(unpack_bits(pack_bits(codes, 5), 5, size=5))
        [ 1  9 30  4  5]
    """
    words = jnp.asarray(words)
    wanted = packed_size(size, width)
    if words.ndim == 0 or words.shape[axis] != wanted:
        raise ShapeError(
            f"unpack_bits: words of shape {words.shape} on axis {axis}; "
            f"{size} codes of {width} bits need {wanted} there"
        )
    return _unpacked(words, width, size, axis)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _unpacked(words: Array, width: int, size: int, axis: int) -> Array:
    words = jnp.moveaxis(words, axis, -1)
    dtype = jnp.uint8 if width <= 8 else jnp.uint16
    codes, start = jnp.zeros((*words.shape[:-1], size), dtype), 0
    for shift, bits in _planes(width):
        stop = start + packed_size(size, bits)
        codes |= _unpack_plane(words[..., start:stop], bits, size).astype(dtype) << shift
        start = stop
    return jnp.moveaxis(codes, -1, axis)


def _pack_plane(codes: Array, bits: int) -> Array:
    parts, size = 8 // bits, codes.shape[-1]
    n = packed_size(size, bits)
    codes = (codes & (2**bits - 1)).astype(jnp.uint8)
    codes = jnp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, parts * n - size)])
    word = codes[..., :n]
    for part in range(1, parts):
        word |= codes[..., part * n : (part + 1) * n] << (part * bits)
    return word


def _unpack_plane(words: Array, bits: int, size: int) -> Array:
    parts = [(words >> (part * bits)) & (2**bits - 1) for part in range(8 // bits)]
    return jnp.concatenate(parts, -1)[..., :size]
