"""A product of two thin matrices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.base import Field, Node, field_specs, is_node, node, show, static
from nnopt_jax.ops.axes import Axes, matrix_axes


@node
class Factored(Node):
    r"""A matrix of low rank.

    .. math:: W = U V

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

    SLOTS = {"u": "value", "v": "value"}  # noqa: RUF012 - a constant, as declared in Node

    @property
    def shape(self) -> tuple[int, ...]:
        """`(..., m, n)`."""
        return (*self.u.shape[:-1], self.v.shape[-1])

    def slot_axes(self, name: str, axes: Axes | None) -> Axes | None:
        """Each factor is a stack of matrices: `(in, rank)`, and `(rank, out)`."""
        del axes
        return matrix_axes(getattr(self, name).ndim)

    def materialize(self) -> jax.Array:
        """`u @ v` in float32, cast once."""
        u, v = show(self.u).astype(jnp.float32), show(self.v).astype(jnp.float32)
        return jnp.matmul(u, v).astype(self.dtype)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """The factors must meet in one rank."""
        found = [text for _, field in self.fields() if is_node(field)
                 for text in field.problems(field.shape)]  # fmt: skip
        if self.u.ndim < 2 or self.v.ndim < 2 or self.u.shape[-1] != self.v.shape[-2]:
            found.append(f"has factors {self.u.shape} and {self.v.shape}")
        return found

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> Factored:
        """Each factor keeps the axis it shares with the weight; the rank is not split."""
        axes = (*spec, *(None for _ in range(self.ndim - len(spec))))
        return self.replace(
            u=field_specs(self.u, PartitionSpec(*axes[:-1], None), mesh),
            v=field_specs(self.v, PartitionSpec(*axes[:-2], None, axes[-1]), mesh),
        )
