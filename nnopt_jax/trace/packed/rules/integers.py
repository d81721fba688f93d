"""Weights as integers, and products of integers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from nnopt_jax.arrays.base import Field, is_node, show
from nnopt_jax.arrays.codebook import Codebook
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.arrays.sparse import Sparse
from nnopt_jax.trace.packed.rules.contraction import Contraction
from nnopt_jax.typing import Array


class Integers(NamedTuple):
    """A weight `scale * (codes - zero)`.

    Args:
        codes: int8, of the shape of the weight.
        scale: of its rank.
        zero: integers of the shape of the scale; None for a symmetric grid.
    """

    codes: Array
    scale: Array
    zero: Array | None = None


def integers(field: Field) -> Integers | None:
    """Codes of eight bits or fewer and their grid, below masks and tables; None where are none.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Masked, Quantized
        >>> grid = Quantized(jnp.array([[3.0, 2.0]]), jnp.array([[0.5]]))
        >>> print(integers(Masked(grid, jnp.array([[True, False]]))).codes)
        [[3 0]]
    """
    if isinstance(field, Sparse):
        field = Masked(*field.expanded())
    if isinstance(field, Masked):
        below = integers(field.values)
        return None if below is None else _masked(below, show(field.mask).astype(bool))
    if isinstance(field, Codebook):
        return _of_table(field)
    if not isinstance(field, Quantized) or not fits_int8(field):
        return None
    zero = None if field.zero is None else show(field.zero)
    return Integers(show(field.codes).astype(jnp.int8), show(field.scale), zero)


def fits_int8(grid: Quantized) -> bool:
    """Whether all codes of a grid are of eight bits or fewer."""
    return -128 <= grid.low <= grid.high <= 127


def _masked(grid: Integers, mask: Array) -> Integers | None:
    """Codes of zero where the mask has none, which is the zero point."""
    if grid.zero is None:
        return grid._replace(codes=jnp.where(mask, grid.codes, jnp.int8(0)))
    if any(n not in (1, size) for n, size in zip(grid.zero.shape, mask.shape, strict=True)):
        return None
    zero = jnp.broadcast_to(grid.zero.astype(jnp.int8), mask.shape)
    return grid._replace(codes=jnp.where(mask, grid.codes, zero))


def _of_table(field: Codebook) -> Integers | None:
    table = integers(field.table) if is_node(field.table) else None
    if table is None or table.scale.size != 1 or field.table.ndim > 1:
        return None
    codes = jnp.take(table.codes, show(field.indices).astype(jnp.int32), axis=0)
    one = (1,) * field.ndim
    zero = None if table.zero is None else table.zero.reshape(one)
    return Integers(codes, table.scale.reshape(one), zero)


def order_in_memory(field: Field) -> tuple[int, ...]:
    """The axes of a weight in the order in which its codes lie."""
    codes = field.codes if isinstance(field, Quantized) else None
    if isinstance(codes, Reshaped) and codes.axes and len(codes.axes) == codes.ndim:
        return tuple(sorted(range(codes.ndim), key=codes.axes.__getitem__))
    return tuple(range(field.ndim))


def wanted_order(ndim: int, how: Contraction) -> tuple[int, ...]:
    """The axes of a weight as integer products read them: what is summed over lies last."""
    return (*how.right_batch, *how.free(ndim), *how.right)


def sizes(shape: tuple[int, ...], x_shape: tuple[int, ...], how: Contraction) -> tuple[int, ...]:
    """How many rows, entries that are summed over, and outputs there are, per index of a batch."""
    inner = math.prod(shape[axis] for axis in how.right)
    outer = math.prod(shape[axis] for axis in how.free(len(shape)))
    rows = math.prod(x_shape[axis] for axis in how.left_free(len(x_shape)))
    return rows, inner, outer


def in_rows(x: Array, how: Contraction) -> Array:
    """An array with axes (that go along..., rows, summed over)."""
    free = how.left_free(x.ndim)
    batch = [x.shape[axis] for axis in how.left_batch]
    rows = math.prod(x.shape[axis] for axis in free)
    inner = math.prod(x.shape[axis] for axis in how.left)
    return x.transpose((*how.left_batch, *free, *how.left)).reshape(*batch, rows, inner)


def integer_product(rows: Array, codes: Array, how: Contraction, lies: tuple[int, ...]) -> Array:
    """The product of int8, in int32: axes that go along, of rows, of outputs.

    What is summed over is one axis on both sides, as are rows and outputs: compilers know that
    form, from two rows on. Codes are read as they lie, or else turned such that what is summed over
    lies last.

    Args:
        rows: as `in_rows` gives them.
        codes: of the shape of the weight.
        how: the contraction.
        lies: the axes of the weight as they lie in memory.
    """
    count, own, inner = len(how.right_batch), rows.shape[-2], rows.shape[-1]
    free = how.free(codes.ndim)
    batch = [codes.shape[axis] for axis in how.right_batch]
    outer = math.prod(codes.shape[axis] for axis in free)
    if as_it_lies := lies == (*how.right_batch, *how.right, *free):
        codes = codes.transpose(lies).reshape(*batch, inner, outer)
    else:
        codes = codes.transpose(wanted_order(codes.ndim, how)).reshape(*batch, outer, inner)
    if own == 1:
        rows = lax.pad(rows, jnp.int8(0), [(0, 0, 0)] * count + [(0, 1, 0), (0, 0, 0)])
    along = tuple(range(count))
    axes = ((count + 1,), (count if as_it_lies else count + 1,)), (along, along)
    out = lax.dot_general(rows, codes, axes, preferred_element_type=jnp.int32)
    return lax.slice_in_dim(out, 0, own, axis=count)


def weighed(
    summed: Array, totals: Array | None, grid: Integers, x_shape: tuple[int, ...], how: Contraction
) -> Array:
    r"""`s_j (sum_i a_ri q_ij - z_j sum_i a_ri)` of what was summed, in the axes of the product.

    Args:
        summed: float32 or int32, `sum_i a_ri q_ij`: axes that go along, of rows, of outputs.
        totals: `sum_i a_ri`, likewise, of one output; None where there are no zero points.
        grid: the weight.
        x_shape: of the array.
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


