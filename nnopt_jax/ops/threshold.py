"""Exact top-k masks without sorting: bisection on the bit patterns of floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from nnopt_jax.errors import ShapeError, ValueRangeError

_NAN_KEY = 0x7FC00000
_WAYS = 5


def kth_largest(scores: ArrayLike, k: int | Array) -> Array:
    """Finds the k-th largest score, exactly.

    The largest `t` with `sum(scores >= t) >= k`. Non-negative floats are ordered as their bit
    patterns are, so `t` is found by bisection over integers; each step only counts.

    Args:
        scores: non-negative float array, any shape; +inf allowed, NaN ranks above it.
        k: 1 for the largest to `scores.size` for the least; static, or an int32 tracer (clipped).

    Returns:
        A scalar of the dtype of `scores`.

    Raises:
        ValueRangeError: if a static `k` is not one of 1 to `scores.size`.

    Example:
        >>> import numpy as np
        >>> print(kth_largest(np.array([3.0, 1.0, 4.0, 1.5], np.float32), 2))
        3.0
    """
    scores = jnp.asarray(scores)
    keys = [_keys(scores)]
    low, _ = _select(keys, _checked("kth_largest", k, scores.size, least=1))
    found = jnp.min(jnp.where(keys[0] >= low, keys[0], _NAN_KEY), initial=_NAN_KEY)
    return lax.bitcast_convert_type(found, jnp.float32).astype(scores.dtype)


def top_k_mask(scores: ArrayLike, k: int | Array) -> Array:
    """Marks exactly the k largest scores; of equal ones, those of lower flat index.

    `mask[i] = #{j : scores[j] > scores[i]} + #{j < i : scores[j] == scores[i]} < k`.

    Args:
        scores: non-negative float array, any shape; +inf allowed, NaN ranks above it (a broken
            weight is kept, where it can be seen).
        k: how many to mark, 0 to `scores.size`; static, or an int32 tracer (clipped).

    Returns:
        A bool array of the shape of `scores`, `k` of it True.

    Raises:
        ValueRangeError: if a static `k` is not one of 0 to `scores.size`.

    Example:
        >>> import numpy as np
        >>> print(top_k_mask(np.array([2.0, 1.0, 2.0, 2.0], np.float32), 2))
        [ True False  True False]
    """
    return top_k_masks([scores], k)[0]


def top_k_masks(scores: Sequence[ArrayLike], k: int | Array) -> list[Array]:
    """Marks exactly the k largest scores of several arrays together.

    As `top_k_mask` of the arrays laid end to end, which are never laid so: the counts are summed,
    so that each array may be sharded in its own way, and the loop exchanges a few numbers a step.

    Args:
        scores: non-negative float arrays of any shapes, with fewer than 2**31 entries in all.
        k: how many to mark in all; static, or an int32 tracer (clipped).

    Returns:
        One bool array for each array of scores, `k` of all entries True. Ties go to the earlier
        array, then to the lower flat index.

    Raises:
        ValueRangeError: if a static `k` is not one of 0 to the number of scores.

    Example:
        >>> import numpy as np
        >>> first, second = np.array([0.5, 2.0], np.float32), np.array([[1.0]], np.float32)
        >>> print(top_k_masks([first, second], 2))
        [Array([False,  True], dtype=bool), Array([[ True]], dtype=bool)]
    """
    arrays = [jnp.asarray(score) for score in scores]
    k = _checked("top_k_masks", k, sum(array.size for array in arrays), least=0)
    keys = [_keys(array) for array in arrays]
    low, count = _select(keys, k)
    return lax.cond(
        count == k,
        lambda: [key >= low for key in keys],
        lambda: _broken_ties(keys, low, k),
    )


def _broken_ties(keys: list[Array], low: Array, k: Array) -> list[Array]:
    """Marks all above `low` and, of those equal to it, the first ones up to `k` in all."""
    above = [key > low for key in keys]
    total = sum(key.size for key in keys)
    order, start = [], 0
    for key in keys:
        # Positive where tied, the greater the earlier.
        order.append(jnp.where(key == low, total - start - _flat_index(key.shape), 0))
        start += key.size
    missing = k - sum((jnp.sum(a, dtype=jnp.int32) for a in above), jnp.int32(0))
    last, _ = _select(order, missing)
    last = jnp.where(missing > 0, last, total + 1)
    return [a | (o >= last) for a, o in zip(above, order, strict=True)]


def _select(keys: list[Array], k: Array) -> tuple[Array, Array]:
    """Bisects for a `low` with `count(keys >= low) >= k > count(keys > low)`, or an exact hit.

    Returns:
        `low` and `count(keys >= low)`; where the count is `k`, the search stopped early and `low`
        may lie below the k-th largest key, with no key between.
    """
    size = sum(key.size for key in keys)

    def going(carry: tuple[Array, Array, Array]) -> Array:
        low, high, count = carry
        return (high - low > 1) & (count != k)

    def narrow(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, count = carry
        step = jnp.maximum((high - low) // (_WAYS + 1), 1)
        for cut in [jnp.minimum(low + step * i, high - 1) for i in range(1, _WAYS + 1)]:
            n = sum((jnp.sum(key >= cut, dtype=jnp.int32) for key in keys), jnp.int32(0))
            enough = n >= k
            low, count = jnp.where(enough, cut, low), jnp.where(enough, n, count)
            high = jnp.where(enough, high, jnp.minimum(high, cut))
        return low, high, count

    start = (jnp.int32(0), jnp.int32(_NAN_KEY + 1), jnp.int32(size))
    low, _, count = lax.while_loop(going, narrow, start)
    return low, count


def _keys(scores: Array) -> Array:
    """Maps scores to int32 keys of the same order, all NaN to the greatest."""
    if not jnp.issubdtype(scores.dtype, jnp.floating) or scores.dtype.itemsize > 4:
        raise ValueRangeError(f"top_k_masks: scores of dtype {scores.dtype}; use float32 or less")
    bits = lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
    return jnp.where(jnp.isnan(scores), _NAN_KEY, jnp.maximum(bits, 0))


def _flat_index(shape: tuple[int, ...]) -> Array:
    index = jnp.zeros(shape, jnp.int32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :])
        index += lax.broadcasted_iota(jnp.int32, shape, axis) * stride
    return index


def _checked(name: str, k: int | Array, size: int, least: int) -> Array:
    if size >= 2**31:
        raise ShapeError(f"{name}: {size} scores; counts are int32, give fewer than 2**31")
    if not isinstance(k, jax.core.Tracer) and not least <= int(k) <= size:
        raise ValueRangeError(f"{name}: k={int(k)} of {size} scores; use {least} to {size}")
    return jnp.clip(jnp.asarray(k, jnp.int32), least, size)
