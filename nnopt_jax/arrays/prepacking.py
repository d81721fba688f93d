"""Weights as machines read them fastest."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from nnopt_jax.arrays.adapted import Normalized, Sum
from nnopt_jax.arrays.codebooks import Codebook, SoftCodebook
from nnopt_jax.arrays.ell import ELL, BlockELL, longest_list
from nnopt_jax.arrays.factored import Factored
from nnopt_jax.arrays.hooks import inputs_above
from nnopt_jax.arrays.input_quantized import InputQuantized
from nnopt_jax.arrays.integer_quantized import Quantized
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.nodes import Field, is_node, show
from nnopt_jax.arrays.packed_integers import Bits
from nnopt_jax.arrays.pattern_layouts import BSR
from nnopt_jax.arrays.products.dispatch import prefer_lists
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.arrays.soft_thresholded import SoftThresholded
from nnopt_jax.arrays.sparse_array import Sparse
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where, resolve
from nnopt_jax.typing import Array


def lay_out(packed: Any, where: Where | None = None, *, dense: bool = False) -> Any:
    """Lets kernels `(in, out)` lie as products read them: once, before serving.

    Integer codes, factors and arrays lie as `(out, in)` in memory: products read what they sum
    over in one run, and need no other order when it lies so. They are up to three times as fast.
    Sparse kernels become lists of what each output takes, `ELL` or `BlockELL`, where
    those are smaller than the array: at 90 % zeros a product is 10 to 70 times as fast as one that
    makes the kernel dense in each call, in 7 to 8 bits a weight. Shapes and values stay. A lookup
    of rows (an embedding) is slower afterwards. A product that sums over the last axis of lists
    makes them dense.

    Args:
        packed: parameters in storage form, as `tx.pack` or `nnopt.load` gives them.
        where: which leaves, plain arrays of floats included; default: all leaves that are packed.
            Of codes those are turned that have two axes or more, and no scales that differ along
            the last but one. Of sparse leaves those become lists that have two axes, outside
            of `jax.jit`, under which masks are unknown.
        dense: makes arrays, once, of leaves of which each call would make arrays: tables
            (`Codebook`), masked weights, and sparse ones whose lists the table in
            `nnopt_jax.arrays.products.dispatch` takes for slower than the array. A call that makes
            a sparse kernel dense takes 8 to 50 times as long as the product with the array. False,
            because arrays take the memory that was saved: 32 bits a weight.

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
        >>> tx, params = nnopt.pruning.magnitude(0.75), {"kernel": jnp.eye(4)}
        >>> nnopt.arrays.lay_out(tx.pack(params, tx.init(params)))
        {'kernel': ELL(indices int32[1,4], values float32[1,4], 16 bits/weight)}
    """
    leaves = flatten(packed, is_node)
    packed_ones = [path for path, leaf in leaves.items() if is_node(leaf)]
    chosen = packed_ones if where is None else resolve(where, leaves, "arrays.lay_out")
    laid_out = {path: _laid_out(leaves[path], dense) for path in chosen}
    return unflatten(packed, leaves | laid_out, is_node)


_WIDE = 8
"""Outputs of a block, at least: of narrower blocks the weights are listed one by one."""

_MADE_DENSE = Codebook | SoftCodebook | Masked | Normalized | SoftThresholded | Sparse
"""Nodes that no product multiplies as they are."""


def _laid_out(field: Field, dense: bool) -> Field:
    if not is_node(field):
        floating = jnp.issubdtype(field.dtype, jnp.floating) and field.ndim >= 2
        return _turned(field) if floating else field
    field = inputs_above(field)
    if isinstance(field, Quantized):
        return _codes_laid_out(field)
    if isinstance(field, Factored):
        return field.replace(u=_laid_out(field.u, dense), v=_laid_out(field.v, dense))
    if isinstance(field, Reshaped) and isinstance(field.base, Factored):
        return field.replace(base=_laid_out(field.base, dense))
    if isinstance(field, Sum):
        base, delta = _laid_out(field.base, dense), _laid_out(field.delta, dense)
        return field.replace(base=base, delta=delta)
    if isinstance(field, InputQuantized):
        return field.replace(values=_laid_out(field.values, dense))
    lists = _listed(field, dense) if isinstance(field, Sparse) else None
    if lists is not None:
        return lists
    return _whole(field) if dense and isinstance(field, _MADE_DENSE) else field


def _listed(field: Sparse, dense: bool) -> Field | None:
    """Return the ELL form of a sparse leaf; None where a dense array is faster or it has none."""
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(field))
    if traced or field.ndim != 2 or not jnp.issubdtype(field.dtype, jnp.floating):
        return None
    if not field.size:
        return None
    mask, sizes = np.asarray(show(field.support)).astype(bool), _sizes(field.support)
    part = longest_list(mask, sizes) * sizes[0] / field.shape[0]
    blocks = sizes != (1, 1)
    width = jnp.dtype(field.dtype).itemsize
    smaller = part * (width + 4 / math.prod(sizes)) < width
    if not (prefer_lists(field.size, part, blocks=blocks) if dense else smaller):
        return None
    shown = field.materialize()
    return BlockELL.of(shown, sizes, mask) if blocks else ELL.of(shown, mask)


def _sizes(support: Field) -> tuple[int, int]:
    """Sizes of the blocks of a mask; single weights where too few outputs lie together."""
    sizes = (1, 1, *support.sizes)[-2:] if isinstance(support, BSR) else (1, 1)
    return (sizes[0], sizes[1]) if sizes[1] >= _WIDE else (1, 1)


def _whole(field: Field) -> Field:
    shown = show(field)
    return _turned(shown) if shown.ndim == 2 else shown


def _codes_laid_out(field: Quantized) -> Quantized:
    codes = field.codes
    known = isinstance(codes, Bits) or (not is_node(codes) and codes.dtype.itemsize == 1)
    if not known or field.ndim < 2 or field.scale.shape[-2] != 1:
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
    """Return the order of axes with the last two swapped."""
    return (*range(ndim - 2), ndim - 1, ndim - 2)
