"""The packed layouts of `ops.bits` and `ops.trits` in NumPy: XLA compiles anew for each size."""

from __future__ import annotations

import numpy as np

from nnopt_jax.ops.bits import packed_size


def _planes(width: int) -> list[tuple[int, int]]:
    """(shift, bits) of the planes of a width, the largest power of two first."""
    planes, shift = [], 0
    while shift < width:
        bits = min(8, 1 << (width - shift).bit_length() - 1)
        planes.append((shift, bits))
        shift += bits
    return planes


def _shifts(bits: int) -> np.ndarray:
    """Where the codes of one byte lie, as a column."""
    return np.arange(0, 8, bits).astype(np.uint8)[:, None]


def pack(codes: np.ndarray, width: int) -> np.ndarray:
    """Packs codes along the last axis, as `ops.bits.pack_bits` does.

    Args:
        codes: unsigned integers below `2^width`, at least one axis.
        width: 1 to 16.

    Returns:
        uint8 words.

    Example:
        >>> pack(np.array([1, 2, 3, 4]), 4)
        array([49, 66], dtype=uint8)
    """
    *rows, size = codes.shape
    words = []
    for shift, bits in _planes(width):
        parts, count = 8 // bits, packed_size(size, bits)
        plane = np.zeros((*rows, parts * count), np.uint8)
        plane[..., :size] = codes >> shift & (1 << bits) - 1
        split = plane.reshape(*rows, parts, count) << _shifts(bits)
        words.append(np.bitwise_or.reduce(split, axis=-2))
    return np.concatenate(words, axis=-1)


def unpack(words: np.ndarray, width: int, size: int) -> np.ndarray:
    """Undoes `pack`.

    Args:
        words: uint8.
        width: 1 to 16.
        size: codes along the last axis.

    Returns:
        Codes: uint8 up to 8 bits, uint16 above.

    Example:
        >>> unpack(pack(np.array([1, 9, 30]), 5), 5, 3)
        array([ 1,  9, 30], dtype=uint8)
    """
    rows = words.shape[:-1]
    codes = np.zeros((*rows, size), np.uint8 if width <= 8 else np.uint16)
    start = 0
    for shift, bits in _planes(width):
        count = packed_size(size, bits)
        plane = words[..., None, start : start + count] >> _shifts(bits)
        plane = (plane & (1 << bits) - 1).reshape(*rows, -1)[..., :size]
        codes |= plane.astype(codes.dtype) << shift
        start += count
    return codes


def pack_trits(codes: np.ndarray) -> np.ndarray:
    """Packs codes 0, 1 and 2 along the last axis, as `ops.trits.pack_trits` does.

    Example:
        >>> pack_trits(np.array([1, 0, 2, 2, 1, 0]))
        array([152,  57], dtype=uint8)
    """
    *rows, size = codes.shape
    count = -(-size // 5)
    padded = np.zeros((*rows, 5 * count), np.uint32)
    padded[..., :size] = codes
    digits = padded.reshape(*rows, 5, count)
    value = np.einsum("...dc,d->...c", digits, np.array([81, 27, 9, 3, 1], np.uint32))
    return ((256 * value + 242) // 243).astype(np.uint8)


def unpack_trits(words: np.ndarray, size: int) -> np.ndarray:
    """Undoes `pack_trits`.

    Example:
        >>> unpack_trits(np.array([152, 57], np.uint8), 6)
        array([1, 0, 2, 2, 1, 0], dtype=uint8)
    """
    powers = np.array([3, 9, 27, 81, 243], np.uint32)[:, None]
    digits = (words[..., None, :] * powers >> 8) % 3
    return digits.reshape(*words.shape[:-1], -1)[..., :size].astype(np.uint8)
