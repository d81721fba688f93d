"""Rounding to the nearest of a few fixed levels."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from nnopt_jax.ops.lookup import lookup

BINARY = (-1.0, 1.0)
"""Signs."""

TERNARY = (-1.0, 0.0, 1.0)
"""Signs and zero."""

E2M1 = (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Floats of 4 bits: two of exponent, one of mantissa; OCP Microscaling Formats 1.0, section 5.3."""

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
"""Normal floats of 4 bits: quantiles of the normal distribution; Dettmers et al. 2023, appendix E.

Shortest decimals of float32; `tests/ops/test_levels.py` derives them.
"""


def nearest_level(v: ArrayLike, levels: Sequence[float]) -> Array:
    r"""Finds the nearest of a few fixed levels for each value.

    .. math:: c = \arg\min_k |v - l_k|

    Decided at the midpoints of neighbors, by comparisons only. Between two levels, the one of
    smaller magnitude is taken; between two of opposite signs, the positive one.

    Args:
        v: float array, any shape; infinities take the last level of their side. No gradient.
        levels: ascending.

    Returns:
        Indices into the levels, held in float32 so that they can be refined; NaN where `v` is
        NaN, so that a broken weight is not hidden.

    Example:
        >>> import numpy as np
        >>> print(nearest_level(np.array([-0.4, 0.25, 0.3, 9.0]), (-1.0, 0.0, 0.5, 1.0)))
        [1. 1. 2. 3.]
    """
    return _nearest(jnp.asarray(v), tuple(map(float, levels)))


@functools.partial(jax.jit, static_argnums=1)
def _nearest(v: Array, levels: Sequence[float]) -> Array:
    v = lax.stop_gradient(v).astype(jnp.float32)
    code = jnp.zeros(v.shape, jnp.float32)
    table = np.asarray(levels, np.float32).astype(np.float64)
    for middle in ((table[:-1] + table[1:]) / 2).astype(np.float32):
        above = v > middle if middle > 0 else v >= middle
        code += above.astype(jnp.float32)
    return jnp.where(jnp.isnan(v), v, code)


def level_values(codes: ArrayLike, levels: Sequence[float]) -> Array:
    """Looks levels up.

    Args:
        codes: indices into the levels, in any integer or float dtype that holds them; those out
            of range take the first or the last, NaN stays NaN.
        levels: any numbers.

    Returns:
        float32 levels, of the shape of the codes.

    Example:
        >>> import numpy as np
        >>> print(level_values(np.array([2, 0, 1]), (-1.0, 0.0, 1.0)))
        [ 1. -1.  0.]
    """
    return _values(jnp.asarray(codes), tuple(map(float, levels)))


@functools.partial(jax.jit, static_argnums=1)
def _values(codes: Array, levels: Sequence[float]) -> Array:
    if len(levels) <= 4:  # choosing is faster than looking up
        values = jnp.full(codes.shape, levels[0], jnp.float32)
        for k, level in enumerate(levels[1:], 1):
            values = jnp.where(codes >= k, jnp.float32(level), values)
    else:
        values = lookup(jnp.asarray(levels, jnp.float32), codes.astype(jnp.int32))
    if jnp.issubdtype(codes.dtype, jnp.floating):
        values = jnp.where(jnp.isnan(codes), jnp.float32(jnp.nan), values)
    return values
