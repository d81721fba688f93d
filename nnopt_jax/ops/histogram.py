"""Histograms that outliers do not spoil."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from nnopt_jax.ops.compand import compand, uncompand


class Atoms(NamedTuple):
    """Weighted points in ascending order that stand for many values.

    Attributes:
        place: where each lies, `(bins,)`; an empty one within its bin.
        weight: how much each weighs, 0 where empty.
        first: place of the first atom here or above that is not empty, or infinity.
        last: place of the last atom here or below that is not empty, or minus infinity.
    """

    place: Array
    weight: Array
    first: Array
    last: Array


def gather(v: Array, w: Array, bins: int) -> Atoms:
    """Gathers values into bins, each shown as one atom at their mean.

    The bins are even on a companded scale that a sample centers and scales: an outlier, be it a
    million times larger than the rest, takes few of them.

    Args:
        v: finite float32, any shape.
        w: weights, the same shape; entries of weight 0 count for nothing.
        bins: number of bins.

    Returns:
        The atoms. A bin of equal values lies exactly there.

    Example:
        >>> import jax.numpy as jnp
        >>> atoms = gather(jnp.array([3.0, 1.0, 3.0]), jnp.ones(3), bins=4)
        >>> print(atoms.weight, atoms.place[0], atoms.place[-1])
        [1. 0. 0. 2.] 1.0 3.0
    """
    valid = w > 0
    low = jnp.min(jnp.where(valid, v, jnp.inf), initial=jnp.inf)
    high = jnp.max(jnp.where(valid, v, -jnp.inf), initial=-jnp.inf)
    low, high = (jnp.where(high >= low, x, 0.0) for x in (low, high))
    center, spread = _sample(jnp.where(valid, v, jnp.nan))
    spread = jnp.where(spread > 0, spread, jnp.where(high > low, high - low, 1.0))
    start, stop = compand((low - center) / spread), compand((high - center) / spread)
    width = (stop - start) / bins
    index = (compand((v - center) / spread) - start) / jnp.where(width > 0, width, 1)
    index = jnp.clip(index, 0, bins - 1).astype(jnp.int32)

    def middle(index: Array) -> Array:
        u = start + (index.astype(jnp.float32) + 0.5) * width
        return jnp.clip(center + spread * uncompand(u), low, high)

    weight = jnp.zeros(bins, jnp.float32).at[index].add(w)
    # Distances from the middle keep the mean within the bin, however many values there are.
    rest = jnp.zeros(bins, jnp.float32).at[index].add(w * (v - middle(index)))
    place = middle(jnp.arange(bins)) + rest / jnp.where(weight > 0, weight, 1)
    place = lax.cummax(jnp.clip(place, low, high))
    full = weight > 0
    first = lax.cummin(jnp.where(full, place, jnp.inf), reverse=True)
    last = lax.cummax(jnp.where(full, place, -jnp.inf))
    return Atoms(place, weight, first, last)


def _sample(v: Array) -> tuple[Array, Array]:
    """Gives the median and a robust spread of some thousand values, ignoring NaN."""
    for axis in sorted(range(v.ndim), key=lambda axis: -v.shape[axis]):
        step = max(1, min(v.shape[axis], v.size // 4096))
        v = lax.slice_in_dim(v, 0, None, step, axis)
    v = jnp.sort(jnp.append(v, jnp.nan))
    count = jnp.sum(~jnp.isnan(v), dtype=jnp.int32)
    low, middle, high = (
        v[(q * count.astype(jnp.float32)).astype(jnp.int32)] for q in (0.01, 0.5, 0.99)
    )
    known = count > 0
    return jnp.where(known, middle, 0), jnp.where(known, (high - low) / 4, 0)
