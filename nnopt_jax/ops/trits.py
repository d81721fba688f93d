"""Codes of three values, five to a byte."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nnopt_jax.errors import ShapeError

_DIGITS = 5  # 3^5 = 243 fit a byte


def pack_trits(codes: ArrayLike, axis: int = -1) -> Array:
    """Packs codes 0, 1 and 2 into bytes, five to each: 1.6 bits a code.

    Byte `j` of `n` holds codes `j`, `j + n`, ..., `j + 4n`, as `pack_bits` splits them: with
    `v = 81 c_0 + 27 c_1 + 9 c_2 + 3 c_3 + c_4` it is `ceil(256 v / 243)`, the fraction `v / 243` of
    a byte, whose digits come out by multiplying with 3, without a division.

    Args:
        codes: integers of any dtype in `[0, 3)`, at least one axis.
        axis: the axis to pack.

    Returns:
        uint8 words; `axis` has `ceil(codes.shape[axis] / 5)` of them.

    Raises:
        ShapeError: if `codes` is a scalar.

    Example:
        >>> import numpy as np
        >>> print(pack_trits(np.array([1, 0, 2, 2, 1, 0])))
        [152  57]
    """
    codes = jnp.asarray(codes)
    if codes.ndim == 0:
        raise ShapeError("pack_trits: codes is a scalar; give it an axis, codes[None]")
    return _packed(codes, axis)


@functools.partial(jax.jit, static_argnums=1)
def _packed(codes: Array, axis: int) -> Array:
    codes = jnp.moveaxis(codes.astype(jnp.uint32), axis, -1)
    size = codes.shape[-1]
    count = -(-size // _DIGITS)
    codes = jnp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, _DIGITS * count - size)])
    value = jnp.zeros((*codes.shape[:-1], count), jnp.uint32)
    for digit in range(_DIGITS):
        value = 3 * value + codes[..., digit * count : (digit + 1) * count]
    return jnp.moveaxis(((256 * value + 242) // 243).astype(jnp.uint8), -1, axis)


def unpack_trits(words: ArrayLike, size: int, axis: int = -1) -> Array:
    """Inverts `pack_trits`.

    Args:
        words: uint8, as `pack_trits` returned them.
        size: number of codes along the packed axis.
        axis: the packed axis.

    Returns:
        uint8 codes.

    Raises:
        ShapeError: if the axis does not hold `ceil(size / 5)` words.

    Example:
        >>> import numpy as np
        >>> print(unpack_trits(pack_trits(np.array([1, 0, 2, 2, 1, 0])), size=6))
        [1 0 2 2 1 0]
    """
    words = jnp.asarray(words)
    wanted = -(-size // _DIGITS)
    if words.ndim == 0 or words.shape[axis] != wanted:
        raise ShapeError(
            f"unpack_trits: words of shape {words.shape} on axis {axis}; "
            f"{size} codes need {wanted} there"
        )
    return _unpacked(words, size, axis)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _unpacked(words: Array, size: int, axis: int) -> Array:
    rest, digits = jnp.moveaxis(words, axis, -1).astype(jnp.uint16), []
    for _ in range(_DIGITS):
        rest = 3 * rest
        digits.append((rest >> 8).astype(jnp.uint8))
        rest = rest & 255
    return jnp.moveaxis(jnp.concatenate(digits, -1)[..., :size], -1, axis)
