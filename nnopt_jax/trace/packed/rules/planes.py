"""Products of float activations with integer weights, in planes of integers."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.trace.packed.rules.contraction import Contraction
from nnopt_jax.trace.packed.rules.integers import (
    dense_product,
    differentiated_as,
    fits_int8,
    in_rows,
    integer_product,
    integers,
    order_in_memory,
    sizes,
    weighed,
)
from nnopt_jax.trace.packed.rules.pays import planes_pay
from nnopt_jax.typing import Array

BITS = 7
"""Of a plane, whose sign is its own."""


def planes_product(x: Array, weight: Quantized, how: Contraction) -> Array | None:
    r"""A product in which only activations are turned into integers; None where it does not pay.

    .. math:: x_{ri} \approx s_r \sum_p 2^{7p} a_{pri}, \qquad
        x \cdot W = s_r s_j \sum_p 2^{7p} \sum_i a_{pri} q_{ij}

    Three planes hold 22 bits of a row, which is what a sum of float32 leaves of it; of floats of
    16 bits two planes are enough. They are rows of one product of int8, which reads the weight
    once, at a byte an entry. A row that holds NaN or infinity gives NaN.
    """
    rows, inner, outer = sizes(weight.shape, x.shape, how)
    if not x.size or inner * 2**15 >= 2**31:
        return None
    if not fits_int8(weight) or not planes_pay(rows, inner, outer):
        return None
    return differentiated_as(dense_product, _exact, how, x, weight)


def _exact(how: Contraction, x: Array, weight: Quantized) -> Array:
    grid = integers(weight)  # in here: where codes lie turned, it is turned back at once
    assert grid is not None
    count = 3 if jnp.dtype(x.dtype).itemsize > 2 else 2
    flat = in_rows(x, how).astype(jnp.float32)
    scale = _steps(flat, 127 * 2 ** (BITS * (count - 1)))
    codes = jnp.round(flat / scale).astype(jnp.int32)
    planes = jnp.concatenate(_split(codes, count), axis=-2)
    summed = _joined(integer_product(planes, grid.codes, how, order_in_memory(weight)), count)
    totals = None
    if grid.zero is not None:
        totals = _joined(planes.sum(-1, keepdims=True, dtype=jnp.int32), count) * scale
    out = weighed(summed * scale, totals, grid, x.shape, how)
    return out.astype(how.dtype(x))


def _steps(rows: Array, most: int) -> Array:
    """Of each row the step by which its largest entry is `most`; NaN where an entry is not finite.

    In a few primitives: this is traced for each shape that a model multiplies.
    """
    largest = jnp.abs(rows).max(-1, keepdims=True)
    step = jnp.maximum(largest / most, jnp.finfo(jnp.float32).tiny)
    return jnp.where(jnp.isfinite(largest), step, jnp.nan)


def _split(codes: Array, count: int) -> list[Array]:
    """Planes of int8, the lowest first: `codes = sum_p 2^(7 p) plane_p`."""
    planes, half = [], 2 ** (BITS - 1)
    for _ in range(count - 1):
        low = ((codes + half) & (2**BITS - 1)) - half
        planes.append(low.astype(jnp.int8))
        codes = (codes - low) >> BITS
    return [*planes, codes.astype(jnp.int8)]


def _joined(parts: Array, count: int) -> Array:
    """The sum of what the planes gave, which are rows of it, the lowest first."""
    rows = parts.shape[-2] // count
    total = jnp.float32(0)
    for at in range(count):
        part = lax.slice_in_dim(parts, at * rows, (at + 1) * rows, axis=parts.ndim - 2)
        total = total + part.astype(jnp.float32) * jnp.float32(2.0 ** (BITS * at))
    return total
