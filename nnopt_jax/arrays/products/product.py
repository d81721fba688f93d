"""What a node is told of the product that it is in."""

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
    """A product of an array with a weight, linear in both; called, it multiplies with an array."""

    @abc.abstractmethod
    def __call__(self, x: Array, weight: Array) -> Array:
        """The product with an array, of the shape of the weight."""

    @abc.abstractmethod
    def dtype(self, x: Array) -> Any:
        """Dtype of the product with an array `x`."""

    @property
    @abc.abstractmethod
    def inputs(self) -> Contraction:
        """Which axes of the array are summed over, and which go along with axes of the weight."""

    @abc.abstractmethod
    def scaled(self, x: Array, values: Array, scale: Array, field: Field) -> Array:
        """Multiply with `scale * values`: with the values, each output scaled.

        Args:
            x: the array.
            values: of the weight, before they are scaled.
            scale: of the weight's rank; each size divides that of the weight.
            field: the scale as the node holds it.

        Raises:
            CannotStayPacked: scales differ along axes that are summed over.
        """

    def scales_to_inputs(self, x: Array, scale: Array, shape: Shape) -> tuple[Array, Array]:
        """Scale the array, where scales are those of axes that are summed over alone.

        Args:
            x: the array.
            scale: of the weight's rank.
            shape: of the weight.

        Returns:
            The array, and the scale that is left.
        """
        del shape
        return x, scale

    def in_float32(self, x: Array, values: Array) -> tuple[Array, Array]:
        """Return the array and values of float32 in dtypes that can be multiplied."""
        return x.astype(jnp.float32), values

    def factored(self, x: Array, u: Field, v: Field) -> Array:
        """Multiply with the matrix product of two factors, one after the other.

        Raises:
            CannotStayPacked: the product sums over other axes than those of the factors.
        """
        raise CannotStayPacked("no product of its parts is the product of the whole")

    def as_contraction(self) -> Contraction:
        """Return the product, if it is a `dot_general`.

        Raises:
            CannotStayPacked: it is another one.
        """
        raise CannotStayPacked("no product of its parts is the product of the whole")


@dataclasses.dataclass(frozen=True)
class ComputedProduct(Product):
    """A product that the program says how to compute.

    Args:
        multiply: multiplies an array by a dense weight.
        preferred: dtype that the program asks for; None: that of the array.
    """

    multiply: Callable[[Array, Array], Array]
    preferred: Any

    def __call__(self, x: Array, weight: Array) -> Array:
        """What the program computes."""
        return self.multiply(x, weight)

    def dtype(self, x: Array) -> Any:
        """That which the program asks for, else that of the array."""
        return self.preferred or x.dtype
