"""Low-rank weights: products of two thin matrices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.hooks import CannotStayPacked, Moves, move
from nnopt_jax.arrays.nodes import Field, Node, field_specs, materialize, node, static
from nnopt_jax.arrays.products.product import Product
from nnopt_jax.ops.axis_roles import Axes, matrix_axes
from nnopt_jax.typing import Shape


@node
class Factored(Node):
    r"""A low-rank matrix as the product of two factors.

    $$ W = U V $$

    Args:
        u: `(..., m, r)`.
        v: `(..., r, n)`.
        dtype: dtype of the array the node stands for; the product is taken in float32.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Factored
        >>> Factored(jnp.array([[1.0], [2.0]]), jnp.array([[3.0, 4.0]])).materialize()
        Array([[3., 4.],
               [6., 8.]], dtype=float32)
    """

    u: Field
    v: Field
    dtype: Any = static(default="float32")  # pyright: ignore[reportIncompatibleMethodOverride]

    LINEAR = ("u",)
    FACTORS = ("u", "v")
    SLOTS = {"u": "value", "v": "value"}  # noqa: RUF012 - a constant, as declared in Node

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape `(..., m, n)` of the product."""
        return (*self.u.shape[:-1], self.v.shape[-1])

    def slot_axes(self, name: str, axes: Axes | None) -> Axes | None:
        """Return the axes of a factor, a stack of matrices `(in, rank)` or `(rank, out)`."""
        del axes
        return matrix_axes(getattr(self, name).ndim)

    def materialize(self) -> jax.Array:
        """Return `u @ v`, in float32 and cast once."""
        u, v = materialize(self.u).astype(jnp.float32), materialize(self.v).astype(jnp.float32)
        return jnp.matmul(u, v).astype(self.dtype)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that the last axis of `u` is as long as the first axis of `v`."""
        found = self.inner_problems()
        if self.u.ndim < 2 or self.v.ndim < 2 or self.u.shape[-1] != self.v.shape[-2]:
            found.append(f"has factors {self.u.shape} and {self.v.shape}")
        return found

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> Factored:
        """Shard each factor on the axis that it shares with the weight; replicate the rank axis."""
        axes = (*spec, *(None for _ in range(self.ndim - len(spec))))
        return self.replace(
            u=field_specs(self.u, PartitionSpec(*axes[:-1], None), mesh),
            v=field_specs(self.v, PartitionSpec(*axes[:-2], None, axes[-1]), mesh),
        )

    def dot(self, x: jax.Array, how: Product) -> jax.Array:
        """Multiply by one factor after the other: `x (u v) = (x u) v`."""
        return how.factored(x, self.u, self.v)

    def move(self, movement: Moves, shape: Shape) -> Factored:
        """Move the leading axes of both factors, or transpose the product."""
        swapped = movement.axes[-2:] == (self.ndim - 1, self.ndim - 2)
        if movement.kept < 2 and not swapped:
            raise CannotStayPacked("one of its fields cannot be moved")
        u, v = (move(part, movement, tuple(part.shape)) for part in (self.u, self.v))
        return self.replace(u=v, v=u) if swapped else self.replace(u=u, v=v)
