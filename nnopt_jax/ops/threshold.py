"""Exact top-k masks without sorting: a search over the bit patterns of floats that only counts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from nnopt_jax.errors import Problems, ValueRangeError

_NAN = 0x7F800001  # one above infinity
_WAYS = 5

_Count = Callable[[list[Array]], list[Array]]


def kth_largest(scores: ArrayLike, k: int | Array) -> Array:
    """Finds the k-th largest score, exactly.

    The largest `t` with `sum(|scores| >= t) >= k`.

    Args:
        scores: float array of 32 bits or fewer, any shape, ranked by magnitude; +inf allowed, NaN
            ranks above it.
        k: 1 for the largest to `scores.size` for the least; static, or an int32 tracer (clipped).

    Returns:
        A scalar of the dtype of `scores`, not negative.

    Raises:
        ValueRangeError: if a static `k` is not one of 1 to `scores.size`.

    Example:
        >>> import numpy as np
        >>> print(kth_largest(np.array([3.0, 1.0, 4.0, 1.5], np.float32), 2))
        3.0
    """
    [scores], k = _checked("kth_largest", [scores], k, least=1)
    return _kth_largest(scores, k)


def top_k_mask(scores: ArrayLike, k: int | Array) -> Array:
    """Marks exactly the k largest scores; of equal ones, those of lower flat index.

    `mask[i] = #{j : |s[j]| > |s[i]|} + #{j < i : |s[j]| == |s[i]|} < k`.

    Args:
        scores: float array of 32 bits or fewer, any shape, ranked by magnitude; +inf allowed, NaN
            ranks above it (a broken weight is kept, where it can be seen).
        k: how many to mark, 0 to `scores.size`; static, or an int32 tracer (clipped).

    Returns:
        A bool array of the shape of `scores`, `k` of it True.

    Raises:
        ValueRangeError: if a static `k` is not one of 0 to `scores.size`.

    Example:
        >>> import numpy as np
        >>> print(top_k_mask(np.array([2.0, 1.0, -2.0, 2.0], np.float32), 2))
        [ True False  True False]
    """
    return _masks(*_checked("top_k_mask", [scores], k, least=0))[0]


def top_k_masks(scores: Sequence[ArrayLike], k: int | Array) -> list[Array]:
    """Marks exactly the k largest scores of several arrays together.

    As `top_k_mask` of the arrays laid end to end, which are never laid so: their counts are summed.
    Hence each may be sharded in its own way, and a step of the search exchanges one number.

    Args:
        scores: float arrays as for `top_k_mask`, with fewer than 2**31 entries in all.
        k: how many to mark in all; static, or an int32 tracer (clipped).

    Returns:
        One bool array for each array of scores, `k` of all entries True. Ties go to the earlier
        array, then to the lower flat index.

    Raises:
        ValueRangeError: if a static `k` is not one of 0 to the number of scores.

    Example:
        >>> import numpy as np
        >>> first, second = np.array([0.5, 2.0], np.float32), np.array([[1.0]], np.float32)
        >>> print(*top_k_masks([first, second], 2))
        [False  True] [[ True]]
    """
    return _masks(*_checked("top_k_masks", scores, k, least=0))


@jax.jit
def _kth_largest(scores: Array, k: Array) -> Array:
    count = _counter([scores], lambda i, array: _keys(array))
    low, _, _ = _search(count, k, _NAN, scores.size, exact=True)
    return lax.bitcast_convert_type(low, jnp.float32).astype(scores.dtype)


@jax.jit
def _masks(arrays: list[Array], k: Array) -> list[Array]:
    size = sum(array.size for array in arrays)
    count = _counter(arrays, lambda i, array: _keys(array))
    low, found, above = _search(count, k, _NAN, size)
    return lax.cond(
        found == k,
        lambda: [_keys(array) >= low for array in arrays],
        lambda: _break_ties(arrays, low, k - above, size),
    )


def _break_ties(arrays: list[Array], low: Array, missing: Array, size: int) -> list[Array]:
    """Marks the keys above `low` and the first `missing` of those equal to it."""
    before = list(itertools.accumulate((array.size for array in arrays), initial=0))

    def order(i: int, array: Array) -> Array:
        # Counted down, so that the first of the tied are the largest.
        return jnp.where(_keys(array) == low, size - before[i] - _flat_index(array.shape), 0)

    edge, _, _ = _search(_counter(arrays, order), missing, size, size)
    edge = jnp.where(missing > 0, edge, size + 1)
    return [(_keys(array) > low) | (order(i, array) >= edge) for i, array in enumerate(arrays)]


def _search(
    count: _Count, k: Array, top: int, size: int, exact: bool = False
) -> tuple[Array, Array, Array]:
    """Finds the largest integer `low` in [0, top] with `count(low) >= k`, by (q + 1)-section.

    Args:
        count: tells how many of the `size` integers, all in [0, top], reach each of q cuts.
        k: the count sought.
        top: the greatest integer.
        size: the count at 0.
        exact: whether to go on where the count is `k` already, between two integers that occur,
            which makes no difference to a mask.

    Returns:
        `low`, its count, and (unless that is `k`) the count above it.
    """

    def going(carry: tuple[Array, ...]) -> Array:
        low, high, at_low, _ = carry
        return (high - low > 1) & (exact | (at_low != k))

    def narrow(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, at_low, at_high = carry
        step = jnp.maximum((high - low) // (_WAYS + 1), 1)
        cuts = [jnp.minimum(low + step * i, high - 1) for i in range(1, _WAYS + 1)]
        counts = count(cuts)
        # Upwards, so that the last cut reached often enough stays; downwards for the other end.
        for cut, n in zip(cuts, counts, strict=True):
            low, at_low = jnp.where(n >= k, cut, low), jnp.where(n >= k, n, at_low)
        for cut, n in zip(reversed(cuts), reversed(counts), strict=True):
            high, at_high = jnp.where(n < k, cut, high), jnp.where(n < k, n, at_high)
        return low, high, at_low, at_high

    start = [jnp.int32(i) for i in (0, top + 1, size, 0)]
    low, _, at_low, at_high = lax.while_loop(going, narrow, tuple(start))
    return low, at_low, at_high


def _keys(scores: Array) -> Array:
    """Maps magnitudes to int32 keys of the same order, which are their bits; all NaN to one key."""
    bits = lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
    return jnp.minimum(bits & 0x7FFFFFFF, _NAN)


def _counter(arrays: list[Array], keys: Callable[[int, Array], Array]) -> _Count:
    """Makes the function that counts, over all arrays, the keys that reach each of some cuts."""

    def count(cuts: list[Array]) -> list[Array]:
        totals = [jnp.int32(0)] * len(cuts)
        for i, array in enumerate(arrays):
            # Tied to the cuts, lest the keys are lifted out of the loop and written to memory.
            array, _ = lax.optimization_barrier((array, cuts[0]))
            totals = _add(totals, _reached(keys(i, array), cuts))
        return totals

    return count


def _reached(keys: Array, cuts: list[Array]) -> list[Array]:
    """Counts the keys that reach each cut, in one pass.

    One reduction of several sums compiles to one vectorized loop over the array as it lies, sharded
    or not; the sum of a comparison alone becomes a tree of windows, which takes ten times as long.
    """
    flags = tuple((keys >= cut).astype(jnp.int32) for cut in cuts)
    zeros = (jnp.int32(0),) * len(cuts)
    return lax.reduce(flags, zeros, _add, tuple(range(keys.ndim)))


def _add(a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _flat_index(shape: tuple[int, ...]) -> Array:
    index = jnp.zeros(shape, jnp.int32)
    for axis, size in enumerate(shape):
        index = index * size + lax.broadcasted_iota(jnp.int32, shape, axis)
    return index


def _checked(
    name: str, scores: Sequence[ArrayLike], k: int | Array, least: int
) -> tuple[list[Array], Array]:
    """Checks the arguments; all that can be wrong is told at once."""
    arrays = [jnp.asarray(array) for array in scores]
    size = sum(array.size for array in arrays)
    problems = Problems(name)
    for i, array in enumerate(arrays):
        if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize > 4:
            problems.add("", f"scores {i} are {array.dtype}; give floats of 32 bits or fewer")
    if size >= 2**31:
        problems.add("", f"{size} scores; counts are int32, give fewer than 2**31")
    if not isinstance(k, Tracer) and not least <= int(k) <= size:
        problems.add("", f"k={int(k)} of {size} scores; give {least} to {size}")
    problems.raise_as(ValueRangeError)
    return arrays, jnp.clip(jnp.asarray(k, jnp.int32), least, size)
