"""Rounding to the integers of a range."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nnopt_jax.ops.straight_through import gate, straight_through


def round_clip(v: ArrayLike, lo: ArrayLike, hi: ArrayLike) -> Array:
    """Rounds half to even, then clips; straight-through inside the range.

    Value `clip(round(v), lo, hi)`, never -0; tangent `dv` where `lo <= v <= hi`, else 0. The
    gradient of a plain clip would be 1/2 at both ends, where many codes lie.

    Args:
        v: float array, any shape; NaN stays NaN, so that a broken weight is not hidden.
        lo: least integer, a scalar or an array that broadcasts to `v`; no gradient.
        hi: greatest integer, likewise.

    Returns:
        Integers held in the dtype of `v`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> v = jnp.array([-9.0, -0.2, 2.5, 7.0])
        >>> print(round_clip(v, -7, 7))
        [-7.  0.  2.  7.]
        >>> print(jax.grad(lambda v: round_clip(v, -7, 7).sum())(v))
        [0. 1. 1. 1.]

    Source: Esser et al., https://arxiv.org/abs/1902.08153, section 2.1 (the same mask).
    """
    v = jnp.asarray(v)
    lo, hi = (jax.lax.stop_gradient(jnp.asarray(bound, v.dtype)) for bound in (lo, hi))
    code = jnp.clip(jnp.round(jax.lax.stop_gradient(v)), lo, hi)
    # Not `code + 0.0`, which compilers may drop.
    code = jnp.where(code == 0, jnp.zeros((), v.dtype), code)
    return straight_through(code, gate(v, (lo <= v) & (v <= hi)))
