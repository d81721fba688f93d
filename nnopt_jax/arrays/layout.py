"""Weights as machines read them fastest: what a product sums over lies last."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from nnopt_jax.arrays.base import Field, is_node, show
from nnopt_jax.arrays.bits import Bits
from nnopt_jax.arrays.factored import Factored
from nnopt_jax.arrays.input_quantized import InputQuantized
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.arrays.sum_ import Sum
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where, resolve
from nnopt_jax.typing import Array


def lay_out(packed: Any, where: Where | None = None) -> Any:
    """Lets kernels `(in, out)` lie as `(out, in)` in memory: integer codes, factors, arrays.

    Products read what they sum over in one run, and need no other order when it lies so: they are
    up to three times as fast. Shapes and values stay, as does what is stored beside the codes. Do
    it once, before serving; a lookup of rows (an embedding) is slower afterwards.

    Args:
        packed: parameters in storage form, as `tx.pack` or `nnopt.load` gives them.
        where: which leaves, plain arrays of floats included; default: all leaves that are packed.
            Of codes those are turned that have two axes or more, and one scale or one for each
            entry of the last axis.

    Returns:
        The parameters; leaves that have nothing to turn are what they were.

    Raises:
        SelectionError: `where` matches no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx, params = nnopt.quantization.uniform(8), {"kernel": jnp.ones((4, 2))}
        >>> packed = tx.pack(params, tx.init(params))
        >>> nnopt.arrays.lay_out(packed)["kernel"].codes
        Reshaped(base int8[2,4], 8 bits/weight)
    """
    leaves = flatten(packed, is_node)
    packed_ones = [path for path, leaf in leaves.items() if is_node(leaf)]
    chosen = packed_ones if where is None else resolve(where, leaves, "arrays.lay_out")
    return unflatten(packed, leaves | {path: _laid_out(leaves[path]) for path in chosen}, is_node)


def _laid_out(field: Field) -> Field:
    if not is_node(field):
        floating = jnp.issubdtype(field.dtype, jnp.floating) and field.ndim >= 2
        return _turned(field) if floating else field
    if isinstance(field, Quantized):
        return _codes_laid_out(field)
    if isinstance(field, Factored):
        return field.replace(u=_laid_out(field.u), v=_laid_out(field.v))
    if isinstance(field, Sum):
        return field.replace(base=_laid_out(field.base), delta=_laid_out(field.delta))
    if isinstance(field, InputQuantized):
        return field.replace(values=_laid_out(field.values))
    return field


def _codes_laid_out(field: Quantized) -> Quantized:
    codes = field.codes
    known = isinstance(codes, Bits) or (not is_node(codes) and codes.dtype.itemsize == 1)
    if not known or field.ndim < 2 or any(n != 1 for n in field.scale.shape[:-1]):
        return field
    if not isinstance(codes, Bits):
        return field.replace(codes=_turned(codes))
    bits = Bits.of(_swapped(show(codes)), codes.width, codes.low)
    return field.replace(codes=Reshaped.of(bits, _order(field.ndim)))


def _turned(x: Array) -> Reshaped:
    return Reshaped.of(_swapped(x), _order(x.ndim))


def _swapped(x: Array) -> Array:
    return x.transpose(_order(x.ndim))


def _order(ndim: int) -> tuple[int, ...]:
    """Of axes, the last two swapped."""
    return (*range(ndim - 2), ndim - 1, ndim - 2)
