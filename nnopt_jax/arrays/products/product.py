"""The description of a product that the hooks of nodes take."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from nnopt_jax.arrays.hooks import CannotStayPacked, Field
from nnopt_jax.typing import Array, Shape

if TYPE_CHECKING:
    from nnopt_jax.arrays.products.contraction import Contraction


class Product(abc.ABC):
    """A product of an array with a weight, linear in both."""

    @abc.abstractmethod
    def __call__(self, x: Array, weight: Array) -> Array:
        """Multiply with an array of the shape of the weight."""

    @abc.abstractmethod
    def dtype(self, x: Array) -> Any:
        """Return the dtype of the product with an array `x`."""

    @property
    @abc.abstractmethod
    def inputs(self) -> Contraction:
        """The contracted and batch axes of the array, as a contraction."""

    @abc.abstractmethod
    def scaled(self, x: Array, values: Array, scale: Array, field: Field) -> Array:
        """Multiply with `scale * values` by a product with the values, whose outputs are scaled.

        Args:
            x: the array.
            values: the values of the weight before scaling.
            scale: the scale, of the weight's rank; each size divides that of the weight.
            field: the scale as the node holds it.

        Raises:
            CannotStayPacked: scales differ on contracted axes.
        """

    def scales_to_inputs(self, x: Array, scale: Array, shape: Shape) -> tuple[Array, Array]:
        """Move scales that vary only on contracted axes from the weight to the array.

        Args:
            x: the array.
            scale: the scale, of the weight's rank.
            shape: the shape of the weight.

        Returns:
            The array, and the remaining scale.
        """
        del shape
        return x, scale

    def in_float32(self, x: Array, values: Array) -> tuple[Array, Array]:
        """Return the array and float32 values in dtypes that can be multiplied."""
        return x.astype(jnp.float32), values

    def factored(self, x: Array, u: Field, v: Field) -> Array:
        """Multiply with two factors in turn, rather than with their matrix product.

        Raises:
            CannotStayPacked: the contracted axes are not those of the factors.
        """
        raise CannotStayPacked("no product of its parts is the product of the whole")

    def as_contraction(self) -> Contraction:
        """Return the product, if it is a `dot_general`.

        Raises:
            CannotStayPacked: it is another kind of product.
        """
        raise CannotStayPacked("no product of its parts is the product of the whole")


@dataclasses.dataclass(frozen=True)
class ComputedProduct(Product):
    """A product that is computed by a given function.

    Args:
        multiply: multiplies an array by a dense weight.
        preferred: the dtype that the program asks for; None for that of the array.
    """

    multiply: Callable[[Array, Array], Array]
    preferred: Any

    def __call__(self, x: Array, weight: Array) -> Array:
        """Multiply with an array of the shape of the weight."""
        return self.multiply(x, weight)

    def dtype(self, x: Array) -> Any:
        """Return the dtype that the program asks for, or else that of the array."""
        return self.preferred or x.dtype
