"""The nearest entry of an ascending table."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from nnopt_jax.ops.compand import compand

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
    """Counts the midpoints below each value: a grid tells all but a few, which are compared.

    The grid is even on a companded scale, so that a table with far outliers still gets cells where
    its entries crowd. Both neighbors of a cell are compared too, lest rounding matters.
    """
    center = middles[middles.size // 2]
    spread = middles[middles.size * 3 // 4] - middles[middles.size // 4]
    spread = jnp.where(spread > 0, spread, 1.0)
    start, stop = compand((middles[jnp.array([0, -1])] - center) / spread)
    width = jnp.where(stop > start, (stop - start) / (_CELLS - 4), 1.0)

    def cell(x: Array) -> Array:
        u = (compand((x - center) / spread) - start) / width
        return jnp.clip(u, -1, _CELLS - 3).astype(jnp.int32) + 2

    cells = cell(middles)
    numbers = jnp.arange(_CELLS)
    below = jnp.searchsorted(cells, numbers - 1).astype(dtype)
    until = jnp.searchsorted(cells, numbers + 1, side="right")
    most = jnp.max(until - below)
    padded = jnp.append(middles, jnp.inf)
    v = jnp.where(jnp.isnan(v), -jnp.inf, v)  # a NaN would lie in an arbitrary cell

    # Midpoints ascend, so that one comparison tells whether there is another to make.
    def compare(_: int, index: Array) -> Array:
        return index + (v > padded[index]).astype(dtype)

    def one() -> Array:
        return compare(0, below[cell(v)])

    def several() -> Array:
        return lax.fori_loop(0, most, compare, below[cell(v)])

    return lax.cond(most <= 1, one, several)  # the first is one loop over memory
