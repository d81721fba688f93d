"""Running sums and extremes of long vectors, in two short loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

_ROWS = 256
_T = TypeVar("_T")


def running(op: Callable[[_T, _T], _T], x: _T, unit: Any) -> _T:
    """Combines each element with all before it.

    `out[i] = x[0] op x[1] op ... op x[i]`. Rows of the vector advance side by side, then row after
    row. `jax.lax.associative_scan` gives the same, but unrolls a level for each halving and takes
    seconds to compile.

    Args:
        op: associative, elementwise.
        x: vector, or pytree of vectors, of a size that 256 divides.
        unit: scalar, or pytree of scalars, that `op` leaves alone.

    Returns:
        As `x`.

    Example:
        >>> import jax.numpy as jnp
        >>> print(running(jnp.maximum, jnp.arange(256.0) % 7, -jnp.inf)[:9])
        [0. 1. 2. 3. 4. 5. 6. 6. 6.]
    """

    def along(total: _T, column: _T) -> tuple[_T, _T]:
        total = op(total, column)
        return total, total

    def down(total: _T, row: _T) -> tuple[_T, _T]:
        return op(total, row), total

    units = jax.tree.map(lambda u, v: jnp.full((_ROWS,), u, v.dtype), unit, x)
    columns = jax.tree.map(lambda v: v.reshape(_ROWS, -1).T, x)
    totals, inner = lax.scan(along, units, columns)
    _, before = lax.scan(down, jax.tree.map(lambda u: u[0], units), totals)
    out = op(jax.tree.map(lambda b: b[None], before), inner)
    return jax.tree.map(lambda v: v.T.ravel(), out)


def running_sum(x: Array) -> tuple[Array, Array]:
    """Sums all before each point in pairs of floats, whose differences lose nothing.

    Args:
        x: float32 vector of a size that 256 divides.

    Returns:
        `(high, low)`, each one longer than `x`: `high + low` is the sum of the elements before, to
        some 48 bits.

    Example:
        >>> import jax.numpy as jnp
        >>> high, low = running_sum(jnp.ones(256).at[0].set(1e9))
        >>> print((high[3] - high[1]) + (low[3] - low[1]))
        2.0

    Source: Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B.
    """

    def add(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        total = a[0] + b[0]
        part = total - a[0]
        error = (a[0] - (total - part)) + (b[0] - part)
        return total, error + (a[1] + b[1])

    sums = running(add, (x, jnp.zeros_like(x)), (0.0, 0.0))  # pyright: ignore
    return tuple(jnp.append(jnp.zeros(1, x.dtype), part) for part in sums)  # pyright: ignore
