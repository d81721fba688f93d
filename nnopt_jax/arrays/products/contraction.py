"""What a product with a weight sums over, and how what belongs to its operands lies in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.hooks import CannotStayPacked, Field, dot
from nnopt_jax.arrays.products.grouped_product import grouped_product
from nnopt_jax.arrays.products.product import Product
from nnopt_jax.typing import Array, Shape


@dataclasses.dataclass(frozen=True)
class Contraction(Product):
    """A `dot_general` of an array with a weight, the weight on the right.

    Args:
        left: axes of the array that are summed over.
        right: those of the weight, in the same order.
        left_batch: axes of the array that go along with axes of the weight.
        right_batch: those of the weight.
        settings: precision, dtype and what else `dot_general` takes, by name.

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
        """The product: axes that go along, those of the array, those of the weight."""
        axes = (self.left, self.right), (self.left_batch, self.right_batch)
        return lax.dot_general(x, weight, axes, **dict(self.settings))

    def wide(self, x: Array, weight: Array) -> Array:
        """The product in float32, to be scaled before it is rounded once."""
        settings = dict(self.settings) | {"preferred_element_type": jnp.float32}
        return dataclasses.replace(self, settings=tuple(settings.items()))(x, weight)

    def dtype(self, x: Array) -> Any:
        """That which the program asks for, else that of the array."""
        return dict(self.settings).get("preferred_element_type") or x.dtype

    @property
    def inputs(self) -> Contraction:
        """The product itself."""
        return self

    def as_contraction(self) -> Contraction:
        """The product itself."""
        return self

    def scaled(self, x: Array, values: Array, scale: Array, field: Field) -> Array:
        """Scales of outputs are applied in float32; those of groups, group by group."""
        if any(scale.shape[axis] != 1 for axis in self.right):
            return grouped_product(x, values, scale, field, self)
        out = self.wide(x, values)
        return (out * self.over_weight(scale, values.shape, out.ndim)).astype(self.dtype(x))

    def scales_to_inputs(self, x: Array, scale: Array, shape: Shape) -> tuple[Array, Array]:
        """Scales of what is summed over alone are those of the inputs: `sum_i (x_i s_i) q_ij`."""
        if all(scale.shape[axis] == 1 for axis in self.right):
            return x, scale
        if any(n != 1 for axis, n in enumerate(scale.shape) if axis not in self.right):
            return x, scale
        wide = x.astype(jnp.float32) * self.over_inputs(scale, shape, x.ndim)
        return wide.astype(x.dtype), jnp.ones((1,) * len(shape), jnp.float32)

    def factored(self, x: Array, u: Field, v: Field) -> Array:
        """`x (u v) = (x u) v`, the factor first that has the axis that is summed over."""
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
        """Return the axes of a weight of this rank that are in the product."""
        return _others(ndim, self.right, self.right_batch)

    def left_free(self, ndim: int) -> Shape:
        """Return the axes of an array of this rank that are in the product."""
        return _others(ndim, self.left, self.left_batch)

    def over_weight(self, grid: Array, shape: Sequence[int], ndim: int) -> Array:
        """Lays factors of a weight so that they broadcast over the product.

        Args:
            grid: of the weight's rank: one entry, one for each group or one for each index along
                axes that are in the product, one along those that are summed over.
            shape: of the weight.
            ndim: of the product.
        """
        free = self.free(len(shape))
        grid = _repeated(grid, [
            n if axis in (*self.right_batch, *free) and grid.shape[axis] != 1 else 1
            for axis, n in enumerate(shape)
        ])  # fmt: skip
        grid = grid.transpose((*self.right_batch, *free, *self.right))
        batch = grid.shape[: len(self.right_batch)]
        own = grid.shape[len(batch) : len(batch) + len(free)]
        return grid.reshape(*batch, *(1,) * (ndim - len(batch) - len(own)), *own)

    def over_inputs(self, grid: Array, shape: Sequence[int], ndim: int) -> Array:
        """Lays factors of what is summed over so that they broadcast over the array.

        Args:
            grid: of the weight's rank, one entry along axes that are not summed over.
            shape: of the weight.
            ndim: of the array.
        """
        grid = _repeated(grid, [n if axis in self.right else 1 for axis, n in enumerate(shape)])
        sizes = [grid.shape[axis] for axis in self.right]
        grid = grid.transpose((*self.right, *_others(len(shape), self.right))).reshape(sizes)
        order = sorted(range(len(sizes)), key=self.left.__getitem__)
        others = [axis for axis in range(ndim) if axis not in self.left]
        return lax.expand_dims(grid.transpose(order), others)

    def over_rows(self, grid: Array, ndim: int) -> Array:
        """Lays factors of the array, one along axes that are summed over, over the product."""
        free = self.left_free(grid.ndim)
        grid = grid.transpose((*self.left_batch, *free, *self.left))
        kept = grid.shape[: len(self.left_batch) + len(free)]
        return grid.reshape(*kept, *(1,) * (ndim - len(kept)))


def _others(ndim: int, *gone: Shape) -> Shape:
    return tuple(axis for axis in range(ndim) if axis not in sum(gone, ()))


def _repeated(grid: Array, shape: Sequence[int]) -> Array:
    """One entry for each group along an axis becomes one for each of its elements."""
    for axis, size in enumerate(shape):
        if grid.shape[axis] not in (1, size):
            grid = jnp.repeat(grid, size // grid.shape[axis], axis)
    return grid
