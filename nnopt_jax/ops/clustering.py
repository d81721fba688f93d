"""One-dimensional k-means of weights, on a histogram."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from nnopt_jax.errors import ValueRangeError
from nnopt_jax.ops.histogram import Atoms, gather, running, running_sum
from nnopt_jax.ops.lookup_tables import assign as assign

_CELLS = 1024  # dynamic programming divides these cells, since all atoms would be too many
_PLANNED = 256  # with more clusters, dynamic programming takes too long and gains too little


Init = Literal["density", "linear", "quantile", "random"]
"""The initial tables of `kmeans`."""


def kmeans(
    values: ArrayLike,
    clusters: int,
    *,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    init: Init = "density",
    iterations: int = 50,
    bins: int = 65536,
    key: Array | None = None,
) -> Array:
    """Fit a table of shared values by weighted k-means.

    Lloyd's algorithm minimizes `sum(weights * (values - nearest(table))**2)`, on a histogram in
    which each bin stands for the mean of its values.

    Args:
        values: float array, any shape; NaN and infinities are ignored.
        clusters: the number of entries of the table.
        mask: bool of the shape of `values`, False for entries to ignore.
        weights: importance of each entry, non-negative; by default 1.
        init: the initial table. `"density"`: spaced by the cube root of the density, which is
            optimal for many clusters; up to 256 clusters, dynamic programming finds the best table
            for some thousand cells of this spacing. `"linear"`: evenly spaced over the range.
            `"quantile"`: quantiles by weight. `"random"`: entries drawn with `key`.
        iterations: the number of steps of Lloyd's algorithm.
        bins: the number of bins of the histogram, a multiple of 1024.
        key: PRNG key, only for `"random"`.

    Returns:
        float32 of shape `(clusters,)`, ascending and finite. Entries that are not the nearest of
        any value keep their initial value, which with `"density"` is that of their left neighbor;
        without values all are 0.

    Raises:
        ValueRangeError: if a setting is out of range.

    Example:
        >>> import numpy as np
        >>> print(kmeans(np.array([1.0, 1.0, 5.0, 7.0]), 2))
        [1. 6.]

    References:
        Lloyd, https://doi.org/10.1109/TIT.1982.1056489; Panter and Dite,
        https://doi.org/10.1109/JRPROC.1951.230421 (the cube root).
    """
    _check(clusters, init, iterations, bins, key)
    v = lax.stop_gradient(jnp.asarray(values)).astype(jnp.float32)
    mask = None if mask is None else jnp.asarray(mask, bool)
    weights = None if weights is None else jnp.asarray(weights, jnp.float32)
    atoms, scale = gather(v, mask, weights, bins)
    return _fit(atoms, scale, key, clusters, init, iterations)


# Atoms have one shape for all arrays, so that the fit, which takes a second to compile, is compiled
# once, and only the histogram for each shape.
@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _fit(
    atoms: Atoms, scale: Array, key: Array | None, clusters: int, init: str, iterations: int
) -> Array:
    return _lloyd(atoms, _start(atoms, clusters, init, key), iterations) * scale


def _start(atoms: Atoms, clusters: int, init: str, key: Array | None) -> Array:
    """Return the initial table for Lloyd's algorithm."""
    steps = (jnp.arange(clusters, dtype=jnp.float32) + 0.5) / clusters
    if init == "linear":
        low, high = atoms.place[0], atoms.place[-1]
        return low + (high - low) * steps
    if init == "density" and clusters <= _PLANNED:
        return _plan_table(atoms, clusters)
    if init == "random":
        assert key is not None
        steps = jnp.sort(jax.random.uniform(key, (clusters,)))
    share = _root_density_mass(atoms) if init == "density" else atoms.weight
    total = running(jnp.add, share, 0.0)
    return jnp.interp(steps * total[-1], total, atoms.place)


def _root_density_mass(atoms: Atoms) -> Array:
    """Return the contribution of each atom to the integral of the cube root of the density.

    Each part is at most two cells of the plan, so that an outlier cannot take all cells.
    """
    left = atoms.place - jnp.append(-jnp.inf, atoms.last[:-1])
    right = jnp.append(atoms.first[1:], jnp.inf) - atoms.place
    gap = jnp.where(jnp.isfinite(left), left, right) + jnp.where(jnp.isfinite(right), right, left)
    gap = jnp.where(jnp.isfinite(gap), gap, 0)
    share = jnp.cbrt(atoms.weight * gap * gap)
    for _ in range(8):
        share = jnp.minimum(share, 2 * jnp.sum(share) / _CELLS)
    return share


