"""Lookup in tables of a few values, and the nearest entry of each value."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from nnopt_jax.tree.devices import is_explicit

BINARY = (-1.0, 1.0)
"""Signs."""

TERNARY = (-1.0, 0.0, 1.0)
"""Signs and zero."""

E2M1 = (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""4-bit floats with 2 bits of exponent and 1 of mantissa; OCP Microscaling Formats 1.0, 5.3."""

NF4 = (
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
)
"""4-bit NormalFloats, quantiles of the normal distribution; Dettmers et al. 2023, appendix E. The
numbers are the shortest decimals of float32; `tests/ops/test_lookup_tables.py` derives them.
"""


def nearest_level(v: ArrayLike, levels: Sequence[float]) -> Array:
    r"""Return the index of the nearest fixed level for each value.

    $$ c = \arg\min_k |v - l_k| $$

    The midpoints of neighboring levels decide, by comparisons only. A value halfway between two
    levels gets the one of smaller magnitude or, for opposite signs, the positive one.

    Args:
        v: float array of any shape; infinities get the first or the last level. It gets no
            gradient.
        levels: the levels, ascending.

    Returns:
        Indices into the levels, held in float32 so that they can be refined; NaN where `v` is
        NaN, so that a broken weight is not hidden.

    Example:
        >>> import numpy as np
        >>> print(nearest_level(np.array([-0.4, 0.25, 0.3, 9.0]), (-1.0, 0.0, 0.5, 1.0)))
        [1. 1. 2. 3.]
    """
    return _nearest_level(jnp.asarray(v), tuple(map(float, levels)))


@functools.partial(jax.jit, static_argnums=1)
def _nearest_level(v: Array, levels: Sequence[float]) -> Array:
    v = lax.stop_gradient(v).astype(jnp.float32)
    code = jnp.zeros(v.shape, jnp.float32)
    table = np.asarray(levels, np.float32).astype(np.float64)
    for middle in ((table[:-1] + table[1:]) / 2).astype(np.float32):
        above = v > middle if middle > 0 else v >= middle
        code += above.astype(jnp.float32)
    return jnp.where(jnp.isnan(v), v, code)


def level_values(codes: ArrayLike, levels: Sequence[float]) -> Array:
    """Look up levels by index.

    Args:
        codes: indices into the levels, in any integer or float dtype; indices out of range get the
            first or the last level, and NaN stays NaN.
        levels: any numbers.

    Returns:
        float32 levels, of the shape of the codes.

    Example:
        >>> import numpy as np
        >>> print(level_values(np.array([2, 0, 1]), (-1.0, 0.0, 1.0)))
        [ 1. -1.  0.]
    """
    return _level_values(jnp.asarray(codes), tuple(map(float, levels)))


@functools.partial(jax.jit, static_argnums=1)
def _level_values(codes: Array, levels: Sequence[float]) -> Array:
    if len(levels) <= 4:  # for few levels, selecting is faster than a lookup
        values = jnp.full(codes.shape, levels[0], jnp.float32)
        for k, level in enumerate(levels[1:], 1):
            values = jnp.where(codes >= k, jnp.float32(level), values)
    else:
        values = lookup(jnp.asarray(levels, jnp.float32), codes.astype(jnp.int32))
    if jnp.issubdtype(codes.dtype, jnp.floating):
        values = jnp.where(jnp.isnan(codes), jnp.float32(jnp.nan), values)
    return values


def lookup(table: Array, indices: Array) -> Array:
    """Return `table[indices]`, sharded like the indices on meshes with Explicit axes.

    Args:
        table: `(entries,)`, replicated on all devices.
        indices: integers of any shape; indices out of range get the first or the last entry.

    Returns:
        An array of the shape of the indices and the dtype of the table.

    Example:
        >>> import jax.numpy as jnp
        >>> lookup(jnp.array([0.5, 2.0]), jnp.array([[1, 0], [9, 1]]))
        Array([[2. , 0.5],
               [2. , 2. ]], dtype=float32)
    """
    if not is_explicit(indices):
        return jnp.take(table, indices, mode="clip")
    sharding = jax.typeof(indices).sharding
    return table.at[jnp.maximum(indices, 0)].get(mode="clip", out_sharding=sharding)


_COMPARED = 32  # up to this number of entries, comparing with every midpoint is fastest
_CELLS = 1 << 16


def assign(values: ArrayLike, table: ArrayLike) -> Array:
    """Return the index of the nearest entry of a table for each value.

    The index is `argmin_c |values - table[c]|`, decided in float32 at the midpoints of neighbors;
    ties go to the lower index. The result is exact for any table.

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
    middles = t[:-1] / 2 + t[1:] / 2  # halve first, because sums may overflow
    if t.size > _COMPARED:
        return _nearest_by_lookup(v, middles, dtype)
    index = jnp.zeros(v.shape, dtype)
    for i in range(t.size - 1):
        index += (v > middles[i]).astype(dtype)
    return index


def _nearest_by_lookup(v: Array, middles: Array, dtype: DTypeLike) -> Array:
    """Return the index of the nearest entry: look it up in a uniform grid, then compare once.

    The neighbors of a cell are searched with it, so that rounding does not matter. If a cell then
    has more than one midpoint, which an outlier in the table can cause, binary search is used.
    """
    # Halve first, because differences of the largest floats overflow.
    start, stop = middles[0] / 2, middles[-1] / 2
    scale = jnp.where(stop > start, (_CELLS - 4) / (stop - start), 1.0)

    def cell(x: Array) -> Array:
        return jnp.clip((x / 2 - start) * scale, -1, _CELLS - 3).astype(jnp.int32) + 2

    cells, numbers = cell(middles), jnp.arange(_CELLS)
    below = jnp.searchsorted(cells, numbers - 1)
    most = jnp.max(jnp.searchsorted(cells, numbers + 1, side="right") - below)
    following = jnp.append(middles, jnp.inf)[below]
    v = jnp.where(jnp.isnan(v), -jnp.inf, v)  # the cell of a NaN is arbitrary

    def grid() -> Array:
        at = cell(v)
        return below.astype(dtype)[at] + (v > following[at]).astype(dtype)

    def search() -> Array:
        return jnp.searchsorted(middles, v, method="scan_unrolled").astype(dtype)

    return lax.cond(most <= 1, grid, search)
