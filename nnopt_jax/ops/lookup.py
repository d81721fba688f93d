"""Entries of a table by index."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.tree.explicit import is_explicit
from nnopt_jax.typing import Array


def lookup(table: Array, indices: Array) -> Array:
    """`table[indices]`; over Explicit axes of a mesh the outcome lies as the indices do.

    Args:
        table: `(entries,)`, on all devices whole.
        indices: integers of any shape; those out of range take the first or the last entry.

    Returns:
        Of the shape of the indices and the dtype of the table.

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
