"""Products of int8 activations with integer weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.products.contraction import Contraction
from nnopt_jax.typing import Array, Shape


class Integers(NamedTuple):
    """An integer weight `scale * (codes - zero)`.

    Args:
        codes: int8, of the shape of the weight.
        scale: an array of the weight's rank.
        zero: integers of the shape of the scale; None for a symmetric grid.
    """

    codes: Array
    scale: Array
    zero: Array | None = None


def under_mask(grid: Integers | None, mask: Array) -> Integers | None:
    """Return codes of zero where a mask is false; None if the grid has no such code.

    Example:
        >>> import jax.numpy as jnp
        >>> grid = Integers(jnp.array([[3, 2]], jnp.int8), jnp.array([[0.5]]))
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
    """Multiply int8 rows with int8 codes; return int32 with the axes (batch..., rows, outputs).

    Rows, outputs and contracted entries are one axis each: compilers have fast kernels for this
    form from two rows on. Codes are read in their order in memory, or else transposed such that
    contracted entries come last.

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
    summed: Array, totals: Array | None, grid: Integers, x_shape: Shape, how: Contraction
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
