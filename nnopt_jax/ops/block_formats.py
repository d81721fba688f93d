"""Scales and codes of block formats: absolute maximum, E8M0, and the formats of GGUF files."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from nnopt_jax.ops.blockwise import reduce_blocks, repeat_uneven
from nnopt_jax.ops.eager import compiled
from nnopt_jax.ops.grid import expand

_TINY = float(np.finfo(np.float32).tiny)


def block_largest(x: ArrayLike, block: Sequence[int], mask: ArrayLike | None = None) -> Array:
    """Return the largest magnitude of each block, without gradients.

    Args:
        x: float array.
        block: size of a block along each axis; the last block may be shorter.
        mask: bool of the shape of `x`, False for entries to ignore.

    Returns:
        float32 of shape `ceil(x.shape[i] / block[i])`: `max|x|`; 0 for blocks without counted
        entries, and NaN for blocks with a NaN.

    Example:
        >>> import numpy as np
        >>> print(block_largest(np.array([[1.0, -3.0], [2.0, 0.5]]), (2, 1)))
        [[2. 3.]]
    """
    return _block_largest(jnp.asarray(x), mask, tuple(block))


@functools.partial(compiled, static_argnums=2)
def _block_largest(x: Array, mask: ArrayLike | None, block: tuple[int, ...]) -> Array:
    size = _magnitude(x, mask)
    return reduce_blocks(
        "block_largest", lambda v, axes: jnp.max(v, axis=axes, initial=0), size, block
    )


def block_mean(x: ArrayLike, block: Sequence[int], mask: ArrayLike | None = None) -> Array:
    """Return the mean magnitude of each block, without gradients.

    Args:
        x: float array.
        block: size of a block along each axis; the last block may be shorter.
        mask: bool of the shape of `x`, False for entries to ignore.

    Returns:
        float32 of shape `ceil(x.shape[i] / block[i])`: the mean of `|x|` over counted entries; 0
        for blocks without any.

    Example:
        >>> import numpy as np
        >>> x = np.array([[1.0, -3.0], [2.0, 0.5]])
        >>> print(block_mean(x, (2, 2), mask=np.abs(x) > 0.7))
        [[2.]]
    """
    size = _magnitude(x, mask)
    # Divide before the sum, which may overflow for large weights.
    count = repeat_uneven(block_count(size.shape, block, mask), size.shape, block)
    share = size / expand(count, size.shape)
    return reduce_blocks("block_mean", _sum, share, block)


def block_count(shape: Sequence[int], block: Sequence[int], mask: ArrayLike | None = None) -> Array:
    """Count the entries of each block that the mask keeps, at least 1.

    Args:
        shape: the shape of the array.
        block: size of a block along each axis; the last block may be shorter.
        mask: bool of that shape, False for entries to ignore.

    Returns:
        float32 of shape `ceil(shape[i] / block[i])`.

    Example:
        >>> import numpy as np
        >>> print(block_count((2, 2), (2, 1), mask=np.array([[True, False], [True, False]])))
        [[2. 1.]]
    """
    kept = jnp.ones(tuple(shape), bool) if mask is None else jnp.asarray(mask)
    count = reduce_blocks("block_count", _sum, kept.astype(jnp.float32), block)
    return jnp.maximum(count, 1)


def stored_scale(scale: ArrayLike, dtype: DTypeLike = jnp.float32) -> Array:
    """Cast scales to the dtype in which they are stored and applied.

    Args:
        scale: float32.
        dtype: a float dtype.

    Returns:
        The scales, clipped to the range of the dtype. NaN and infinity become 1, so that one broken
        weight does not spoil the other weights of its block.

    Example:
        >>> import numpy as np
        >>> print(stored_scale(np.array([0.5, np.nan, 1e9], np.float32), np.float16))
        [5.00e-01 1.00e+00 6.55e+04]
    """
    return _stored_scale(jnp.asarray(scale, jnp.float32), jnp.dtype(dtype))


@functools.partial(compiled, static_argnums=1)
def _stored_scale(scale: Array, dtype: jnp.dtype) -> Array:
    scale = jnp.where(jnp.isfinite(scale), scale, jnp.float32(1))
    top = float(jnp.finfo(dtype).max)
    return jnp.clip(scale, -top, top).astype(dtype)


def in_units(x: ArrayLike, scale: ArrayLike) -> Array:
    """Divide each entry by the scale of its block; return 0 for a zero or subnormal scale.

    Args:
        x: float array.
        scale: float, of the same rank, its sizes dividing those of `x`.

    Returns:
        float32 of the shape of `x`, without a gradient.

    Example:
        >>> import numpy as np
        >>> print(in_units(np.array([[1.0, 3.0]]), np.array([[0.0, 2.0]])))
        [[0.  1.5]]
    """
    return _in_units(jnp.asarray(x), jnp.asarray(scale))


@compiled
def _in_units(x: Array, scale: Array) -> Array:
    x = lax.stop_gradient(x).astype(jnp.float32)
    scale = lax.stop_gradient(scale).astype(jnp.float32)
    good = jnp.abs(scale) >= _TINY
    units = x / expand(jnp.where(good, scale, jnp.float32(1)), x.shape)
    return jnp.where(expand(good, x.shape), units, units * 0)


def power_of_two(exponents: ArrayLike) -> Array:
    """Return `2^(e - 127)` exactly, but 0 for `e = 0`, since 2^-127 is not a normal float32.

    Args:
        exponents: uint8, 0 to 254.

    Returns:
        float32.

    Example:
        >>> import numpy as np
        >>> print(power_of_two(np.array([0, 126, 128], np.uint8)))
        [0.  0.5 2. ]
    """
    bits = jnp.asarray(exponents).astype(jnp.uint32) << 23
    return lax.bitcast_convert_type(bits, jnp.float32)


def shared_exponent(largest: ArrayLike, top: int = 2) -> Array:
    """Return the exponents of microscaling blocks.

    The exponent is `e = 127 + floor(log2(largest)) - top`, at least 0, computed from the bits of
    the float.

    Args:
        largest: float32, the largest magnitude of each block.
        top: the exponent of the greatest power of two among the values: 2 for E2M1, whose greatest
            is 6.

    Returns:
        uint8, for `power_of_two`.

    Example:
        >>> import numpy as np
        >>> print(shared_exponent(np.array([0.0, 6.0, 7.9, 8.0])))
        [  0 127 127 128]

    References:
        OCP Microscaling Formats (MX) Specification 1.0, section 6.3.
    """
    bits = lax.bitcast_convert_type(jnp.asarray(largest, jnp.float32), jnp.uint32)
    return jnp.maximum((bits >> 23 & 255).astype(jnp.int32) - top, 0).astype(jnp.uint8)


def q8_0_step(x: ArrayLike, block: Sequence[int], mask: ArrayLike | None = None) -> Array:
    """Return the step of each block as in GGUF's Q8_0: `max|x| / 127`.

    Args:
        x: float array.
        block: size of a block along each axis; files have blocks of 32.
        mask: bool of the shape of `x`, False for entries to ignore.

    Returns:
        float32 steps, 1 for a block with NaN or infinity. Codes are computed with these steps
        before the steps are cast to float16.

    Example:
        >>> import numpy as np
        >>> print(q8_0_step(np.array([[254.0, -1.0]]), (1, 2)))
        [[2.]]
    """
    largest = block_largest(x, block, mask)
    # Do not divide by a constant: the compiler would multiply by its reciprocal, which rounds
    # differently.
    return stored_scale(largest / (largest * 0 + 127))


def q8_0_codes(x: ArrayLike, step: ArrayLike) -> Array:
    """Round half away from zero to -127..127, as in GGUF's Q8_0.

    Args:
        x: float array.
        step: the result of `q8_0_step`.

    Returns:
        Integers held in float32, never -0; NaN where `x` is NaN.

    Example:
        >>> import numpy as np
        >>> print(q8_0_codes(np.array([[3.0, -1.0, 1000.0]]), np.array([[2.0]])))
        [[  2.  -1. 127.]]
    """
    code = lax.round(_times_inverse(x, step), lax.RoundingMethod.AWAY_FROM_ZERO)
    code = jnp.clip(code, -127, 127)
    return jnp.where(code == 0, jnp.float32(0), code)


def q4_0_step(x: ArrayLike, block: Sequence[int], mask: ArrayLike | None = None) -> Array:
    """Return the step of each block as in GGUF's Q4_0: the entry of largest magnitude over -8.

    Args:
        x: float array.
        block: size of a block along each axis; files have blocks of 32.
        mask: bool of the shape of `x`, False for entries to ignore.

    Returns:
        float32 steps of either sign, 1 for a block with NaN or infinity. Among equal magnitudes,
        the first entry determines the sign.

    Example:
        >>> import numpy as np
        >>> print(q4_0_step(np.array([[4.0, -8.0, 3.0]]), (1, 3)))
        [[1.]]
    """
    x = lax.stop_gradient(jnp.asarray(x)).astype(jnp.float32)
    x = x if mask is None else jnp.where(jnp.asarray(mask), x, jnp.float32(0))
    return stored_scale(reduce_blocks("q4_0_step", _first_largest, x, block) / jnp.float32(-8))


def q4_0_codes(x: ArrayLike, step: ArrayLike) -> Array:
    """Round to -8..7 as in GGUF's Q4_0: `trunc(x / step + 8.5) - 8`, in float32.

    Args:
        x: float array.
        step: the result of `q4_0_step`.

    Returns:
        Integers held in float32, never -0; NaN where `x` is NaN.

    Example:
        >>> import numpy as np
        >>> print(q4_0_codes(np.array([[4.0, -8.0, 3.5]]), np.array([[1.0]])))
        [[ 4. -8.  4.]]
    """
    v = _times_inverse(x, step)
    code = jnp.full(v.shape, -8, jnp.float32)
    for start in _Q4_0_STARTS:  # compared, since a sum would be fused
        code += (v >= start).astype(jnp.float32)
    return jnp.where(jnp.isnan(v), v, code)


def _first_value(code: int) -> np.float32:
    """Return the least float32 `v` whose sum `v + 8.5`, rounded to float32, reaches the code."""
    v, half = np.float32(code - 8.5), np.float32(8.5)
    while (below := np.nextafter(v, np.float32(-np.inf))) + half >= code:
        v = below
    return v


_Q4_0_STARTS = tuple(_first_value(code) for code in range(1, 16))


def _times_inverse(x: ArrayLike, step: ArrayLike) -> Array:
    """Return `x * (1 / step)`, 0 for a step of 0; `x / step` would round differently."""
    x = lax.stop_gradient(jnp.asarray(x)).astype(jnp.float32)
    step = lax.stop_gradient(jnp.asarray(step)).astype(jnp.float32)
    good = jnp.abs(step) >= _TINY
    inverse = jnp.where(good, 1 / jnp.where(good, step, jnp.float32(1)), jnp.float32(0))
    return x * expand(inverse, x.shape)


def _magnitude(x: ArrayLike, mask: ArrayLike | None) -> Array:
    size = jnp.abs(lax.stop_gradient(jnp.asarray(x)).astype(jnp.float32))
    return size if mask is None else jnp.where(jnp.asarray(mask), size, jnp.float32(0))


def _sum(v: Array, axes: tuple[int, ...]) -> Array:
    return jnp.sum(v, axis=axes)


def _first_largest(v: Array, axes: tuple[int, ...]) -> Array:
    """Return the first of the entries of largest magnitude along some axes."""
    others = [axis for axis in range(v.ndim) if axis not in axes]
    shape = tuple(v.shape[axis] for axis in others)
    if not v.size:
        return jnp.zeros(shape, v.dtype)
    rows = jnp.transpose(v, (*others, *axes)).reshape(*shape, -1)
    at = jnp.argmax(jnp.abs(rows), axis=-1, keepdims=True)
    return jnp.take_along_axis(rows, at, axis=-1)[..., 0]


def exponent(x: ArrayLike, axis: int | tuple[int, ...] | None = None) -> Array:
    r"""Return the exponent of the power of two above the greatest magnitude, without gradients.

    $$ e = \lfloor \log_2 \max |x| \rfloor + 1 $$

    `jnp.ldexp(x, -e)` lies between -1 and 1 and loses no bits of `x`; its squares neither overflow
    nor vanish.

    Args:
        x: float array.
        axis: the axes to take the maximum over; by default all.

    Returns:
        int32, with size 1 along those axes; 0 if all entries are zero.

    Example:
        >>> import numpy as np
        >>> exponent(np.float32([3e20, -1e30])), np.log2(1e30).round(1)
        (Array([100], dtype=int32), np.float64(99.7))
    """
    size = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis, keepdims=True, initial=0.0)
    return jnp.frexp(size)[1]
