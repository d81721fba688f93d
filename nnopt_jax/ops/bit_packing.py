"""Packing of integer codes into bytes: 1 to 16 bits a code, or five ternary codes to a byte."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from nnopt_jax.errors import ShapeError, ValueRangeError


def _planes(width: int) -> list[tuple[int, int]]:
    """Split a width into planes of (shift, bits), such as 5 into [(0, 4), (4, 1)]."""
    if not 1 <= width <= 16:
        raise ValueRangeError(f"pack_bits: width {width} is not one of 1 to 16")
    planes, shift = [], 0
    while shift < width:
        bits = min(8, 1 << (width - shift).bit_length() - 1)
        planes.append((shift, bits))
        shift += bits
    return planes


def packed_size(size: int, width: int) -> int:
    """Count the bytes that hold `size` codes of `width` bits.

    The number is `sum(ceil(size * p / 8))` over the planes `p` of the width, at most two bytes
    above `size * width / 8`.

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
    """Pack unsigned codes into bytes, without loss.

    A code is split into planes of 8, 4, 2 and 1 bits, of which the largest comes first and holds
    the lowest bits of the code (5 = 4 + 1). In a plane of `p` bits and `n` bytes, byte `j` holds
    codes `j`, `j + n`, `j + 2n`, ..., from its lowest bits upwards, so that packing and unpacking
    are shifts of whole arrays, without shuffles. The planes follow one another along the axis, each
    padded with zeros to full bytes.

    Args:
        codes: integers or bools in `[0, 2**width)`, of at least one axis; higher bits are dropped.
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
    return _pack(codes, width, axis)


# Outside of `jit`, compile one program for each shape, which is faster than compiling a dozen small
# operations.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _pack(codes: Array, width: int, axis: int) -> Array:
    return jnp.moveaxis(_words(jnp.moveaxis(codes, axis, -1), width, jnp), -1, axis)


def host_pack_bits(codes: np.ndarray, width: int) -> np.ndarray:
    """Pack codes along the last axis in NumPy, since XLA would compile for each size.

    Example:
        >>> host_pack_bits(np.array([1, 2, 3, 4]), 4)
        array([49, 66], dtype=uint8)
    """
    return _words(codes, width, np)


def _words(codes: Any, width: int, xp: Any) -> Any:
    codes = codes if codes.dtype == np.uint8 else codes.astype(np.uint16)
    words = [_pack_plane(codes >> shift, bits, xp) for shift, bits in _planes(width)]
    return xp.concatenate(words, -1)


def unpack_bits(words: ArrayLike, width: int, size: int, axis: int = -1) -> Array:
    """Unpack unsigned codes from bytes; the inverse of `pack_bits`.

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
    return _unpack(words, width, size, axis)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _unpack(words: Array, width: int, size: int, axis: int) -> Array:
    return jnp.moveaxis(_codes(jnp.moveaxis(words, axis, -1), width, size, jnp), -1, axis)


def host_unpack_bits(words: np.ndarray, width: int, size: int) -> np.ndarray:
    """Unpack codes along the last axis in NumPy; the inverse of `host_pack_bits`.

    Example:
        >>> host_unpack_bits(host_pack_bits(np.array([1, 9, 30]), 5), 5, 3)
        array([ 1,  9, 30], dtype=uint8)
    """
    return _codes(words, width, size, np)


def _codes(words: Any, width: int, size: int, xp: Any) -> Any:
    dtype = np.dtype(np.uint8 if width <= 8 else np.uint16)
    codes, start = xp.zeros((*words.shape[:-1], size), dtype), 0
    for shift, bits in _planes(width):
        stop = start + packed_size(size, bits)
        plane = _unpack_plane(words[..., start:stop], bits, size, xp)
        codes, start = codes | plane.astype(dtype) << shift, stop
    return codes


def _pack_plane(codes: Any, bits: int, xp: Any) -> Any:
    parts, size = 8 // bits, codes.shape[-1]
    n = packed_size(size, bits)
    codes = (codes & (2**bits - 1)).astype(np.uint8)
    codes = xp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, parts * n - size)])
    word = codes[..., :n]
    for part in range(1, parts):
        word = word | codes[..., part * n : (part + 1) * n] << (part * bits)
    return word


