"""The nearest entry of an ascending table."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

_COMPARED = 32  # up to here, comparing with every midpoint is fastest
_CELLS = 1 << 16


def assign(values: ArrayLike, table: ArrayLike) -> Array:
    """Finds the nearest entry of a table for each value.

    `argmin_c |values - table[c]|`, decided in float32 at the midpoints of neighbors; ties go to the
    lower index. Exact for any table.

    Args:
        values: float array, any shape.
        table: `(clusters,)`, ascending and finite, 1 to 65,536 entries.

    Returns:
        uint8 indices of the shape of `values` (uint16 above 256 clusters); 0 for NaN.

    Example:
        >>> import numpy as np
        >>> print(assign(np.array([-9.0, 0.5, 0.6, 2.0]), np.array([0.0, 1.0])))
        [0 0 1 1]
    """
    v = lax.stop_gradient(jnp.asarray(values)).astype(jnp.float32)
    t = lax.stop_gradient(jnp.asarray(table)).astype(jnp.float32)
    return _assign(v, t)


@jax.jit
def _assign(v: Array, t: Array) -> Array:
    dtype = jnp.uint8 if t.size <= 256 else jnp.uint16
    middles = t[:-1] / 2 + t[1:] / 2  # halved first: sums may overflow
    if t.size > _COMPARED:
        return _looked_up(v, middles, dtype)
    index = jnp.zeros(v.shape, dtype)
    for i in range(t.size - 1):
        index += (v > middles[i]).astype(dtype)
    return index


def _looked_up(v: Array, middles: Array, dtype: DTypeLike) -> Array:
    """Counts the midpoints below each value: a grid tells all but one, which is compared.

    The neighbors of a cell count with it, lest rounding matters. Where a cell then has more than
    one midpoint, as an outlier in the table can bring about, binary search serves.
    """
    # Halves, for differences of the largest floats overflow.
    start, stop = middles[0] / 2, middles[-1] / 2
    scale = jnp.where(stop > start, (_CELLS - 4) / (stop - start), 1.0)

    def cell(x: Array) -> Array:
        return jnp.clip((x / 2 - start) * scale, -1, _CELLS - 3).astype(jnp.int32) + 2

    cells, numbers = cell(middles), jnp.arange(_CELLS)
    below = jnp.searchsorted(cells, numbers - 1)
    most = jnp.max(jnp.searchsorted(cells, numbers + 1, side="right") - below)
    following = jnp.append(middles, jnp.inf)[below]
    v = jnp.where(jnp.isnan(v), -jnp.inf, v)  # a NaN would lie in an arbitrary cell

    def grid() -> Array:
        at = cell(v)
        return below.astype(dtype)[at] + (v > following[at]).astype(dtype)

    def search() -> Array:
        return jnp.searchsorted(middles, v, method="scan_unrolled").astype(dtype)

    return lax.cond(most <= 1, grid, search)
