"""Products of integer weights with int8 activations, or with floats that are split into int8."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.products.contraction import Contraction
from nnopt_jax.arrays.products.dispatch import use_int8
from nnopt_jax.arrays.products.product import Product, dense_product, differentiated_as
from nnopt_jax.typing import Array, Shape

if TYPE_CHECKING:
    from nnopt_jax.arrays.integer_quantized import Quantized


class IntegerWeight(NamedTuple):
    """An integer weight `scale * (codes - zero)`.

    Args:
        codes: int8, of the shape of the weight.
        scale: an array of the weight's rank.
        zero: integers of the shape of the scale; None for a symmetric grid.
    """

    codes: Array
    scale: Array
    zero: Array | None = None


def under_mask(grid: IntegerWeight | None, mask: Array) -> IntegerWeight | None:
    """Set masked codes to the zero point; return None if groups have zero points of their own.

    Example:
        >>> import jax.numpy as jnp
        >>> grid = IntegerWeight(jnp.array([[3, 2]], jnp.int8), jnp.array([[0.5]]))
        >>> print(under_mask(grid, jnp.array([[True, False]])).codes)
        [[3 0]]
    """
    if grid is None:
        return None
    if grid.zero is None:
        return grid._replace(codes=jnp.where(mask, grid.codes, jnp.int8(0)))
    if any(n not in (1, size) for n, size in zip(grid.zero.shape, mask.shape, strict=True)):
        return None
    zero = jnp.broadcast_to(grid.zero.astype(jnp.int8), mask.shape)
    return grid._replace(codes=jnp.where(mask, grid.codes, zero))


def product_sizes(shape: Shape, x_shape: Shape, how: Contraction) -> tuple[int, int, int]:
    """Return the numbers of rows, contracted entries and outputs for each batch index."""
    inner = math.prod(shape[axis] for axis in how.right)
    outer = math.prod(shape[axis] for axis in how.free(len(shape)))
    rows = math.prod(x_shape[axis] for axis in how.left_free(len(x_shape)))
    return rows, inner, outer


def in_rows(x: Array, how: Contraction) -> Array:
    """Reshape an array to the axes (batch..., rows, contracted)."""
    free = how.left_free(x.ndim)
    batch = [x.shape[axis] for axis in how.left_batch]
    rows = math.prod(x.shape[axis] for axis in free)
    inner = math.prod(x.shape[axis] for axis in how.left)
    return x.transpose((*how.left_batch, *free, *how.left)).reshape(*batch, rows, inner)


def integer_product(rows: Array, codes: Array, how: Contraction, lies: Shape) -> Array:
    """Multiply int8 rows by int8 codes; return int32 with the axes (batch..., rows, outputs).

    Rows, outputs and contracted entries are flattened to one axis each, because compilers have fast
    kernels for this form from two rows on. Codes are read in their order in memory if possible, and
    otherwise transposed so that contracted entries come last.

    Args:
        rows: the result of `in_rows`.
        codes: the codes, of the shape of the weight.
        how: the contraction.
        lies: the axes of the weight in their order in memory.
    """
    count, own, inner = len(how.right_batch), rows.shape[-2], rows.shape[-1]
    free = how.free(codes.ndim)
    batch = [codes.shape[axis] for axis in how.right_batch]
    outer = math.prod(codes.shape[axis] for axis in free)
    if as_it_lies := lies == (*how.right_batch, *how.right, *free):
        codes = codes.transpose(lies).reshape(*batch, inner, outer)
    else:
        codes = codes.transpose((*how.right_batch, *free, *how.right)).reshape(*batch, outer, inner)
    if own == 1:
        rows = lax.pad(rows, jnp.int8(0), [(0, 0, 0)] * count + [(0, 1, 0), (0, 0, 0)])
    along = tuple(range(count))
    axes = ((count + 1,), (count if as_it_lies else count + 1,)), (along, along)
    out = lax.dot_general(rows, codes, axes, preferred_element_type=jnp.int32)
    return lax.slice_in_dim(out, 0, own, axis=count)


def weighed(
    summed: Array, totals: Array | None, grid: IntegerWeight, x_shape: Shape, how: Contraction
) -> Array:
    r"""Apply scale and zero point to summed codes: `s_j (sum_i a_ri q_ij - z_j sum_i a_ri)`.

    Args:
        summed: float32 or int32, `sum_i a_ri q_ij`, with the axes (batch..., rows, outputs).
        totals: `sum_i a_ri` with the same axes and one output; None without zero points.
        grid: the weight.
        x_shape: the shape of the array.
        how: the contraction.
    """
    shape = grid.codes.shape
    rows = [x_shape[axis] for axis in how.left_free(len(x_shape))]
    outer = [shape[axis] for axis in how.free(len(shape))]
    batch = summed.shape[: len(how.right_batch)]
    out = summed.reshape(*batch, *rows, *outer)
    if grid.zero is not None and totals is not None:
        totals = totals.reshape(*batch, *rows, *(1 for _ in outer))
        out = out - totals * how.over_weight(grid.zero.astype(out.dtype), shape, out.ndim)
    return out.astype(jnp.float32) * how.over_weight(grid.scale, shape, out.ndim)


BITS = 7
"""The bits of each part of a split, sign included; the highest part may have 8."""


def split_int8_product(x: Array, weight: Quantized, how: Product) -> Array | None:
    r"""Multiply floats, split into integers, by integer codes; return None if that is slower.

    $$ x_{ri} \approx s_r \sum_p 2^{7p} a_{pri}, \qquad
       x \cdot W = s_r s_j \sum_p 2^{7p} \sum_i a_{pri} q_{ij} $$

    Three integers represent 22 bits of an entry, about the precision of a sum in float32; two
    suffice for 16-bit floats. They become rows of one int8 product, which reads the weight once, at
    one byte for each entry. A row that contains NaN or infinity results in NaN.
    """
    if not isinstance(how, Contraction) or not weight.fits_int8:
        return None
    grids = (weight.scale,) if weight.zero is None else (weight.scale, weight.zero)
    if any(grid.shape[axis] != 1 for grid in grids for axis in how.right):
        return None
    rows, inner, outer = product_sizes(weight.shape, x.shape, how)
    if not x.size or inner * 2**15 >= 2**31 or not use_int8(rows, inner, outer, split=True):
        return None
    return differentiated_as(dense_product, _split_product, how, x, weight)


def _split_product(how: Contraction, x: Array, weight: Quantized) -> Array:
    grid = weight.integers()  # Inside of `jit`, a transpose can cancel against that of the codes.
    assert grid is not None
    count = 3 if jnp.dtype(x.dtype).itemsize > 2 else 2
    flat = in_rows(x, how).astype(jnp.float32)
    scale = _steps(flat, 127 * 2 ** (BITS * (count - 1)))
    codes = jnp.round(flat / scale).astype(jnp.int32)
    parts = jnp.concatenate(_split(codes, count), axis=-2)
    summed = _sum_parts(integer_product(parts, grid.codes, how, weight.order_in_memory()), count)
    totals = None
    if grid.zero is not None:
        totals = _sum_parts(parts.sum(-1, keepdims=True, dtype=jnp.int32), count) * scale
    out = weighed(summed * scale, totals, grid, x.shape, how)
    return out.astype(how.dtype(x))


def _steps(rows: Array, most: int) -> Array:
    """Return the quantization step of each row that maps its largest entry to `most`.

    The function uses few primitives, because it is traced for each shape that a model multiplies.
    """
    largest = jnp.abs(rows).max(-1, keepdims=True)
    step = jnp.maximum(largest / most, jnp.finfo(jnp.float32).tiny)
    return jnp.where(jnp.isfinite(largest), step, jnp.nan)


def _split(codes: Array, count: int) -> list[Array]:
    """Split codes into int8 parts, the lowest first: `codes = sum_p 2^(7 p) part_p`."""
    parts, half = [], 2 ** (BITS - 1)
    for _ in range(count - 1):
        low = ((codes + half) & (2**BITS - 1)) - half
        parts.append(low.astype(jnp.int8))
        codes = (codes - low) >> BITS
    return [*parts, codes.astype(jnp.int8)]


def _sum_parts(parts: Array, count: int) -> Array:
    """Sum the products of int8 parts, each a block of rows: `sum_p 2^(7 p) product_p`."""
    rows = parts.shape[-2] // count
    total = jnp.float32(0)
    for at in range(count):
        part = lax.slice_in_dim(parts, at * rows, (at + 1) * rows, axis=parts.ndim - 2)
        total = total + part.astype(jnp.float32) * jnp.float32(2.0 ** (BITS * at))
    return total
