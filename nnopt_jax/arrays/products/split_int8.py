"""Split-int8 products: float activations, split into several int8, with integer weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.products.contraction import Contraction
from nnopt_jax.arrays.products.dispatch import use_split_int8
from nnopt_jax.arrays.products.int8_product import (
    in_rows,
    integer_product,
    product_sizes,
    weighed,
)
from nnopt_jax.arrays.products.product import Product
from nnopt_jax.arrays.products.product_derivatives import dense_product, differentiated_as
from nnopt_jax.typing import Array

if TYPE_CHECKING:
    from nnopt_jax.arrays.quantized import Quantized

BITS = 7
"""The bits, including the sign, of each integer of the split but the highest."""


def split_int8_product(x: Array, weight: Quantized, how: Product) -> Array | None:
    r"""Multiply float activations, split into integers, with integer codes; None if not faster.

    .. math:: x_{ri} \approx s_r \sum_p 2^{7p} a_{pri}, \qquad
        x \cdot W = s_r s_j \sum_p 2^{7p} \sum_i a_{pri} q_{ij}

    Three integers hold 22 bits of an entry, about the precision of a sum in float32; for 16-bit
    floats two are enough. They are rows of one int8 product, which reads the weight once, at a
    byte an entry. A row that contains NaN or infinity results in NaN.
    """
    if not isinstance(how, Contraction) or not weight.fits_int8:
        return None
    grids = (weight.scale,) if weight.zero is None else (weight.scale, weight.zero)
    if any(grid.shape[axis] != 1 for grid in grids for axis in how.right):
        return None
    rows, inner, outer = product_sizes(weight.shape, x.shape, how)
    if not x.size or inner * 2**15 >= 2**31 or not use_split_int8(rows, inner, outer):
        return None
    return differentiated_as(dense_product, _exact, how, x, weight)


def _exact(how: Contraction, x: Array, weight: Quantized) -> Array:
    grid = weight.integers()  # inside of jit, where a transpose of the codes can cancel
    assert grid is not None
    count = 3 if jnp.dtype(x.dtype).itemsize > 2 else 2
    flat = in_rows(x, how).astype(jnp.float32)
    scale = _steps(flat, 127 * 2 ** (BITS * (count - 1)))
    codes = jnp.round(flat / scale).astype(jnp.int32)
    parts = jnp.concatenate(_split(codes, count), axis=-2)
    summed = _joined(integer_product(parts, grid.codes, how, weight.order_in_memory()), count)
    totals = None
    if grid.zero is not None:
        totals = _joined(parts.sum(-1, keepdims=True, dtype=jnp.int32), count) * scale
    out = weighed(summed * scale, totals, grid, x.shape, how)
    return out.astype(how.dtype(x))


def _steps(rows: Array, most: int) -> Array:
    """Return the step of each row that makes its largest entry `most`; NaN if not finite.

    It uses few primitives, since it is traced for each shape that a model multiplies.
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


def _joined(parts: Array, count: int) -> Array:
    """Sum the results of the parts, which are blocks of rows, the lowest part first."""
    rows = parts.shape[-2] // count
    total = jnp.float32(0)
    for at in range(count):
        part = lax.slice_in_dim(parts, at * rows, (at + 1) * rows, axis=parts.ndim - 2)
        total = total + part.astype(jnp.float32) * jnp.float32(2.0 ** (BITS * at))
    return total
