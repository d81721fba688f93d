"""Prepacking: converting packed parameters to the fastest forms for products on a machine."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.hooks import inputs_above, map_fields
from nnopt_jax.arrays.nodes import Field, is_node, materialize
from nnopt_jax.arrays.reshaped import transposed_in_memory
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where, resolve

__all__ = ["prepack"]


def prepack(
    packed: Any, backend: str | None = None, where: Where | None = None, *, dense: bool = False
) -> Any:
    """Convert kernels `(in, out)` once, before serving, to the fastest forms for products.

    Integer codes, factors and arrays become `(out, in)` in memory, so that the terms of a sum are
    adjacent: products are up to three times as fast. Sparse kernels become ELL (padded rows), `ELL`
    or `BlockELL`, if that is smaller than the array: at 90 % zeros a product is 10 to 70 times as
    fast as one that densifies the kernel in each call, at 7 to 8 bits a weight. Shapes and values
    stay the same. A lookup of rows (an embedding) is slower afterwards. A product that contracts
    the last axis of ELL densifies it. The hook `prepack` of each node decides its form.

    Args:
        packed: parameters in storage form, as `tx.pack` or `nnopt.load` gives them.
        backend: JAX's platform that will run the products, such as `"cpu"`; None for the default.
        where: which leaves, plain float arrays included; by default all packed leaves. Codes are
            converted if they have two or more axes, and scales that are constant along the last
            axis but one. Sparse leaves become ELL if they have two axes; under `jax.jit` they
            cannot, because masks are unknown.
        dense: whether to materialize, once, the leaves that each call would materialize: tables
            (`Codebook`), masked weights, and sparse ones for which ELL is slower than the array
            according to `nnopt_jax.arrays.products.dispatch`. A call that densifies a sparse kernel
            takes 8 to 50 times as long as the product with the array. False by default, because
            arrays take 32 bits a weight, the memory that was saved.

    Returns:
        The parameters; leaves without a faster form are the same objects.

    Raises:
        SelectionError: `where` matches no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx, params = nnopt.quantization.uniform(8), {"kernel": jnp.ones((4, 2))}
        >>> packed = tx.pack(params, tx.init(params))
        >>> nnopt.prepack(packed)["kernel"].codes
        Reshaped(base int8[2,4], 8 bits/weight)
        >>> tx, params = nnopt.pruning.magnitude(0.75), {"kernel": jnp.eye(4)}
        >>> nnopt.prepack(tx.pack(params, tx.init(params)))
        {'kernel': ELL(indices int32[1,4], values float32[1,4], 16 bits/weight)}
    """
    leaves = flatten(packed, is_node)
    nodes = [path for path, leaf in leaves.items() if is_node(leaf)]
    chosen = nodes if where is None else resolve(where, leaves, "prepack")
    backend = backend or jax.default_backend()
    converted = {path: _prepack_leaf(leaves[path], backend, dense) for path in chosen}
    return unflatten(packed, leaves | converted, is_node)


def _prepack_leaf(field: Field, backend: str, dense: bool) -> Field:
    if not is_node(field):
        is_matrix = jnp.issubdtype(field.dtype, jnp.floating) and field.ndim >= 2
        return transposed_in_memory(field) if is_matrix else field
    field = inputs_above(field)
    if field.FACTORS:
        return map_fields(field, field.FACTORS, lambda part: _prepack_leaf(part, backend, dense))
    if dense and not field.multiplies(backend):
        array = materialize(field)
        return transposed_in_memory(array) if array.ndim == 2 else array
    return field.prepack(backend)
