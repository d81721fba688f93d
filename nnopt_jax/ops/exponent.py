"""The power of two that brings an array near 1."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.typing import Array, ArrayLike


def exponent(x: ArrayLike, axis: int | tuple[int, ...] | None = None) -> Array:
    r"""The power of two above the greatest magnitude; it passes no gradient.

    .. math:: e = \lfloor \log_2 \max |x| \rfloor + 1

    `jnp.ldexp(x, -e)` lies within -1 and 1 and is `x` to the last bit: its squares neither overflow
    nor vanish.

    Args:
        x: float array.
        axis: what the maximum is taken over; default: all.

    Returns:
        int32, with size 1 along those axes; 0 where all is zero.

    Example:
        >>> import numpy as np
        >>> exponent(np.float32([3e20, -1e30])), np.log2(1e30).round(1)
        (Array([100], dtype=int32), np.float64(99.7))
    """
    size = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis, keepdims=True, initial=0.0)
    return jnp.frexp(size)[1]
