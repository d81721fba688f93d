"""One-dimensional k-means of weights, on a histogram."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from nnopt_jax.errors import ValueRangeError


def kmeans(
    values: ArrayLike,
    clusters: int,
    *,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    init: Literal["density", "linear", "quantile", "random"] = "density",
    iterations: int = 50,
    bins: int = 65536,
    key: Array | None = None,
) -> Array:
    """Fits a table of shared values by weighted k-means.

    Minimizes `sum(weights * (values - nearest(table))**2)` by Lloyd's algorithm.

    Args:
        values: float array, any shape; NaN and infinities are ignored.
        clusters: entries of the table.
        mask: bool of the shape of `values`, False for entries to ignore.
        weights: importance of each entry, non-negative; default 1.
        init: where to start. `"density"` spaces the entries by the cube root of the density, which
            is optimal for many clusters; `"linear"` evenly over the range; `"quantile"` by equal
            weight; `"random"` at entries drawn with `key`.
        iterations: steps of Lloyd's algorithm.
        bins: bins of the histogram.
        key: PRNG key, for `"random"` only.

    Returns:
        float32 of shape `(clusters,)`, ascending and finite. Entries that no value is nearest to
        stay where they started; without any value all are 0.

    Raises:
        ValueRangeError: if a setting is out of range.

    Example:
        >>> import numpy as np
        >>> print(kmeans(np.array([1.0, 1.0, 5.0, 7.0]), 2))
        [1. 6.]

    Source: Lloyd, https://doi.org/10.1109/TIT.1982.1056489; Panter and Dite,
        https://doi.org/10.1109/JRPROC.1951.230421 (the cube root).
    """
    _check(clusters, init, iterations, bins, key)
    v = lax.stop_gradient(jnp.asarray(values)).astype(jnp.float32)
    w = jnp.ones(v.shape, jnp.float32) if weights is None else jnp.asarray(weights, jnp.float32)
    valid = jnp.isfinite(v) if mask is None else jnp.isfinite(v) & jnp.asarray(mask, bool)
    atoms = _histogram(jnp.where(valid, v, 0), jnp.where(valid, w, 0), valid, bins)
    table = _start(atoms, clusters, init, key)
    return lax.fori_loop(0, iterations, lambda _, t: _lloyd(atoms, t), table)


def assign(values: ArrayLike, table: ArrayLike) -> Array:
    """Finds the nearest entry of a table for each value.

    `argmin_c |values - table[c]|`, decided in float32 at the midpoints of neighbors; ties go to the
    lower index.

    Args:
        values: float array, any shape.
        table: `(clusters,)`, ascending.

    Returns:
        uint8 indices of the shape of `values` (uint16 above 256 clusters). NaN gets index 0.

    Example:
        >>> import numpy as np
        >>> print(assign(np.array([-9.0, 0.5, 0.6, 2.0]), np.array([0.0, 1.0])))
        [0 0 1 1]
    """
    v, t = jnp.asarray(values).astype(jnp.float32), jnp.asarray(table).astype(jnp.float32)
    dtype = jnp.uint8 if t.size <= 256 else jnp.uint16
    middle = t[:-1] / 2 + t[1:] / 2
    if t.size <= 32:
        return sum(((v > m).astype(dtype) for m in middle), jnp.zeros(v.shape, dtype))
    found = jnp.searchsorted(middle, jnp.where(jnp.isnan(v), -jnp.inf, v))
    return found.astype(dtype)


class _Atoms(NamedTuple):
    """Weighted points in ascending order, that stand for all values."""

    place: Array
    weight: Array


def _histogram(v: Array, w: Array, valid: Array, bins: int) -> _Atoms:
    low = jnp.min(jnp.where(valid, v, jnp.inf), initial=jnp.inf)
    high = jnp.max(jnp.where(valid, v, -jnp.inf), initial=-jnp.inf)
    low, high = (jnp.where(high >= low, x, 0.0) for x in (low, high))
    width = jnp.maximum(high / bins - low / bins, jnp.finfo(jnp.float32).tiny)
    index = jnp.clip((v / width - low / width).astype(jnp.int32), 0, bins - 1)
    middle = low + (jnp.arange(bins, dtype=jnp.float32) + 0.5) * width
    weight = jnp.zeros(bins, jnp.float32).at[index].add(w)
    rest = jnp.zeros(bins, jnp.float32).at[index].add(w * (v - middle[index]))
    place = middle + rest / jnp.where(weight > 0, weight, 1)
    return _Atoms(jnp.clip(place, low, high), weight)


def _start(atoms: _Atoms, clusters: int, init: str, key: Array | None) -> Array:
    place, weight = atoms
    steps = (jnp.arange(clusters, dtype=jnp.float32) + 0.5) / clusters
    if init == "linear":
        low = jnp.min(jnp.where(weight > 0, place, jnp.inf))
        high = jnp.max(jnp.where(weight > 0, place, -jnp.inf))
        low, high = (jnp.where(high >= low, x, 0.0) for x in (low, high))
        return low + (high - low) * steps
    if init == "random":
        assert key is not None
        steps = jnp.sort(jax.random.uniform(key, (clusters,)))
    measure = weight
    if init == "density":
        cell = max(1, place.size // 1024)
        smooth = weight.reshape(-1, cell).sum(1) / cell
        measure = jnp.repeat(jnp.cbrt(smooth), cell)
    total = jnp.cumsum(measure)
    return jnp.interp(steps * total[-1], total, place)


def _lloyd(atoms: _Atoms, table: Array) -> Array:
    place, weight = atoms
    edges = jnp.searchsorted(place, table[:-1] / 2 + table[1:] / 2, side="right")
    index = jnp.zeros(place.size, jnp.int32).at[edges].add(1, mode="drop")
    index = jnp.cumsum(index)
    number = jnp.zeros(table.size, jnp.float32).at[index].add(weight)
    shift = jnp.zeros(table.size, jnp.float32).at[index].add(weight * (place - table[index]))
    return table + shift / jnp.where(number > 0, number, 1)


def _check(clusters: int, init: str, iterations: int, bins: int, key: Array | None) -> None:
    if not 1 <= clusters <= 65536:
        raise ValueRangeError(f"kmeans: clusters={clusters} is not one of 1 to 65536")
    if init not in ("density", "linear", "quantile", "random"):
        raise ValueRangeError(
            f"kmeans: init={init!r}; give 'density', 'linear', 'quantile' or 'random'"
        )
    if init == "random" and key is None:
        raise ValueRangeError("kmeans: init='random' draws entries; give key=jax.random.key(0)")
    if iterations < 0 or bins < 1024 or bins % 1024:
        raise ValueRangeError(
            f"kmeans: iterations={iterations} must be 0 or more, bins={bins} a multiple of 1024"
        )