def _plan_table(atoms: Atoms, clusters: int) -> Array:
    """Group atoms into cells spaced by the cube root of the density, and return the best table."""
    share = running(jnp.add, _root_density_mass(atoms), 0.0)
    cell = share / jnp.where(share[-1] > 0, share[-1], 1) * _CELLS
    cell = jnp.clip(cell.astype(jnp.int32), 0, _CELLS - 1)
    place, weight = _means(atoms.place, atoms.weight, cell, _CELLS)
    edges = partition(place, weight, clusters, min(_CELLS, 8 * _CELLS // clusters))
    run = jnp.searchsorted(edges[1:-1], jnp.arange(_CELLS), side="right")
    return _means(place, weight, run, clusters)[0]


def _means(place: Array, weight: Array, label: Array, labels: int) -> tuple[Array, Array]:
    """Return the mean place and weight of each label; an unused label repeats its left neighbor.

    Labels ascend. Distances are summed relative to the first place of each label, which keeps them
    small.
    """
    begin = jnp.searchsorted(label, jnp.arange(labels))
    origin = place[jnp.minimum(begin, place.size - 1)]
    total = jnp.zeros(labels, jnp.float32).at[label].add(weight)
    shift = jnp.zeros(labels, jnp.float32).at[label].add(weight * (place - origin[label]))
    mean = jnp.where(total > 0, origin + shift / jnp.where(total > 0, total, 1), -jnp.inf)
    mean = lax.cummax(mean)
    return jnp.where(jnp.isfinite(mean), mean, place[0]), total


def _lloyd(atoms: Atoms, table: Array, iterations: int) -> Array:
    """Move each entry to the mean of the atoms nearest to it, repeatedly."""
    center = atoms.place[atoms.place.size // 2]
    number = running_sum(atoms.weight)
    moment = running_sum(atoms.weight * (atoms.place - center))

    def step(_: int, table: Array) -> Array:
        inner = jnp.searchsorted(atoms.place, table[:-1] / 2 + table[1:] / 2, side="right")
        begin = jnp.append(0, inner)
        end = jnp.append(inner, atoms.place.size)
        n, m = ((hi[end] - hi[begin]) + (lo[end] - lo[begin]) for hi, lo in (number, moment))
        mean = center + m / jnp.where(n > 0, n, 1)
        # Clipped to the first and last atom of the label, so that the mean of a single atom is
        # exact.
        mean = jnp.clip(mean, atoms.first[begin], atoms.last[jnp.maximum(end - 1, 0)])
        return jnp.where((n > 0) & (end > begin), mean, table)

    return lax.fori_loop(0, iterations, step, table)


def _check(clusters: int, init: str, iterations: int, bins: int, key: Array | None) -> None:
    if not 1 <= clusters <= 65536:
        raise ValueRangeError(f"kmeans: clusters={clusters} is not one of 1 to 65536")
    if init not in get_args(Init):
        raise ValueRangeError(
            f"kmeans: init={init!r}; give 'density', 'linear', 'quantile' or 'random'"
        )
    if init == "random" and key is None:
        raise ValueRangeError("kmeans: init='random' draws entries; give key=jax.random.key(0)")
    if iterations < 0 or bins < 1024 or bins % 1024:
        raise ValueRangeError(
            f"kmeans: iterations={iterations} must be 0 or more, bins={bins} a multiple of 1024"
        )


_Sums = tuple[Array, Array, Array]


def partition(place: Array, weight: Array, parts: int, reach: int) -> Array:
    """Divide ordered points into runs with the least squared distance from their means.

    Dynamic programming computes `D[c, j] = min_{0 <= d <= reach} D[c-1, j-d] + cost(j-d, j)`, where
    `cost(i, j)` is the weighted sum of squared distances of points `i` to `j - 1` from their mean.
    The result is exact if no run of the best division is longer than `reach`. It takes `O(parts *
    points * reach)` operations.

    Args:
        place: float32 `(points,)`, the positions, ascending.
        weight: float32 `(points,)`, non-negative.
        parts: the number of runs; the last ones may be empty.
        reach: the longest run allowed, in points; `parts * reach` must be at least `points`.

    Returns:
        `edges`, int32 `(parts + 1,)`, ascending: run `c` holds the points from `edges[c]` up to but
        excluding `edges[c + 1]`.

    Example:
        >>> import jax.numpy as jnp
        >>> place = jnp.array([0.0, 1.0, 5.0, 6.0, 7.0])
        >>> print(partition(place, jnp.ones(5), parts=2, reach=5))
        [0 2 5]

    References:
        Bellman, https://doi.org/10.1016/0025-5564(73)90007-2; Wang and Song,
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

    # The lengths are recomputed on the way back, which needs only one column of each layer.
    def back(edge: Array, best: Array) -> tuple[Array, Array]:
        length = jnp.argmin(best[begin[:, edge]] + costs[:, edge])
        return edge - length.astype(jnp.int32), edge

    _, edges = lax.scan(back, jnp.int32(size), bests, reverse=True)
    return jnp.concatenate([jnp.zeros(1, jnp.int32), edges])


def _costs(place: Array, weight: Array, reach: int) -> Array:
    """Return the cost of each run of `partition`: row d, column j holds `cost(j - d, j)`.

    Runs that would begin before the first point, `j - d < 0`, cost infinity.

    A run grows to the left point by point, measured from its right end, so that all terms of a sum
    have one sign and float32 is precise enough.
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
