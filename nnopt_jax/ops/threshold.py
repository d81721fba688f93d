"""Exact top-k masks without sorting: a search over float bit patterns that only counts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from nnopt_jax.errors import Problems, ValueRangeError
from nnopt_jax.ops.eager import is_on_host, like_input

_NAN = 0x7F800001  # one above infinity
_LEAST = -0x7F800000  # minus infinity
_WAYS = 5

_Keys = Callable[[Array], Array]
_Count = Callable[[list[Array]], list[Array]]


def kth_largest(scores: ArrayLike, k: int | Array) -> Array:
    """Return the exact k-th largest score.

    It is the largest `t` with `sum(|scores| >= t) >= k`.

    Args:
        scores: float array of 32 bits or fewer, of any shape, ranked by magnitude; infinities are
            allowed, and NaN ranks above them.
        k: from 1 for the largest to `scores.size` for the least, static or an int32 tracer
            (clipped).

    Returns:
        A non-negative scalar of the dtype of `scores`.

    Raises:
        ValueRangeError: if a static `k` is not one of 1 to `scores.size`.

    Example:
        >>> import numpy as np
        >>> print(kth_largest(np.array([3.0, 1.0, 4.0, 1.5], np.float32), 2))
        3.0
    """
    [scores], k = _check("kth_largest", [scores], k, least=1)
    return _kth_largest(scores, k)


def top_k_mask(scores: ArrayLike, k: int | Array, *, signed: bool = False) -> Array:
    """Mark exactly the k largest scores; among equal ones, those of lower flat index.

    `mask[i] = #{j : |s[j]| > |s[i]|} + #{j < i : |s[j]| == |s[i]|} < k`, without absolute values if
    `signed`.

    Args:
        scores: float array of 32 bits or fewer, of any shape, ranked by magnitude; infinities are
            allowed, and NaN ranks above them (so that a broken weight is kept and stays visible).
        k: the number to mark, 0 to `scores.size`, static or an int32 tracer (clipped).
        signed: whether scores are ranked by value, from -inf (the least) to +inf, with -0 equal to
            0.

    Returns:
        A bool array of the shape of `scores` with `k` entries True.

    Raises:
        ValueRangeError: if a static `k` is not one of 0 to `scores.size`.

    Example:
        >>> import numpy as np
        >>> print(top_k_mask(np.array([2.0, 1.0, -2.0, 2.0], np.float32), 2))
        [ True False  True False]
        >>> print(top_k_mask(np.array([2.0, 1.0, -2.0, 2.0], np.float32), 3, signed=True))
        [ True  True False  True]
    """
    return _compute_masks(*_check("top_k_mask", [scores], k, least=0), signed)[0]


def top_k_masks(
    scores: Sequence[ArrayLike], k: int | Array, *, signed: bool = False
) -> list[Array]:
    """Mark exactly the k largest scores of several arrays together.

    The result is that of `top_k_mask` on the concatenated arrays, but they are never concatenated:
    only their counts are summed. Each array may therefore have its own sharding, and a step of the
    search exchanges one number.

    Args:
        scores: float arrays as in `top_k_mask`, with fewer than 2**31 entries in total.
        k: the total number to mark, static or an int32 tracer (clipped).
        signed: see `top_k_mask`.

    Returns:
        One bool array for each array of scores, with `k` entries True in total. Ties go to the
        earlier array, then to the lower flat index.

    Raises:
        ValueRangeError: if a static `k` is not one of 0 to the number of scores.

    Example:
        >>> import numpy as np
        >>> first, second = np.array([0.5, 2.0], np.float32), np.array([[1.0]], np.float32)
        >>> print(*top_k_masks([first, second], 2))
        [False  True] [[ True]]
    """
    return _compute_masks(*_check("top_k_masks", scores, k, least=0), signed)


_SMALL = 1 << 18
"""The number of scores up to which sorting them takes less time than compiling the search."""


def _compute_masks(arrays: list[Array], k: Array, signed: bool) -> list[Array]:
    size = sum(array.size for array in arrays)
    if 0 < size <= _SMALL and all(map(is_on_host, (k, *arrays))):
        return _sorted_masks(arrays, int(k), signed)
    return _masks(arrays, k, signed=signed)


def _sorted_masks(arrays: list[Array], k: int, signed: bool) -> list[Array]:
    """Mark the k largest scores by sorting them in NumPy."""
    flat = [np.asarray(array, np.float32).ravel() for array in arrays]
    scores = np.concatenate(flat)
    scores = np.where(np.isnan(scores), np.float32(np.inf), scores if signed else np.abs(scores))
    # NaN ranks above infinity, and a stable sort keeps equal scores in their order.
    order = np.lexsort((-scores, ~np.isnan(np.concatenate(flat))))
    mask = np.zeros(scores.size, bool)
    mask[order[:k]] = True
    parts = np.split(mask, np.cumsum([x.size for x in flat])[:-1])
    pairs = zip(parts, arrays, strict=True)
    return [like_input(part.reshape(array.shape), array) for part, array in pairs]


@jax.jit
def _kth_largest(scores: Array, k: Array) -> Array:
    count = _counter([scores], lambda i, array: _by_magnitude(array))
    low, _, _ = _search(count, k, (0, _NAN), scores.size, exact=True)
    return lax.bitcast_convert_type(low, jnp.float32).astype(scores.dtype)


@functools.partial(jax.jit, static_argnames="signed")
def _masks(arrays: list[Array], k: Array, signed: bool) -> list[Array]:
    size = sum(array.size for array in arrays)
    keys = _by_value if signed else _by_magnitude
    count = _counter(arrays, lambda i, array: keys(array))
    low, found, above = _search(count, k, (_LEAST if signed else 0, _NAN), size)
    return lax.cond(
        found == k,
        lambda: [keys(array) >= low for array in arrays],
        lambda: _break_ties(arrays, keys, low, k - above, size),
    )


def _break_ties(
    arrays: list[Array], keys: _Keys, low: Array, missing: Array, size: int
) -> list[Array]:
    """Return masks of the keys above `low`, and of the first `missing` keys equal to `low`."""
    before = list(itertools.accumulate((array.size for array in arrays), initial=0))

    def order(i: int, array: Array) -> Array:
        # Counted down, so that the first of equal scores rank highest.
        return jnp.where(keys(array) == low, size - before[i] - _flat_index(array.shape), 0)

    edge, _, _ = _search(_counter(arrays, order), missing, (0, size), size)
    edge = jnp.where(missing > 0, edge, size + 1)
    return [(keys(array) > low) | (order(i, array) >= edge) for i, array in enumerate(arrays)]


def _search(
    count: _Count, k: Array, ends: tuple[int, int], size: int, exact: bool = False
) -> tuple[Array, Array, Array]:
    """Return the largest int32 `low` of a span with `count(low) >= k`, by (q + 1)-section.

    Args:
        count: a function that counts how many of the `size` integers in the span reach each of q
            cuts.
        k: the count sought.
        ends: the least and the greatest integer of the span; int32 must also hold the next greater
            one.
        size: the count at the least.
        exact: whether to continue once the count is `k`, until `low` occurs among the integers; a
            mask does not need this.

    Returns:
        `low`, its count, and (unless that is `k`) the count above it.
    """

    def going(carry: tuple[Array, ...]) -> Array:
        low, high, at_low, _ = carry
        return (high != low + 1) & (exact | (at_low != k))

    def narrow(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, at_low, at_high = carry
        # A width may need 32 bits. The cuts lie inside the span, so sums that wrap around are still
        # correct.
        width = lax.bitcast_convert_type(high - low, jnp.uint32)
        step = jnp.maximum((width // jnp.uint32(_WAYS + 1)).astype(jnp.int32), 1)
        cuts = [jnp.minimum(low + step * i, high - 1) for i in range(1, _WAYS + 1)]
        counts = count(cuts)
        # Upwards, so that the last cut that enough keys reach stays; downwards for the other end.
        for cut, n in zip(cuts, counts, strict=True):
            low, at_low = jnp.where(n >= k, cut, low), jnp.where(n >= k, n, at_low)
        for cut, n in zip(reversed(cuts), reversed(counts), strict=True):
            high, at_high = jnp.where(n < k, cut, high), jnp.where(n < k, n, at_high)
        return low, high, at_low, at_high

    start = tuple(jnp.int32(i) for i in (ends[0], ends[1] + 1, size, 0))
    low, _, at_low, at_high = lax.while_loop(going, narrow, start)
    return low, at_low, at_high


def _by_magnitude(scores: Array) -> Array:
    """Map magnitudes to their bits, int32 keys in the same order; map every NaN to one key."""
    bits = lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
    return jnp.minimum(bits & 0x7FFFFFFF, _NAN)


def _by_value(scores: Array) -> Array:
    """Map values to int32 keys in the same order; map every NaN to the greatest."""
    bits = lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
    magnitude = jnp.minimum(bits & 0x7FFFFFFF, _NAN)
    # Negative values count down from zero, so that -0 and 0 have the same key.
    return jnp.where((bits < 0) & (magnitude < _NAN), -magnitude, magnitude)


def _counter(arrays: list[Array], keys: Callable[[int, Array], Array]) -> _Count:
    """Return a function that counts, over all arrays, the keys that reach each cut."""

    def count(cuts: list[Array]) -> list[Array]:
        totals = [jnp.int32(0)] * len(cuts)
        for i, array in enumerate(arrays):
            # A dependency on the cuts, or else the compiler would move the keys out of the loop and
            # store them.
            array, _ = lax.optimization_barrier((array, cuts[0]))
            totals = _add(totals, _count_reached(keys(i, array), cuts))
        return totals

    return count


def _count_reached(keys: Array, cuts: list[Array]) -> list[Array]:
    """Count the keys that reach each cut, in one pass.

    One reduction of several sums compiles to one vectorized loop over the array in memory order,
    sharded or not. The sum of a single comparison would compile to a tree of windows, which takes
    ten times as long.
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


def _check(
    name: str, scores: Sequence[ArrayLike], k: int | Array, least: int
) -> tuple[list[Array], Array]:
    """Check the arguments and report all problems at once."""
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
