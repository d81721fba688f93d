"""The `dot_general` of an array with a packed weight."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.hooks import CannotStayPacked, Field, dot
from nnopt_jax.arrays.nodes import materialize
from nnopt_jax.arrays.products.product import Product
from nnopt_jax.arrays.scales import UnevenGroups
from nnopt_jax.ops.blockwise import fill_up
from nnopt_jax.typing import Array, Shape

if TYPE_CHECKING:
    from nnopt_jax.arrays.products.contraction import Contraction


@dataclasses.dataclass(frozen=True)
class Contraction(Product):
    """A `dot_general` of an array on the left with a weight on the right.

    Args:
        left: the contracted axes of the array.
        right: the contracted axes of the weight, in the same order.
        left_batch: the batch axes of the array.
        right_batch: the batch axes of the weight, in the same order.
        settings: the other arguments of `dot_general` by name, such as precision and dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> how = Contraction((1,), (0,), (), ())
        >>> how(jnp.ones((2, 3)), jnp.ones((3, 4))).shape
        (2, 4)
    """

    left: Shape
    right: Shape
    left_batch: Shape
    right_batch: Shape
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, x: Array, weight: Array) -> Array:
        """Return the product, with the axes (batch, free of the array, free of the weight)."""
        axes = (self.left, self.right), (self.left_batch, self.right_batch)
        return lax.dot_general(x, weight, axes, **dict(self.settings))

    def wide(self, x: Array, weight: Array) -> Array:
        """Return the product in float32, to be scaled and then rounded once."""
        settings = dict(self.settings) | {"preferred_element_type": jnp.float32}
        return dataclasses.replace(self, settings=tuple(settings.items()))(x, weight)

    def dtype(self, x: Array) -> Any:
        """Return the dtype of the product: `preferred_element_type` of the program, or of `x`."""
        return dict(self.settings).get("preferred_element_type") or x.dtype

    @property
    def inputs(self) -> Contraction:
        """The contraction itself, which already states the axes of the array."""
        return self

    def as_contraction(self) -> Contraction:
        """Return the contraction itself."""
        return self

    def scaled(self, x: Array, values: Array, scale: Array, field: Field) -> Array:
        """Multiply by `scale * values`, group by group if scales differ on contracted axes."""
        if any(scale.shape[axis] != 1 for axis in self.right):
            return grouped_product(x, values, scale, field, self)
        out = self.wide(x, values)
        return (out * self.over_weight(scale, values.shape, out.ndim)).astype(self.dtype(x))

    def scales_to_inputs(self, x: Array, scale: Array, shape: Shape) -> tuple[Array, Array]:
        """Apply scales that vary only on contracted axes to the inputs: `sum_i (x_i s_i) q_ij`."""
        if all(scale.shape[axis] == 1 for axis in self.right):
            return x, scale
        if any(n != 1 for axis, n in enumerate(scale.shape) if axis not in self.right):
            return x, scale
        wide = x.astype(jnp.float32) * self.over_inputs(scale, shape, x.ndim)
        return wide.astype(x.dtype), jnp.ones((1,) * len(shape), jnp.float32)

    def factored(self, x: Array, u: Field, v: Field) -> Array:
        """Multiply by two factors, the one with the contracted axis first: `x (u v) = (x u) v`."""
        last = u.ndim - 1
        lead = tuple(range(last - 1))
        if tuple(self.right_batch) != lead or len(self.right) != 1:
            raise CannotStayPacked("it is summed over both axes of its product, or over others")
        (axis,) = self.right
        first, second, rank = (u, v, last - 1) if axis == last - 1 else (v, u, last)
        inner = dot(x, first, self).astype(x.dtype)  # (lead, free of x, rank)
        then = Contraction((inner.ndim - 1,), (rank,), lead, lead, self.settings)
        return dot(inner, second, then)

    def free(self, ndim: int) -> Shape:
        """Return the free axes of a weight of this rank: neither contracted nor batch axes."""
        return _others(ndim, self.right, self.right_batch)

    def left_free(self, ndim: int) -> Shape:
        """Return the free axes of an array of this rank: neither contracted nor batch axes."""
        return _others(ndim, self.left, self.left_batch)

    def over_weight(self, grid: Array, shape: Sequence[int], ndim: int) -> Array:
        """Arrange factors of the weight so that they broadcast over the product.

        Args:
            grid: an array of the weight's rank. Batch and free axes have one entry, one for each
                group or one for each index; contracted axes have one entry.
            shape: the shape of the weight.
            ndim: the rank of the product.
        """
        free = self.free(len(shape))
        grid = _repeat(grid, [
            n if axis in (*self.right_batch, *free) and grid.shape[axis] != 1 else 1
            for axis, n in enumerate(shape)
        ])  # fmt: skip
        grid = grid.transpose((*self.right_batch, *free, *self.right))
        batch = grid.shape[: len(self.right_batch)]
        own = grid.shape[len(batch) : len(batch) + len(free)]
        return grid.reshape(*batch, *(1,) * (ndim - len(batch) - len(own)), *own)

    def over_inputs(self, grid: Array, shape: Sequence[int], ndim: int) -> Array:
        """Arrange factors of contracted axes so that they broadcast over the array.

        Args:
            grid: an array of the weight's rank, with one entry on axes that are not contracted.
            shape: the shape of the weight.
            ndim: the rank of the array.
        """
        grid = _repeat(grid, [n if axis in self.right else 1 for axis, n in enumerate(shape)])
        sizes = [grid.shape[axis] for axis in self.right]
        grid = grid.transpose((*self.right, *_others(len(shape), self.right))).reshape(sizes)
        order = sorted(range(len(sizes)), key=self.left.__getitem__)
        others = [axis for axis in range(ndim) if axis not in self.left]
        return lax.expand_dims(grid.transpose(order), others)

    def over_rows(self, grid: Array, ndim: int) -> Array:
        """Arrange factors of the array's free axes so that they broadcast over the product."""
        free = self.left_free(grid.ndim)
        grid = grid.transpose((*self.left_batch, *free, *self.left))
        kept = grid.shape[: len(self.left_batch) + len(free)]
        return grid.reshape(*kept, *(1,) * (ndim - len(kept)))