def _unpack_plane(words: Any, bits: int, size: int, xp: Any) -> Any:
    parts = [(words >> (part * bits)) & (2**bits - 1) for part in range(8 // bits)]
    return xp.concatenate(parts, -1)[..., :size]


_DIGITS = 5  # 3^5 = 243 fit a byte


def pack_ternary(codes: ArrayLike, axis: int = -1) -> Array:
    """Pack codes 0, 1 and 2 into bytes, five to each, at 1.6 bits a code.

    Byte `j` of `n` holds codes `j`, `j + n`, ..., `j + 4n`, in the order of `pack_bits`. With `v =
    81 c_0 + 27 c_1 + 9 c_2 + 3 c_3 + c_4`, the byte is `ceil(256 v / 243)`, which is the fraction
    `v / 243` of a byte. Multiplying this fraction by 3 repeatedly yields the codes without a
    division.

    Args:
        codes: integers of any dtype in `[0, 3)`, of at least one axis.
        axis: the axis to pack.

    Returns:
        uint8 words; `axis` has `ceil(codes.shape[axis] / 5)` of them.

    Raises:
        ShapeError: if `codes` is a scalar.

    Example:
        >>> import numpy as np
        >>> print(pack_ternary(np.array([1, 0, 2, 2, 1, 0])))
        [152  57]
    """
    codes = jnp.asarray(codes)
    if codes.ndim == 0:
        raise ShapeError("pack_ternary: codes is a scalar; give it an axis, codes[None]")
    return _pack_ternary(codes, axis)


@functools.partial(jax.jit, static_argnums=1)
def _pack_ternary(codes: Array, axis: int) -> Array:
    return jnp.moveaxis(_ternary_words(jnp.moveaxis(codes, axis, -1), jnp), -1, axis)


def host_pack_ternary(codes: np.ndarray) -> np.ndarray:
    """Pack codes 0, 1 and 2 along the last axis as `pack_ternary` does, in NumPy.

    Example:
        >>> host_pack_ternary(np.array([1, 0, 2, 2, 1, 0]))
        array([152,  57], dtype=uint8)
    """
    return _ternary_words(codes, np)


def _ternary_words(codes: Any, xp: Any) -> Any:
    codes, size = codes.astype(np.uint32), codes.shape[-1]
    count = -(-size // _DIGITS)
    codes = xp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, _DIGITS * count - size)])
    value = xp.zeros((*codes.shape[:-1], count), np.uint32)
    for digit in range(_DIGITS):
        value = 3 * value + codes[..., digit * count : (digit + 1) * count]
    return ((256 * value + 242) // 243).astype(np.uint8)


def unpack_ternary(words: ArrayLike, size: int, axis: int = -1) -> Array:
    """Unpack codes 0, 1 and 2 from bytes; the inverse of `pack_ternary`.

    Args:
        words: uint8, as `pack_ternary` returned them.
        size: number of codes along the packed axis.
        axis: the packed axis.

    Returns:
        uint8 codes.

    Raises:
        ShapeError: if the axis does not hold `ceil(size / 5)` words.

    Example:
        >>> import numpy as np
        >>> print(unpack_ternary(pack_ternary(np.array([1, 0, 2, 2, 1, 0])), size=6))
        [1 0 2 2 1 0]
    """
    words = jnp.asarray(words)
    wanted = -(-size // _DIGITS)
    if words.ndim == 0 or words.shape[axis] != wanted:
        raise ShapeError(
            f"unpack_ternary: words of shape {words.shape} on axis {axis}; "
            f"{size} codes need {wanted} there"
        )
    return _unpack_ternary(words, size, axis)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _unpack_ternary(words: Array, size: int, axis: int) -> Array:
    return jnp.moveaxis(_ternary_codes(jnp.moveaxis(words, axis, -1), size, jnp), -1, axis)


def host_unpack_ternary(words: np.ndarray, size: int) -> np.ndarray:
    """Unpack codes 0, 1 and 2 along the last axis in NumPy.

    Example:
        >>> host_unpack_ternary(np.array([152, 57], np.uint8), 6)
        array([1, 0, 2, 2, 1, 0], dtype=uint8)
    """
    return _ternary_codes(words, size, np)


def _ternary_codes(words: Any, size: int, xp: Any) -> Any:
    rest, digits = words.astype(np.uint16), []
    for _ in range(_DIGITS):
        rest = 3 * rest
        digits.append((rest >> 8).astype(np.uint8))
        rest = rest & 255
    return xp.concatenate(digits, -1)[..., :size]
