"""Convolutions with packed kernels, and products of groups of rows (`jax.lax.ragged_dot`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.hooks import CannotStayPacked, Field
from nnopt_jax.arrays.nodes import materialize
from nnopt_jax.arrays.products.contraction import Contraction
from nnopt_jax.arrays.products.product import ComputedProduct
from nnopt_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Convolution(ComputedProduct):
    r"""A convolution, whose output scales apply to its result: `x * (s q) = s (x * q)`.

    Args:
        numbers: the axes of batch, features and positions of the operands and the outcome.
    """

    numbers: lax.ConvDimensionNumbers

    @property
    def inputs(self) -> Contraction:
        """The contraction over all axes of an image, since each image has its own grid."""
        batch, *others = self.numbers.lhs_spec
        del batch
        return Contraction(tuple(sorted(others)), (), (), ())

    def scaled(self, x: Array, values: Array, scale: Array, field: Field) -> Array:
        """Multiply by `scale * values`, for scales of output features or of groups of them."""
        del field
        axis = self.numbers.rhs_spec[0]
        if any(size != 1 for at, size in enumerate(scale.shape) if at != axis):
            raise CannotStayPacked("its scales differ along contracted axes")
        out = self(x, values)
        scale = jnp.repeat(scale.ravel(), values.shape[axis] // scale.size)
        wide = [1] * out.ndim
        wide[self.numbers.out_spec[1]] = scale.size
        return (out.astype(jnp.float32) * scale.reshape(wide)).astype(out.dtype)


@dataclasses.dataclass(frozen=True)
class Ragged(ComputedProduct):
    r"""A product of consecutive groups of rows, each with the matrix of its group.

    With codes, the product is `y_r = s_{g(r)} \sum_i x_{ri} q_{g(r),i}`.

    Args:
        rows: the axis of the array that holds the groups.
        left: the contracted axis of the array.
        groups: the axis of the weight that numbers its matrices.
        right: the contracted axis of the weight.
        sizes: the number of rows of each group.
    """

    rows: int
    left: int
    groups: int
    right: int
    sizes: Array

    @classmethod
    def of(
        cls,
        multiply: Callable[[Array, Array], Array],
        preferred: Any,
        numbers: lax.RaggedDotDimensionNumbers,
        sizes: Array,
    ) -> Ragged:
        """Make the product from the dimension numbers of a `ragged_dot_general`.

        Raises:
            CannotStayPacked: the groups are on a contracted axis, or there are batch axes.
        """
        (left, right), (batch, _) = numbers.dot_dimension_numbers
        (rows,), groups = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
        if batch or len(left) != 1 or rows in left or len(groups) != 1:
            raise CannotStayPacked("its groups are not those of rows")
        return cls(multiply, preferred, rows, left[0], groups[0], right[0], sizes)

    @property
    def inputs(self) -> Contraction:
        """The product of a row with its matrix, as a contraction."""
        return Contraction((self.left,), (self.right,), (), ())

    def in_float32(self, x: Array, values: Array) -> tuple[Array, Array]:
        """Cast the values rather than the array, which may have many rows."""
        return x, values.astype(x.dtype)

    def scaled(self, x: Array, values: Array, scale: Array, field: Field) -> Array:
        """Multiply by `scale * values`, for scales of the outputs of each group."""
        del field
        if scale.shape[self.right] != 1:
            raise CannotStayPacked("its scales differ along contracted axes")
        if any(n not in (1, m) for n, m in zip(scale.shape, values.shape, strict=True)):
            raise CannotStayPacked("its scales are those of groups of outputs")
        out = self(x, values)
        return (out.astype(jnp.float32) * self._over_rows(scale, x)).astype(out.dtype)

    def factored(self, x: Array, u: Field, v: Field) -> Array:
        """Multiply by two factors in turn, `x (u v) = (x u) v`, group by group."""
        if (x.ndim, u.ndim, self.groups, self.right, self.left) != (2, 3, 0, 1, 1):
            raise CannotStayPacked("its factors lie along other axes")
        inner = lax.ragged_dot(x, materialize(u).astype(x.dtype), self.sizes)
        return lax.ragged_dot(inner, materialize(v).astype(x.dtype), self.sizes)

    def _over_rows(self, scale: Array, x: Array) -> Array:
        """Arrange scales of groups and outputs so that they broadcast over the product."""
        outs = [a for a in range(scale.ndim) if a not in (self.groups, self.right)]
        scale = scale.transpose((self.groups, *outs, self.right))[..., 0]
        if scale.shape[0] != 1:
            ends = jnp.cumsum(self.sizes)
            group = jnp.searchsorted(ends, jnp.arange(x.shape[self.rows]), side="right")
            # Rows beyond the last group are zero in the product, whatever their scale.
            scale = jnp.take(scale, group, 0, mode="clip")
        free = [a for a in range(x.ndim) if a != self.left]
        shape = [scale.shape[0] if a == self.rows else 1 for a in free]
        return scale.reshape(*shape, *scale.shape[1:])
