"""Integer codes as machines read them fastest: what a product sums over lies last."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from nnopt_jax.arrays.base import Field, is_node, show
from nnopt_jax.arrays.bits import Bits
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where, resolve


def lay_out(packed: Any, where: Where | None = None) -> Any:
    """Lets integer codes of kernels `(in, out)` lie as `(out, in)` in memory.

    Products of integers read what they sum over in one run, so that they need no other order when
    it lies so: they are up to three times as fast. Shapes, values and what is stored beside the
    codes stay. Do it once, before serving; a lookup of rows (an embedding) is slower afterwards.

    Args:
        packed: parameters in storage form, as `tx.pack` or `nnopt.load` gives them.
        where: which leaves; default: codes of two axes or more, of one scale or one for each
            entry of the last axis.

    Returns:
        The parameters; leaves without such codes are what they were.

    Raises:
        SelectionError: `where` matches no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx, params = nnopt.quantization.uniform(8), {"kernel": jnp.ones((4, 2))}
        >>> packed = tx.pack(params, tx.init(params))
        >>> print(nnopt.arrays.lay_out(packed)["kernel"].codes)
        Reshaped(base int8[2,4], 8 bits/weight)
    """
    leaves = flatten(packed, is_node)
    chosen = leaves if where is None else resolve(where, leaves, "arrays.lay_out")
    return unflatten(packed, leaves | {path: _laid_out(leaves[path]) for path in chosen}, is_node)


def _laid_out(field: Field) -> Field:
    if not is_node(field):
        return field
    if not isinstance(field, Quantized):
        inner = {name: _laid_out(part) for name, part in field.fields() if name in field.SLOTS}
        return field.replace(**inner)
    codes = field.codes
    known = isinstance(codes, Bits) or (not is_node(codes) and codes.dtype in (jnp.int8, jnp.uint8))
    if not known or field.ndim < 2 or any(n != 1 for n in field.scale.shape[:-1]):
        return field
    order = (*range(field.ndim - 2), field.ndim - 1, field.ndim - 2)
    turned = show(codes).transpose(order)
    if isinstance(codes, Bits):
        turned = Bits.of(turned, codes.width, codes.low)
    return field.replace(codes=Reshaped.of(turned, order))
