"""How many entries a share leaves: one count, from numbers and from tracers."""

from __future__ import annotations

import numbers
from typing import Any

import jax.numpy as jnp
import numpy as np

_ONE = 1 << 30  # shares are read as whole numbers of this part, which float32 holds exactly
_HALF, _LIMB = _ONE >> 1, 15


def kept(size: int, share: Any) -> Any:
    r"""How many of `size` entries are kept where a share of them goes.

    .. math:: n - \mathrm{round}(n\, s)

    In whole numbers, so that eager and compiled code, which round floats differently, agree: what
    storage has room for is what a mask keeps. The share counts as float32; of two counts equally
    near, the even one.

    Args:
        size: `n`, less than `2**31`.
        share: `s`, from 0 to 1: a Python number or a scalar array; NaN counts as 0.

    Returns:
        A Python int where the share is a Python number, else int32.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.ops.kept import kept
        >>> kept(10, 0.75), int(kept(10, jnp.float32(0.75)))
        (2, 2)
    """
    if isinstance(share, numbers.Real):
        parts = int(np.rint(np.float32(share) * np.float32(_ONE)))
        gone, rest = divmod(size * parts, _ONE)
        return size - gone - (rest > _HALF or (rest == _HALF and (size - gone) % 2))
    share = jnp.nan_to_num(jnp.asarray(share, jnp.float32), nan=0.0)
    parts = jnp.round(share * jnp.float32(_ONE)).astype(jnp.uint32)
    gone, rest = _divided(size, parts)
    left = jnp.uint32(size) - gone
    up = (rest > _HALF) | ((rest == _HALF) & (left % 2 == 1))
    return (left - up).astype(jnp.int32)


def _divided(size: int, parts: Any) -> tuple[Any, Any]:
    """`size * parts` over `2**30` and the rest, of 61 bits, in words of 32."""
    low, high = jnp.uint32(size & 0xFFFF), jnp.uint32(size >> 16)
    below, above = parts & ((1 << _LIMB) - 1), parts >> _LIMB
    least = low * below
    # In units of 2**15; the sum stays below 2**32, as sizes are below 2**31.
    middle = 2 * (high * below) + low * above + (least >> _LIMB)
    rest = ((middle & ((1 << _LIMB) - 1)) << _LIMB) + (least & ((1 << _LIMB) - 1))
    return 2 * (high * above) + (middle >> _LIMB), rest
