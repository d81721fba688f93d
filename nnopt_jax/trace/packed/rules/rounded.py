"""Products whose rows are rounded first: as integers where that is faster, else as floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.base import Field, show
from nnopt_jax.arrays.input_quantized import InputQuantized
from nnopt_jax.ops.grid import dequantize, fit_grid, integer_range, quantize
from nnopt_jax.ops.straight_through import gate, straight_through
from nnopt_jax.trace.packed.rules.contraction import Contraction, Dense
from nnopt_jax.trace.packed.rules.integers import (
    differentiated_as,
    in_rows,
    integer_product,
    integers,
    order_in_memory,
    sizes,
    weighed,
)
from nnopt_jax.trace.packed.rules.pays import integers_pay
from nnopt_jax.typing import Array


class Rows(NamedTuple):
    """An array on the grids of its rows.

    Args:
        codes: integers held in float32, NaN where the array has it.
        scale: one entry along the axes that are summed over.
    """

    codes: Array
    scale: Array


def rows_of(x: Array, weight: InputQuantized, how: Contraction) -> Rows:
    """The codes of what a weight is multiplied with, on the grids that the weight tells."""
    low, high = integer_range(weight.input_bits)
    x = lax.stop_gradient(x)
    if weight.scale is None:
        block = tuple(max(n, 1) if axis in how.left else 1 for axis, n in enumerate(x.shape))
        scale, _ = fit_grid(x, weight.input_bits, block)
    else:
        scale = _of_rows(show(weight.scale), x.ndim, how)
    return Rows(quantize(x, scale, None, low, high), scale)


def _of_rows(scale: Array, ndim: int, how: Contraction) -> Array:
    """The scale of a weight, an entry for each index that goes along, at the array's rank.

    Where a stack is summed over, or its layers are outputs, one grid has to do for all of them.
    """
    others = tuple(axis for axis in range(scale.ndim) if axis not in how.right_batch)
    batch = scale.max(others)  # in the order of the weight's axes
    own = sorted(how.right_batch)
    left = [how.left_batch[how.right_batch.index(axis)] for axis in own]
    batch = batch.transpose(sorted(range(len(own)), key=left.__getitem__))
    return lax.expand_dims(batch, [axis for axis in range(ndim) if axis not in how.left_batch])


def rounded(x: Array, weight: InputQuantized, how: Contraction) -> Array:
    """What a weight is multiplied with, rounded as the weight says; straight through for gradients.

    Magnitudes beyond a static range get none.
    """
    codes, scale = rows_of(x, weight, how)
    shown = dequantize(codes, scale, None, x.dtype)
    if weight.scale is None:
        return straight_through(shown, x)
    _, high = integer_range(weight.input_bits)
    size = jnp.abs(lax.stop_gradient(x).astype(jnp.float32))
    return straight_through(shown, gate(x, size * (1 / scale) <= high))


def below(
    weight: InputQuantized, dense: Callable[[Array], Array], packed: Callable[[Field], Array]
) -> Array:
    """The product of what is rounded already with the weight below.

    Args:
        weight: the weight.
        dense: multiplies with an array.
        packed: multiplies with an array or a node.

    Raises:
        Dense: `packed` does; the product, of what is rounded, comes instead.
    """
    if weight.shown is not None:
        return dense(weight.shown)
    try:
        return packed(weight.values)
    except Dense as reason:
        raise Dense(str(reason), dense(weight.materialize())) from reason


def rounded_product(x: Array, weight: InputQuantized, how: Contraction) -> Array | None:
    """The product of the codes, in 32-bit integers; None where it has no codes or does not pay.

    `sum_i s_r a_ri s_j (q_ij - z_j) = s_r s_j (sum_i a_ri q_ij - z_j sum_i a_ri)`. Gradients are
    those of the product of what the codes stand for.
    """
    rows, inner, outer = sizes(weight.shape, x.shape, how)
    most = 2 ** (weight.input_bits - 1) * 256 * inner
    if most >= 2**31 or not integers_pay(rows, inner, outer):
        return None
    grid = jax.eval_shape(integers, weight.values)
    if grid is None or any(grid.scale.shape[axis] != 1 for axis in how.right):
        return None
    return differentiated_as(_floats, _exact, how, x, weight)


def _floats(how: Contraction, x: Array, weight: InputQuantized) -> Array:
    return how(rounded(x, weight, how), weight.materialize())


def _exact(how: Contraction, x: Array, weight: InputQuantized) -> Array:
    grid = integers(weight.values)  # in here: where codes lie turned, it is turned back at once
    assert grid is not None
    codes, scale = rows_of(x, weight, how)
    known = ~jnp.isnan(codes).any(how.left, keepdims=True)
    codes = in_rows(codes.astype(jnp.int8), how)
    summed = integer_product(codes, grid.codes, how, order_in_memory(weight.values))
    totals = None if grid.zero is None else codes.sum(-1, keepdims=True, dtype=jnp.int32)
    out = weighed(summed, totals, grid, x.shape, how)
    out = out * how.over_rows(jnp.where(known, scale, jnp.nan), out.ndim)
    return out.astype(how.dtype(x))
