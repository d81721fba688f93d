"""Uniform quantization grids: fitting ranges, quantizing and dequantizing."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from nnopt_jax.errors import ShapeError, ValueRangeError
from nnopt_jax.ops.blockwise import reduce_blocks
from nnopt_jax.ops.eager import compiled
from nnopt_jax.ops.gradient_estimators import round_clip


def integer_range(bits: int, *, symmetric: bool = True) -> tuple[int, int]:
    """Return the least and greatest code of a signed grid.

    `hi = 2**(bits-1) - 1`; `lo` is `-hi` if symmetric, else `-hi - 1`.

    Args:
        bits: 2 to 16.
        symmetric: whether the codes are symmetric about zero.

    Returns:
        `(lo, hi)`.

    Raises:
        ValueRangeError: if `bits` is not one of 2 to 16.

    Example:
        >>> integer_range(8), integer_range(4, symmetric=False)
        ((-127, 127), (-8, 7))
    """
    if not 2 <= bits <= 16:
        raise ValueRangeError(f"integer_range: bits={bits} is not one of 2 to 16")
    hi = 2 ** (bits - 1) - 1
    return (-hi if symmetric else -hi - 1), hi


def fit_grid(
    x: ArrayLike,
    bits: int,
    block: Sequence[int],
    *,
    symmetric: bool = True,
    mask: ArrayLike | None = None,
    scale_dtype: DTypeLike = jnp.float32,
) -> tuple[Array, Array | None]:
    """Fit one grid to the extreme values of each block of an array.

    Symmetric: `scale = max|x| / hi`. Affine: `scale = (max(x, 0) - min(x, 0)) / (hi - lo)` and
    `zero = round(lo - min(x, 0) / scale)`, so that 0 is a point of every grid. The scale is cast to
    `scale_dtype` before it is used. No gradient flows through the fit.

    The scale is 1 for blocks without a usable one, whose entries are all zero, masked or subnormal,
    or that have a NaN or infinity.

    Args:
        x: float array.
        bits: 2 to 16.
        block: size of a block along each axis; the last block may be shorter. `x.shape` gives one
            grid for the array; 1 on one axis and the full size on others, one grid for each
            channel; `g` on an axis, groups.
        symmetric: whether the grid is symmetric about zero.
        mask: bool of the shape of `x`, False for entries to ignore.
        scale_dtype: dtype in which scales are stored.

    Returns:
        `(scale, zero)`, of shape `ceil(x.shape[i] / block[i])`; `zero` is None if symmetric, else
        integers held in float32.

    Raises:
        ShapeError: if a block is larger than its axis.
        ValueRangeError: if `bits` is not one of 2 to 16.

    Example:
        >>> import numpy as np
        >>> x = np.array([[1.0, -127.0], [2.0, 254.0]], np.float32)
        >>> scale, zero = fit_grid(x, 8, block=(1, 2))
        >>> print(scale.ravel(), zero)
        [1. 2.] None

    References:
        Jacob et al., https://arxiv.org/abs/1712.05877, section 2.1.
    """
    # First, so that wrong bits are reported before wrong blocks.
    integer_range(bits, symmetric=symmetric)
    return _fit_grid(jnp.asarray(x), mask, bits, tuple(block), symmetric, jnp.dtype(scale_dtype))


@functools.partial(compiled, static_argnums=(2, 3, 4, 5))
def _fit_grid(
    x: Array,
    mask: ArrayLike | None,
    bits: int,
    block: tuple[int, ...],
    symmetric: bool,
    scale_dtype: jnp.dtype,
) -> tuple[Array, Array | None]:
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    if symmetric:
        top = _extreme(jnp.max, jnp.abs(x), block, mask)
        bottom = -top
    else:
        top, bottom = (_extreme(reduce, x, block, mask) for reduce in (jnp.max, jnp.min))
    return grid_of_range(bottom, top, bits, symmetric=symmetric, scale_dtype=scale_dtype)


def grid_of_range(
    bottom: ArrayLike,
    top: ArrayLike,
    bits: int,
    *,
    symmetric: bool = True,
    scale_dtype: DTypeLike = jnp.float32,
) -> tuple[Array, Array | None]:
    """Return the grid that spans a range and includes 0.

    Symmetric: `scale = max(-bottom, top) / hi`. Affine: `scale = (top - bottom) / (hi - lo)` and
    `zero = round(lo - bottom / scale)`, so that 0 is a point of every grid. The scale is cast to
    `scale_dtype` before it is used.

    Args:
        bottom: least value, float, any shape; above 0 counts as 0.
        top: greatest value, the same shape; below 0 counts as 0.
        bits: 2 to 16.
        symmetric: whether the grid is symmetric about zero.
        scale_dtype: dtype in which scales are stored.

    Returns:
        `(scale, zero)` of the shape of the range; `zero` is None if symmetric, else integers held
        in float32. An unusable range (empty, subnormal, NaN or infinite) has scale 1.

    Raises:
        ValueRangeError: if `bits` is not one of 2 to 16.

    Example:
        >>> scale, zero = grid_of_range(-1.0, 4.1, 8, symmetric=False)
        >>> print(scale.round(4), zero)
        0.02 -78.0

    References:
        Jacob et al., https://arxiv.org/abs/1712.05877, section 2.1.
    """
    lo, hi = integer_range(bits, symmetric=symmetric)
    return _grid_of_range(bottom, top, lo, hi, symmetric, jnp.dtype(scale_dtype))


@functools.partial(compiled, static_argnums=(2, 3, 4, 5))
def _grid_of_range(
    bottom: ArrayLike, top: ArrayLike, lo: int, hi: int, symmetric: bool, scale_dtype: jnp.dtype
) -> tuple[Array, Array | None]:
    bottom = jnp.minimum(jnp.asarray(bottom, jnp.float32), 0)
    top = jnp.maximum(jnp.asarray(top, jnp.float32), 0)
    # Multiply by the reciprocal, because the compiler sometimes, but not always, does so for a
    # division by a constant.
    if symmetric:
        scale, _ = _usable(jnp.maximum(-bottom, top) * jnp.float32(1 / hi), scale_dtype)
        return scale, None
    # Halve first, which is exact, because the difference itself may overflow.
    scale, good = _usable((top / 2 - bottom / 2) * jnp.float32(2 / (hi - lo)), scale_dtype)
    zero = jnp.clip(jnp.round(lo - bottom / scale.astype(jnp.float32)), lo, hi)
    return scale, jnp.where(good, zero, jnp.float32(0))


def quantize(
    x: ArrayLike, scale: ArrayLike, zero: ArrayLike | None, lo: ArrayLike, hi: ArrayLike
) -> Array:
    """Return the codes of an array on a grid, with straight-through gradients inside the range.

    The codes are `clip(round(x / scale) + zero, lo, hi)`, where `x / scale` is computed by a
    float32 reciprocal. Followed by `dequantize`, the gradient with regard to `x` is 1 inside the
    range and 0 outside, and that of the scale is as in learned step sizes, `code - x / scale`
    inside and the end code outside.

    Args:
        x: float array.
        scale: float, of the same rank, its sizes dividing those of `x`.
        zero: None, or integers held in float32, of the shape of `scale`.
        lo: least code.
        hi: greatest code.

    Returns:
        Codes: integers held in float32, never -0; NaN where `x` is NaN.

    Example:
        >>> import numpy as np
        >>> print(quantize(np.array([0.9, -3.1, 99.0]), np.array([0.5]), None, -7, 7))
        [ 2. -6.  7.]

    References:
        Esser et al., https://arxiv.org/abs/1902.08153, section 2.1.
    """
    # As float32, or else JAX 0.12 would convert the ends in the program.
    lo, hi = (np.float32(end) if isinstance(end, int) else end for end in (lo, hi))
    return _quantize(jnp.asarray(x), jnp.asarray(scale), zero, lo, hi)


@compiled
def _quantize(
    x: Array, scale: Array, zero: ArrayLike | None, lo: ArrayLike, hi: ArrayLike
) -> Array:
    v = x.astype(jnp.float32) * _align(1 / scale.astype(jnp.float32), x.shape)
    if zero is None:
        return round_clip(v, lo, hi)
    # Shifting the range rather than `v` avoids a fused multiply-add, so that eager and compiled
    # codes are equal.
    zero = _align(jnp.asarray(zero, jnp.float32), x.shape)
    return round_clip(v, lo - zero, hi - zero) + zero


def dequantize(
    codes: ArrayLike,
    scale: ArrayLike,
    zero: ArrayLike | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Array:
    """Return the values of codes on a grid.

    The values are `(codes - zero) * scale`, computed in float32 and cast once at the end.

    Args:
        codes: integers, in any integer or float dtype that holds them.
        scale: float, of the same rank, its sizes dividing those of `codes`.
        zero: None, or of the shape of `scale`.
        dtype: dtype of the result.

    Returns:
        The values.

    Example:
        >>> import numpy as np
        >>> print(dequantize(np.array([2, -6, 7], np.int8), np.array([0.5])))
        [ 1.  -3.   3.5]
    """
    return _dequantize(jnp.asarray(codes), scale, zero, jnp.dtype(dtype))


@functools.partial(compiled, static_argnums=3)
def _dequantize(codes: Array, scale: ArrayLike, zero: ArrayLike | None, dtype: jnp.dtype) -> Array:
    values = codes.astype(jnp.float32)
    if zero is not None:
        values -= _align(jnp.asarray(zero).astype(jnp.float32), values.shape)
    scale = _align(jnp.asarray(scale).astype(jnp.float32), values.shape)
    return (values * scale).astype(dtype)


def expand(scale: ArrayLike, shape: Sequence[int]) -> Array:
    """Repeat block values for the whole array.

    `out[i, ...] = scale[i // (shape[0] // scale.shape[0]), ...]`.

    Args:
        scale: array whose sizes divide those of `shape`.
        shape: shape of the array it belongs to.

    Returns:
        An array of that shape.

    Raises:
        ShapeError: if a size does not divide.

    Example:
        >>> import numpy as np
        >>> print(expand(np.array([[1], [2]]), (4, 3)).T)
        [[1 1 2 2]
         [1 1 2 2]
         [1 1 2 2]]
    """
    return jnp.broadcast_to(_align(jnp.asarray(scale), tuple(shape)), tuple(shape))


def covers(blocks: Sequence[int], shape: Sequence[int]) -> bool:
    """Return whether this many blocks of equal size cover a shape.

    Args:
        blocks: the number of blocks along each axis.
        shape: the shape of the array.

    Returns:
        Whether each number divides its size; zero blocks cover only an empty axis.

    Example:
        >>> covers((2, 1), (8, 3)), covers((2, 1), (7, 3)), covers((2,), (8, 3))
        (True, False, False)
    """
    same = len(blocks) == len(shape)
    return same and all(
        size % count == 0 if count else size == 0 for count, size in zip(blocks, shape, strict=True)
    )


def _usable(scale: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    """Cast scales and replace unusable ones by 1; also return which are usable."""
    good = jnp.isfinite(scale)
    scale = jnp.minimum(scale, float(jnp.finfo(dtype).max)).astype(dtype)
    good &= scale.astype(jnp.float32) >= jnp.finfo(jnp.float32).tiny
    return jnp.where(good, scale, jnp.ones((), dtype)), good


def _extreme(reduce: Any, x: Array, block: Sequence[int], mask: ArrayLike | None) -> Array:
    """Reduce each block, with 0 included, to the shape of the scale."""
    if mask is not None:
        x = jnp.where(jnp.asarray(mask), x, jnp.float32(0))
    return reduce_blocks("fit_grid", lambda v, axes: reduce(v, axis=axes, initial=0), x, block)


def _align(scale: Array, shape: tuple[int, ...]) -> Array:
    """Make a scale broadcastable to `shape`; repeat it only along axes with several blocks."""
    if not covers(scale.shape, shape):
        raise ShapeError(
            f"expand: a scale of shape {scale.shape} for an array of shape {shape}; "
            "its sizes must divide the array's"
        )
    repeated = [i for i, n in enumerate(scale.shape) if n not in (1, shape[i])]
    for axis in reversed(repeated):
        scale = jnp.repeat(scale, shape[axis] // scale.shape[axis], axis)
    return scale
