"""What of an array is not a finite number."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def nonfinite(x: Any) -> str:
    """Says what of an array is not a finite number: empty where all is.

    An infinite scalar passes: a running minimum begins with one.

    Args:
        x: NumPy or JAX array of any dtype, or a number; anything else passes.

    Returns:
        "" or a phrase such as "holds 3 NaN and 1 infinite of 6".

    Example:
        >>> import numpy as np
        >>> from nnopt_jax.interop.finite import nonfinite
        >>> nonfinite(np.array([1.0, np.nan])), nonfinite(np.float32(np.inf))
        ('holds 1 NaN and 0 infinite of 2', '')
    """
    x = np.asarray(x) if isinstance(x, float | complex) else x
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, np.inexact):
        return ""
    whole = isinstance(x, jax.Array) and not x.is_fully_addressable
    values, xp = (x, jnp) if whole else (np.asarray(x), np)
    if not jnp.issubdtype(x.dtype, np.complexfloating) and x.dtype.itemsize == 1:
        values = values.astype(np.float32)
    nan, finite = int(xp.isnan(values).sum()), int(xp.isfinite(values).sum())
    infinite = values.size - finite - nan
    if nan or (infinite and values.ndim):
        return f"holds {nan} NaN and {infinite} infinite of {values.size}"
    return ""
