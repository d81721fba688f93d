"""Convolution of an image with a packed kernel."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.hooks import CannotStayPacked, Field
from nnopt_jax.arrays.products.contraction import Contraction
from nnopt_jax.arrays.products.product import ComputedProduct
from nnopt_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Convolution(ComputedProduct):
    r"""A convolution; output scales apply to its result: `x * (s q) = s (x * q)`.

    Args:
        numbers: the axes of batch, features and positions of the operands and the outcome.
    """

    numbers: lax.ConvDimensionNumbers

    @property
    def inputs(self) -> Contraction:
        """The contraction over all axes of an image, since each image has a grid of its own."""
        batch, *others = self.numbers.lhs_spec
        del batch
        return Contraction(tuple(sorted(others)), (), (), ())

    def scaled(self, x: Array, values: Array, scale: Array, field: Field) -> Array:
        """Multiply with `scale * values`, for scales of output features or of groups of them."""
        del field
        axis = self.numbers.rhs_spec[0]
        if any(size != 1 for at, size in enumerate(scale.shape) if at != axis):
            raise CannotStayPacked("its scales differ along axes that are summed over")
        out = self(x, values)
        scale = jnp.repeat(scale.ravel(), values.shape[axis] // scale.size)
        wide = [1] * out.ndim
        wide[self.numbers.out_spec[1]] = scale.size
        return (out.astype(jnp.float32) * scale.reshape(wide)).astype(out.dtype)
