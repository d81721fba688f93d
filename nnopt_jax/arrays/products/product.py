"""Products of arrays and weights: the description that node hooks receive, and derivatives."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from nnopt_jax.arrays.hooks import CannotStayPacked, Field
from nnopt_jax.typing import Array, Shape

if TYPE_CHECKING:
    from nnopt_jax.arrays.products.contraction import Contraction


class Product(abc.ABC):
    """A product of an array with a weight, linear in both."""

    @abc.abstractmethod
    def __call__(self, x: Array, weight: Array) -> Array:
        """Multiply by an array of the shape of the weight."""

    @abc.abstractmethod
    def dtype(self, x: Array) -> Any:
        """Return the dtype of the product with an array `x`."""

    @property
    @abc.abstractmethod
    def inputs(self) -> Contraction:
        """The contracted and batch axes of the array, as a contraction."""

    @abc.abstractmethod
    def scaled(self, x: Array, values: Array, scale: Array, field: Field) -> Array:
        """Multiply by `scale * values`, as a product with the values and scaled outputs.

        Args:
            x: the array.
            values: the values of the weight before scaling.
            scale: the scale, of the weight's rank; the size of each axis divides that of the
                weight.
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
        """Return the array and the values as float32, or as other dtypes that can be multiplied."""
        return x.astype(jnp.float32), values

    def factored(self, x: Array, u: Field, v: Field) -> Array:
        """Multiply by two factors in turn, rather than by their matrix product.

        Raises:
            CannotStayPacked: the contracted axes are not those of the factors.
        """
        raise CannotStayPacked("its form has no packed product")

    def as_contraction(self) -> Contraction:
        """Return the product, if it is a `dot_general`.

        Raises:
            CannotStayPacked: it is another kind of product.
        """
        raise CannotStayPacked("its form has no packed product")


@dataclasses.dataclass(frozen=True)
class ComputedProduct(Product):
    """A product that a given function computes.

    Args:
        multiply: multiplies an array by a dense weight.
        preferred: the dtype that the program asks for; None for that of the array.
    """

    multiply: Callable[[Array, Array], Array]
    preferred: Any

    def __call__(self, x: Array, weight: Array) -> Array:
        """Multiply by an array of the shape of the weight."""
        return self.multiply(x, weight)

    def dtype(self, x: Array) -> Any:
        """Return the dtype that the program asks for, or else that of the array."""
        return self.preferred or x.dtype


def dense_product(how: Any, x: Array, weight: Any, *_: Any) -> Array:
    """Multiply by the materialized array of a node."""
    return how(x, weight.materialize())


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def differentiated_as(
    floats: Callable[..., Array], exact: Callable[..., Array], how: Any, *given: Any
) -> Array:
    """Compute `exact(how, *given)`, with the derivatives of the function `floats`.

    The computation is compiled, so that equal products of a model are traced once. This requires
    the same function objects in each call.

    Args:
        floats: a function that has the derivatives.
        exact: a function of the same arguments and, up to rounding, with the same results.
        how: the first argument of both, hashable.
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