def _others(ndim: int, *gone: Shape) -> Shape:
    return tuple(axis for axis in range(ndim) if axis not in sum(gone, ()))


def _repeat(grid: Array, shape: Sequence[int]) -> Array:
    """Repeat the entry of each group for all elements of the group, on every axis."""
    for axis, size in enumerate(shape):
        if grid.shape[axis] not in (1, size):
            grid = jnp.repeat(grid, size // grid.shape[axis], axis)
    return grid


def grouped_product(x: Array, values: Array, scale: Array, field: Field, how: Contraction) -> Array:
    r"""Multiply group by group and sum: `sum_g s_gj sum_{i in g} x_i v_ij`.

    The products of all groups are in memory together, so this is used only for fewer rows than a
    group has entries; with more rows the dense weight is smaller.

    Args:
        x: the array.
        values: the values of the weight before scaling.
        scale: the scale, of the weight's rank, with several entries on contracted axes.
        field: the scale as the node holds it.
        how: the product.

    Raises:
        CannotStayPacked: there are too many rows, or every entry has its own scale.
    """
    if isinstance(field, UnevenGroups):
        x, values, scale = _equal_groups(x, values, field, how)
    split = [at for at, axis in enumerate(how.right) if scale.shape[axis] != 1]
    groups = math.prod(scale.shape[how.right[at]] for at in split)
    inner = math.prod(values.shape[axis] for axis in how.right)
    rows = math.prod(x.shape[i] for i in how.left_free(x.ndim))
    if groups == inner:
        raise CannotStayPacked("its scales differ along contracted axes")
    if rows * groups > inner:
        raise CannotStayPacked(
            "there are more rows than entries in a group, for which dense is cheaper"
        )
    for at in split:  # Groups become the leading batch axis.
        axis = how.right[at]
        count = scale.shape[axis]
        x, values = _split(x, how.left[at], count), _split(values, axis, count)
        scale, how = _split(scale, axis, count), _with_groups(how, at)
    out = how.wide(x, values)  # (groups, batch, free x, free w)
    out = out * how.over_weight(scale, values.shape, out.ndim)
    return out.sum(tuple(range(len(split)))).astype(how.dtype(x))


def _equal_groups(
    x: Array, values: Array, field: UnevenGroups, how: Contraction
) -> tuple[Array, Array, Array]:
    """Pad both operands with zeros so that the last group is as long as the others.

    Operands whose groups are on an axis that is not contracted are returned unchanged.
    """
    axis = values.ndim + field.axis
    if axis not in how.right or isinstance(field.values, UnevenGroups):
        return x, values, field.materialize()
    block = [1] * values.ndim
    block[axis] = field.group
    along = [1] * x.ndim
    along[how.left[how.right.index(axis)]] = field.group
    return fill_up(x, along), fill_up(values, block), materialize(field.values)


def _split(x: Array, axis: int, groups: int) -> Array:
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def _with_groups(how: Contraction, at: int) -> Contraction:
    """Return the contraction with a contracted axis split into groups, the first batch axis."""
    left, right = how.left[at], how.right[at]

    def moved(axes: Shape, split: int) -> Shape:
        return tuple(axis + (axis >= split) for axis in axes)

    return dataclasses.replace(
        how,
        left=moved(how.left, left),
        right=moved(how.right, right),
        left_batch=(left, *moved(how.left_batch, left)),
        right_batch=(right, *moved(how.right_batch, right)),
    )
