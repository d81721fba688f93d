"""A base and what was added to it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.base import Field, Node, node, show
from nnopt_jax.arrays.hooks import dot
from nnopt_jax.arrays.products.product import Product


@node
class Sum(Node):
    r"""A base weight and a correction.

    .. math:: W = W_0 + \Delta

    Args:
        base: array or node.
        delta: array or node of the same logical shape, such as the factors of an adapter.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Factored, Sum
        >>> Sum(jnp.ones((1, 2)), Factored(jnp.ones((1, 1)), jnp.array([[1.0, 2.0]]))).materialize()
        Array([[2., 3.]], dtype=float32)
    """

    base: Field
    delta: Field

    SHARED = ()
    LINEAR = ("base", "delta")
    SLOTS = {"base": "value"}  # noqa: RUF012 - a constant, as declared in Node

    def materialize(self) -> jax.Array:
        """`base + delta` in float32, cast once to the dtype of the base."""
        base, delta = (show(term).astype(jnp.float32) for term in (self.base, self.delta))
        return (base + delta).astype(self.dtype)

    def slot_mask(self, name: str, outer: jax.Array | None) -> jax.Array | None:
        """The base lies like the weight."""
        del name
        return outer

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Both terms must have one shape."""
        found = super().problems(shape)
        if self.base.shape != self.delta.shape:
            found.append(f"has terms {self.base.shape} and {self.delta.shape}")
        return found

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> Sum:
        """Both terms are split like the weight."""
        return self.specs_alike(spec, mesh)

    def dot(self, x: jax.Array, how: Product) -> jax.Array:
        """`x (w + d) = x w + x d`."""
        how = how.as_contraction()
        base, delta = dot(x, self.base, how), dot(x, self.delta, how)
        return (base.astype(jnp.float32) + delta.astype(jnp.float32)).astype(base.dtype)
