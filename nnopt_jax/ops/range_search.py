"""Search for block ranges that exclude outliers: by percentile, or by least squared error."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from nnopt_jax.ops.blockwise import fill_up, reduce_blocks, repeat_uneven
from nnopt_jax.ops.grid import dequantize, grid_of_range, integer_range, quantize

_FACTORS = 80  # the number of fractions that are tried: 1, 79/80, ..., 1/80


@functools.partial(jax.jit, static_argnames=("block", "percent", "symmetric"))
def percentile_range(
    x: ArrayLike,
    block: Sequence[int],
    percent: float = 99.9,
    *,
    symmetric: bool = True,
    mask: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """Return ranges that exclude a fraction of each block, by counting instead of sorting.

    In a block of `n` entries, `round(n * (1 - percent / 100))` may lie outside: those
    of greatest magnitude if symmetric, else this number at each end.

    Args:
        x: float array; NaN ranks above infinity.
        block: size of a block along each axis, the last one may be shorter; a tuple.
        percent: 50 to 100; 100 for the extreme values.
        symmetric: whether the range is symmetric about zero.
        mask: bool of the shape of `x`, False for entries to ignore.

    Returns:
        `(bottom, top)`, float32 of shape `ceil(x.shape[i] / block[i])`, for `grid_of_range`; 0 for
        blocks without entries. No gradient flows through them.

    Raises:
        ShapeError: if a block is larger than its axis.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.append(jnp.linspace(-1.0, 1.0, 99), 50.0)
        >>> bottom, top = percentile_range(x, (100,), 99.0)
        >>> print(bottom, top)
        [-1.] [1.]

    References:
        McKinstry et al., https://arxiv.org/abs/1809.04191, section 3 (the 99.9th percentile).
    """
    x = lax.stop_gradient(jnp.asarray(x)).astype(jnp.float32)
    kept = jnp.ones(x.shape, bool) if mask is None else jnp.asarray(mask)
    count = reduce_blocks("percentile_range", _total, kept.astype(jnp.int32), block)
    share = jnp.float32((100 - percent) / 100)
    beyond = jnp.round(share * count.astype(jnp.float32)).astype(jnp.int32)
    rank = jnp.minimum(beyond + 1, count)

    def at_rank(v: Array) -> Array:
        # Zero, the least key, is never found, because at least `rank` other keys exist.
        keys = fill_up(jnp.where(kept, _keys(v), jnp.uint32(0)), block)
        found = reduce_blocks(
            "percentile_range", lambda keys, axes: _kth_largest(keys, rank, axes), keys, block
        )
        return jnp.where(count > 0, _floats(found), 0.0)

    if symmetric:
        top = at_rank(jnp.abs(x))
        return -top, top
    return -at_rank(-x), at_rank(x)


@functools.partial(jax.jit, static_argnames=("bits", "block", "symmetric", "scale_dtype"))
def mse_range(
    x: ArrayLike,
    bits: int,
    block: Sequence[int],
    *,
    symmetric: bool = True,
    mask: ArrayLike | None = None,
    scale_dtype: DTypeLike = jnp.float32,
) -> tuple[Array, Array]:
    """Return ranges of least squared error, among 80 fractions of the extreme values.

    The fraction is `argmin_f sum (x - grid_f(x))**2`, where `grid_f` spans `f * min(x, 0)` to `f *
    max(x, 0)` and `f` is one of 1, 79/80, ..., 1/80; ties go to the widest range.

    Args:
        x: float array.
        bits: 2 to 16.
        block: size of a block along each axis, the last one may be shorter; a tuple.
        symmetric: whether the grid is symmetric about zero.
        mask: bool of the shape of `x`, False for entries to ignore.
        scale_dtype: dtype in which scales are stored, and with which ranges are tried.

    Returns:
        `(bottom, top)`, float32 of shape `ceil(x.shape[i] / block[i])`, for `grid_of_range`; the
        extreme values if an entry is NaN or infinite, or if errors overflow. No gradient flows
        through them.

    Raises:
        ShapeError: if a block is larger than its axis.
        ValueRangeError: if `bits` is not one of 2 to 16.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.append(jnp.linspace(-1.0, 1.0, 99), 4.0)
        >>> bottom, top = mse_range(x, 2, (100,))
        >>> print(bottom.round(2), top.round(2))
        [-0.75] [0.75]

    References:
        Banner et al., https://arxiv.org/abs/1810.05723, section 3 (clipping by squared error).
    """
    x = lax.stop_gradient(jnp.asarray(x)).astype(jnp.float32)
    x = x if mask is None else jnp.where(jnp.asarray(mask), x, 0.0)  # 0 has no error on any grid
    low, high = integer_range(bits, symmetric=symmetric)
    bottom, top = (
        reduce_blocks("mse_range", lambda v, axes, r=r: r(v, axis=axes, initial=0), x, block)
        for r in (jnp.min, jnp.max)
    )
    if symmetric:
        top = jnp.maximum(-bottom, top)
        bottom = -top

    def rounded(factor: Array) -> Array:
        scale, zero = grid_of_range(
            factor * bottom, factor * top, bits, symmetric=symmetric, scale_dtype=scale_dtype
        )
        scale = repeat_uneven(scale, x.shape, block)
        zero = None if zero is None else repeat_uneven(zero, x.shape, block)
        return dequantize(quantize(x, scale, zero, low, high), scale, zero)

    factor = least_squares_factor(x, block, top.shape, rounded)
    return factor * bottom, factor * top


def least_squares_factor(
    x: Array, block: Sequence[int], blocks: tuple[int, ...], rounded: Callable[[Array], Array]
) -> Array:
    """Return for each block the one of 80 factors whose rounding has the least squared error.

    Args:
        x: float32 array.
        block: size of a block along each axis, the last one may be shorter.
        blocks: the number of blocks along each axis.
        rounded: a function `factor -> x` that rounds with ranges scaled by the factor.

    Returns:
        float32 of shape `blocks`, one of 1, 79/80, ..., 1/80; ties go to the greatest.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.ops.range_search import least_squares_factor
        >>> x = jnp.array([0.5, 0.5])
        >>> print(least_squares_factor(x, (2,), (1,), lambda factor: jnp.full(2, factor)))
        [0.5]
    """

    def attempt(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        factor = 1 - i.astype(jnp.float32) / _FACTORS
        error = reduce_blocks("mse_range", _total, (x - rounded(factor)) ** 2, block)
        better = error < best[0]
        return jnp.where(better, error, best[0]), jnp.where(better, factor, best[1])

    start = jnp.full(blocks, jnp.inf), jnp.ones(blocks, jnp.float32)
    return lax.fori_loop(0, _FACTORS, attempt, start)[1]


def _total(x: Array, axes: tuple[int, ...]) -> Array:
    return jnp.sum(x, axis=axes, dtype=x.dtype)


def _kth_largest(keys: Array, rank: Array, axes: tuple[int, ...]) -> Array:
    """Return the key with a given rank in each block, two bits at a time from the highest."""

    def narrow(i: Array, low: Array) -> Array:
        shift = jnp.uint32(30) - 2 * i.astype(jnp.uint32)
        cuts = [low | (jnp.uint32(digit) << shift) for digit in (1, 2, 3)]
        # One reduction of three sums compiles to one loop over the array; see `threshold`.
        flags = tuple((keys >= jnp.expand_dims(cut, axes)).astype(jnp.int32) for cut in cuts)
        counts = lax.reduce(flags, (jnp.int32(0),) * 3, _add, axes)
        for cut, count in zip(cuts, counts, strict=True):
            low = jnp.where(count >= rank, cut, low)
        return low

    return lax.fori_loop(0, 16, narrow, jnp.zeros(rank.shape, jnp.uint32))


def _add(a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _keys(x: Array) -> Array:
    """Map floats to integers in the same order, with every NaN above infinity."""
    bits = lax.bitcast_convert_type(jnp.where(jnp.isnan(x), jnp.nan, x), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _floats(keys: Array) -> Array:
    """Map integers back to floats; the inverse of `_keys`."""
    bits = jnp.where(keys >> 31 == 1, keys ^ jnp.uint32(1 << 31), ~keys)
    return lax.bitcast_convert_type(bits, jnp.float32)
