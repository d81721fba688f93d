"""Values that belong to all entries of a table, to nearer ones more: for training only."""

from __future__ import annotations

from typing import Any

import jax

from nnopt_jax.arrays.base import Field, Node, is_node, node, show, static
from nnopt_jax.ops.soft_clustering import soft_assign


@node
class SoftCodebook(Node):
    r"""Weighed means of a table, in place of its nearest entries.

    .. math:: y_i = \sum_c a_{ic} t_c, \qquad
        a_{i\cdot} = \mathrm{softmax}_c\left(-\frac{(w_i - t_c)^2}{h^2}\right)

    Args:
        values: `w`, float array.
        table: `t`, float, `(clusters,)`; a later link may quantize it.
        width: `h`, float scalar, the root of the temperature.
        dtype: dtype of the array the node stands for.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import SoftCodebook
        >>> values, table = jnp.array([-1.0, 0.1, 0.9]), jnp.array([-1.0, 1.0])
        >>> SoftCodebook(values, table, jnp.float32(0.5)).materialize().round(2)
        Array([-1.  ,  0.66,  1.  ], dtype=float32)

    References:
        Cho et al. 2022, DKM: Differentiable K-Means Clustering Layer, section 3.
    """

    values: Field
    table: Field
    width: Field
    dtype: Any = static(default="float32")  # pyright: ignore[reportIncompatibleMethodOverride]

    SLOTS = {"table": "inherit"}  # noqa: RUF012 - a constant, as declared in Node

    def materialize(self) -> jax.Array:
        """The weighed means, in float32, cast once."""
        return soft_assign(self.values, show(self.table), self.width).astype(self.dtype)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """The table is one flat run of at least one entry, the width a scalar."""
        found = [] if not is_node(self.table) else self.table.problems(self.table.shape)
        if self.table.ndim != 1 or not self.table.shape[0] or self.width.ndim:
            found.append(f"has a table of shape {self.table.shape}, width of {self.width.shape}")
        if self.values.shape != shape:
            found.append(f"of shape {shape} has values of shape {self.values.shape}")
        return found
