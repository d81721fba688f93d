"""Products with sparse weights by the lists of what each output takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.gathered import Gathered, GatheredBlocks
from nnopt_jax.trace.packed.rules.contraction import Contraction, Dense
from nnopt_jax.trace.packed.rules.integers import dense_product, differentiated_as, in_rows
from nnopt_jax.typing import Array

UNROLLED = 8
"""Places of the lists that are summed before the sum is written: it is in memory an eighth as
often, which makes products of 32 rows five times as fast."""


def gathered(x: Array, weight: Gathered, how: Contraction) -> Array:
    r"""`(x W)_j = sum_k x_{a_kj} v_kj`, a place of all lists at a time.

    Raises:
        Dense: other axes are summed over.
    """
    return _product(x, weight, how, _by_places)


def gathered_blocks(x: Array, weight: GatheredBlocks, how: Contraction) -> Array:
    r"""`(x W)_[j] = sum_k v_jk x_[a_jk]`: all outputs at once, or block by block.

    At once what is gathered lies in memory for all blocks of outputs. That pays where it is less
    than the weight, which is where there are fewer rows than outputs in a block.

    Raises:
        Dense: other axes are summed over.
    """
    return _product(x, weight, how, _by_blocks)


def _by_places(how: Contraction, x: Array, weight: Gathered) -> Array:
    columns, dtype = _columns(x, weight, how)

    def add(total: Array, place: tuple[Array, Array]) -> tuple[Array, None]:
        index, value = place
        taken = columns.at[index].get(mode="promise_in_bounds")
        return total + taken * value.astype(dtype)[:, None], None

    nothing = jnp.zeros((weight.shape[1], columns.shape[1]), dtype)
    found, _ = lax.scan(add, nothing, (weight.indices, weight.values), unroll=UNROLLED)
    return _in_its_axes(found, x, how)


def _by_blocks(how: Contraction, x: Array, weight: GatheredBlocks) -> Array:
    count, wide, longest, tall = weight.values.shape
    columns, dtype = _columns(x, weight, how)
    rows = columns.shape[1]
    blocks = columns.reshape(-1, tall, rows)
    values = weight.values.astype(dtype).reshape(count, wide, longest * tall)
    precision = dict(how.settings).get("precision")

    def one(block: tuple[Array, Array]) -> Array:
        index, value = block
        taken = blocks.at[index].get(mode="promise_in_bounds")
        return jnp.matmul(value, taken.reshape(-1, rows), precision=precision)

    if rows >= wide:
        found = lax.map(one, (weight.indices, values))
    else:
        taken = blocks.at[weight.indices].get(mode="promise_in_bounds")
        taken = taken.reshape(count, longest * tall, rows)
        found = jnp.matmul(values, taken, precision=precision)
    return _in_its_axes(found.reshape(count * wide, rows), x, how)


def _columns(x: Array, weight: Gathered | GatheredBlocks, how: Contraction) -> tuple[Array, Any]:
    """What is summed over first, rows last, in the dtype of the sums."""
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, weight.dtype), jnp.float32)
    return in_rows(x, how).T.astype(dtype), dtype


def _in_its_axes(found: Array, x: Array, how: Contraction) -> Array:
    """What was found, outputs first, in the axes of the product."""
    free = [x.shape[axis] for axis in how.left_free(x.ndim)]
    return found.T.reshape(*free, found.shape[0]).astype(how.dtype(x))


def _product(x: Array, weight: Any, how: Contraction, exact: Callable[..., Array]) -> Array:
    """What `exact` gives.

    Slopes are those of the dense product: that with regard to the array is one with the transposed
    weight, which the lists do not tell.
    """
    if tuple(how.right) != (0,):
        raise Dense("it is laid out for sums over its first axis")
    if not x.size:
        raise Dense("nothing is multiplied")
    return differentiated_as(dense_product, exact, how, x, weight)
