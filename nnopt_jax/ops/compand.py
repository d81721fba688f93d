"""A cheap monotone map that is fine at the center and coarse in the tails."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

_ONE = 0x3F800000  # the bits of 1.0
_LARGEST = 0x7F7FFFFF  # the bits of the largest float
_OCTAVE = 2.0**23  # the bits from one power of two to the next


def compand(y: Array) -> Array:
    """Maps numbers to a scale that is linear up to 2 and logarithmic beyond.

    `sign(y) * g(|y|)` with `g(a) = a` up to 1, and above it 1 plus the distance of the float bits
    of `a` from those of 1, an octave being 1. The slope is 1 up to 2, then 1/2, 1/4, ...

    Args:
        y: float32, any shape; infinities allowed.

    Returns:
        float32 within 129 of 0; strictly monotone in `y`, up to rounding.

    Example:
        >>> import numpy as np
        >>> print(compand(np.array([-0.5, 1.5, 2.0, 3.0, 4.0], np.float32)))
        [-0.5  1.5  2.   2.5  3. ]
    """
    size = jnp.abs(y)
    octaves = (lax.bitcast_convert_type(size, jnp.int32) - _ONE).astype(jnp.float32) / _OCTAVE
    mapped = jnp.where(size < 1, size, 1 + octaves)
    return jnp.where(y < 0, -mapped, mapped)


def uncompand(u: Array) -> Array:
    """Inverts `compand`, up to rounding.

    Args:
        u: float32 within 129 of 0.

    Returns:
        float32.

    Example:
        >>> import numpy as np
        >>> print(uncompand(np.array([-0.5, 1.5, 2.5, 3.0], np.float32)))
        [-0.5  1.5  3.   4. ]
    """
    size = jnp.abs(u)
    bits = _ONE + (jnp.maximum(size - 1, 0) * _OCTAVE).astype(jnp.int32)
    bits = jnp.minimum(bits, _LARGEST)
    mapped = jnp.where(size < 1, size, lax.bitcast_convert_type(bits, jnp.float32))
    return jnp.where(u < 0, -mapped, mapped)
