"""Products whose rows are rounded first: as integers where that is faster, else as floats."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from nnopt_jax.arrays.base import Field, is_node, show
from nnopt_jax.arrays.codebook import Codebook
from nnopt_jax.arrays.input_quantized import InputQuantized
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.arrays.sparse import Sparse
from nnopt_jax.ops.grid import dequantize, fit_grid, integer_range, quantize
from nnopt_jax.ops.straight_through import gate, straight_through
from nnopt_jax.trace.packed.rules.contraction import Contraction
from nnopt_jax.trace.packed.rules.pays import integers_pay
from nnopt_jax.typing import Array


class Rows(NamedTuple):
    """An array on the grids of its rows.

    Args:
        codes: integers held in float32, NaN where the array has it.
        scale: one entry along the axes that are summed over.
        shown: what the codes stand for; gradients reach the array straight through.
    """

    codes: Array
    scale: Array
    shown: Array


def round_rows(x: Array, weight: InputQuantized, how: Contraction) -> Rows:
    """Rounds what a weight is multiplied with, as the weight says."""
    low, high = integer_range(weight.input_bits)
    fixed = lax.stop_gradient(x)
    if weight.scale is None:
        block = tuple(n if axis in how.left else 1 for axis, n in enumerate(x.shape))
        scale, _ = fit_grid(fixed, weight.input_bits, block)
        passing = x
    else:
        scale = _of_rows(show(weight.scale), x.ndim, how)
        passing = gate(x, jnp.abs(fixed.astype(jnp.float32)) * (1 / scale) <= high)
    codes = quantize(fixed, scale, None, low, high)
    return Rows(codes, scale, straight_through(dequantize(codes, scale, None, x.dtype), passing))


def _of_rows(scale: Array, ndim: int, how: Contraction) -> Array:
    """The scale of a weight, an entry for each index that goes along, at the array's rank."""
    order = (*how.right_batch, *(i for i in range(scale.ndim) if i not in how.right_batch))
    batch = scale.transpose(order).reshape([scale.shape[axis] for axis in how.right_batch])
    along = sorted(range(len(how.left_batch)), key=lambda i: how.left_batch[i])
    batch = batch.transpose(along)
    others = [axis for axis in range(ndim) if axis not in how.left_batch]
    return lax.expand_dims(batch, others)


def rounded_product(rows: Rows, weight: InputQuantized, how: Contraction) -> Array | None:
    """The product of the codes, in 32-bit integers; None where it has no codes or does not pay.

    `sum_i s_r a_ri s_j q_ij = s_r s_j sum_i a_ri q_ij`. Gradients are those of the product of what
    the codes stand for.
    """
    grid = integers(weight.values)
    if grid is None or any(grid.scale.shape[axis] != 1 for axis in how.right):
        return None
    laid_out = _order(weight.ndim, how) == tuple(range(weight.ndim))
    inner = math.prod(weight.shape[axis] for axis in how.right)
    batch = math.prod(weight.shape[axis] for axis in how.right_batch)
    outer = math.prod(weight.shape) // max(inner * batch, 1)
    count = math.prod(rows.codes.shape) // max(inner * batch, 1)
    if not integers_pay(count, inner, outer, laid_out=laid_out):
        return None
    known = ~jnp.isnan(rows.codes).any(how.left, keepdims=True)
    scale = jnp.where(known, rows.scale, jnp.nan)
    summed = integer_product(rows.codes.astype(jnp.int8), grid.codes, how)
    out = summed.astype(jnp.float32) * how.over_rows(scale, summed.ndim)
    out = out * how.over_weight(grid.scale, weight.shape, summed.ndim)
    out = out.astype(how.settings.get("preferred_element_type") or rows.shown.dtype)
    arrays = jax.tree.leaves((rows.shown, weight))
    if not any(isinstance(x, Tracer) for x in arrays):  # then nobody asks for gradients
        return out
    return straight_through(lax.stop_gradient(out), how(rows.shown, weight.materialize()))


class Integers(NamedTuple):
    """A weight on a symmetric grid.

    Args:
        codes: int8, of the shape of the weight.
        scale: of its rank.
    """

    codes: Array
    scale: Array


def integers(field: Field) -> Integers | None:
    """Codes of eight bits or fewer, and their scale, of a symmetric grid below masks and tables."""
    if isinstance(field, Sparse):
        field = Masked(*field.expanded())
    if isinstance(field, Masked):
        below = integers(field.values)
        if below is None:
            return None
        return below._replace(codes=jnp.where(show(field.mask).astype(bool), below.codes, 0))
    if isinstance(field, Codebook):
        table = integers(field.table) if is_node(field.table) else None
        if table is None or table.scale.size != 1:
            return None
        codes = jnp.take(table.codes, show(field.indices), axis=0)
        return Integers(codes, table.scale.reshape((1,) * field.ndim))
    if not isinstance(field, Quantized) or field.zero is not None:
        return None
    if not -128 <= field.low <= field.high <= 127:
        return None
    return Integers(show(field.codes).astype(jnp.int8), show(field.scale))


def _order(ndim: int, how: Contraction) -> tuple[int, ...]:
    """The axes of a weight as integer products read them: what is summed over lies last."""
    return (*how.right_batch, *how.free(ndim), *how.right)


def integer_product(x: Array, codes: Array, how: Contraction) -> Array:
    """The product of two arrays of int8, in int32: axes that go along, of rows, of the weight.

    What is summed over lies last on both sides and is one axis, as do the rows: compilers know
    that form. They know it from two rows on.
    """
    free, left_free = how.free(codes.ndim), how.left_free(x.ndim)
    codes = codes.transpose(_order(codes.ndim, how))
    x = x.transpose((*how.left_batch, *left_free, *how.left))
    count = len(how.right_batch)
    batch, outer = codes.shape[:count], codes.shape[count : count + len(free)]
    rows = x.shape[count : count + len(left_free)]
    x = x.reshape(*batch, math.prod(rows), -1)
    codes = codes.reshape(*batch, math.prod(outer), -1)
    if x.shape[-2] == 1:
        x = lax.pad(x, jnp.int8(0), [(0, 0, 0)] * count + [(0, 1, 0), (0, 0, 0)])
    along = tuple(range(count))
    axes = ((count + 1,), (count + 1,)), (along, along)
    out = lax.dot_general(x, codes, axes, preferred_element_type=jnp.int32)
    out = lax.slice_in_dim(out, 0, math.prod(rows), axis=count)
    return out.reshape(*batch, *rows, *outer)