def dense_product(how: Contraction, x: Array, weight: Any, *_: Any) -> Array:
    """The product with a node as an array."""
    return how(x, weight.materialize())


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def differentiated_as(
    floats: Callable[..., Array], exact: Callable[..., Array], how: Any, *given: Any
) -> Array:
    """`exact(how, *given)`, with the derivatives of `floats`, not computed without need.

    Compiled, so that what a model multiplies many times alike is traced once: both functions are
    to be the same objects in each call.

    Args:
        floats: a function that has the derivatives.
        exact: one of the same arguments and, rounding apart, of the same values.
        how: hashable, their first argument.
        *given: pytrees of arrays.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> floats, exact = lambda how, x: how * x, lambda how, x: jnp.round(how * x)
        >>> print(jax.grad(lambda x: differentiated_as(floats, exact, 2, x))(0.3))
        2.0
    """

    @jax.custom_jvp
    def product(*given: Any) -> Array:
        return exact(how, *given)

    @functools.partial(product.defjvp, symbolic_zeros=True)
    def _slope(given: Any, slopes: Any) -> tuple[Array, Array]:
        arrays, tree = jax.tree.flatten(given)
        known = tree.flatten_up_to(slopes)
        moving = [at for at, slope in enumerate(known) if _is_some(slope)]

        def of_moving(*new: Array) -> Array:
            filled = dict(enumerate(arrays)) | dict(zip(moving, new, strict=True))
            return floats(how, *jax.tree.unflatten(tree, list(filled.values())))

        primals, tangents = [arrays[at] for at in moving], [known[at] for at in moving]
        return product(*given), jax.jvp(of_moving, primals, tangents)[1]

    return product(*given)


def _is_some(slope: Any) -> bool:
    return not isinstance(slope, SymbolicZero) and slope.dtype != jax.dtypes.float0
