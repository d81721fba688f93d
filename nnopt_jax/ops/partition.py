"""The best division of ordered points into runs, by dynamic programming."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

_Sums = tuple[Array, Array, Array]


def partition(place: Array, weight: Array, parts: int, reach: int) -> Array:
    """Divides ordered points into runs of least squared distance from their means.

    `D[c, j] = min_{0 <= d <= reach} D[c-1, j-d] + cost(j-d, j)`, where `cost(i, j)` is the weighted
    sum of squared distances of points `i` to `j - 1` from their mean. Exact where no run of the
    best division is longer than `reach`; `O(parts * points * reach)`.

    Args:
        place: float32 `(points,)`, ascending.
        weight: float32 `(points,)`, non-negative.
        parts: number of runs, some of which may be empty (the later ones).
        reach: the longest run allowed, in points; `parts * reach` must be at least `points`.

    Returns:
        int32 `(parts + 1,)` ascending: run `c` holds the points from `edges[c]` to before
        `edges[c + 1]`.

    Example:
        >>> import jax.numpy as jnp
        >>> place = jnp.array([0.0, 1.0, 5.0, 6.0, 7.0])
        >>> print(partition(place, jnp.ones(5), parts=2, reach=5))
        [0 2 5]

    Source: Bellman, https://doi.org/10.1016/0025-5564(73)90007-2; Wang and Song,
        https://doi.org/10.32614/RJ-2011-015.
    """
    size = place.size
    costs = _costs(place, weight, reach)
    begin = jnp.arange(size + 1)[None, :] - jnp.arange(reach + 1)[:, None]
    begin = jnp.maximum(begin, 0)

    def layer(best: Array, _: None) -> tuple[Array, Array]:
        return jnp.min(best[begin] + costs, axis=0), best

    none = jnp.where(jnp.arange(size + 1) == 0, 0.0, jnp.inf)
    _, bests = lax.scan(layer, none, None, length=parts)

    # The lengths are found again on the way back, where one column of each layer will do.
    def back(edge: Array, best: Array) -> tuple[Array, Array]:
        length = jnp.argmin(best[begin[:, edge]] + costs[:, edge])
        return edge - length.astype(jnp.int32), edge

    _, edges = lax.scan(back, jnp.int32(size), bests, reverse=True)
    return jnp.concatenate([jnp.zeros(1, jnp.int32), edges])


def _costs(place: Array, weight: Array, reach: int) -> Array:
    """Gives `cost(j - d, j)` at row d, column j; infinite where j - d < 0.

    A run grows leftwards point by point, measured from its right end: all sums are of one sign, so
    that float32 serves.
    """
    size = place.size
    pad = jnp.zeros(reach + 1, jnp.float32)
    place, weight = jnp.concatenate([pad, place]), jnp.concatenate([pad, weight])
    end = lax.dynamic_slice_in_dim(place, reach, size + 1)

    def grow(sums: _Sums, d: Array) -> tuple[_Sums, Array]:
        w = lax.dynamic_slice_in_dim(weight, reach + 1 - d, size + 1)
        x = lax.dynamic_slice_in_dim(place, reach + 1 - d, size + 1) - end
        total, first, second = sums[0] + w, sums[1] + w * x, sums[2] + w * x * x
        cost = jnp.maximum(second - first * first / jnp.where(total > 0, total, 1), 0)
        inside = jnp.arange(size + 1) >= d
        return (total, first, second), jnp.where(inside, cost, jnp.inf)

    zero = jnp.zeros(size + 1, jnp.float32)
    _, costs = lax.scan(grow, (zero, zero, zero), jnp.arange(1, reach + 1))
    return jnp.concatenate([zero[None], costs])
