"""Numbers of bits that the arrays of a tree need, regardless of backend padding."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp


def dtype_bits(dtype: Any) -> int:
    """Return the bits of an element, such as 4 for int4, 8 for bool and 0 for float0.

    Unlike `.nbytes`, which counts a whole byte for an int4 element on some backends, this does not
    depend on the backend.

    Args:
        dtype: anything that JAX accepts as a dtype, including PRNG key dtypes.

    Returns:
        The bits of one element.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.tree.bit_counts import dtype_bits
        >>> dtype_bits(jnp.int4), dtype_bits(jnp.bfloat16), dtype_bits(jnp.bool_)
        (4, 16, 8)
    """
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        key = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype))
        return 32 * math.prod(key.shape)
    dtype = jnp.dtype(dtype)
    if dtype == jax.dtypes.float0:
        return 0
    if dtype == jnp.bool_ or dtype.kind == "c":
        return 8 * dtype.itemsize
    info = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    return int(info(dtype).bits)


def tree_bits(tree: Any) -> int:
    """Return the bits of all arrays in a tree: codes, scales, tables, indices and masks.

    Args:
        tree: any pytree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
        The sum of `size * dtype_bits(dtype)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.tree.bit_counts import tree_bits
        >>> tree_bits({"w": jnp.ones((4, 2)), "mask": jnp.ones(8, bool)})
        320
    """
    return sum(
        math.prod(leaf.shape) * dtype_bits(leaf.dtype)
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "dtype")
    )
