"""Weight sharing: indices into a table of values, and its differentiable form for training."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.hooks import CannotStayPacked, Moves, integers
from nnopt_jax.arrays.nodes import (
    Field,
    Node,
    field_specs,
    is_node,
    materialize,
    node,
    static,
    store_field,
)
from nnopt_jax.arrays.packed_integers import store_codes
from nnopt_jax.arrays.products.integer_products import IntegerWeight
from nnopt_jax.ops.axis_roles import Axes, assumed_axes
from nnopt_jax.ops.gradient_estimators import straight_through
from nnopt_jax.ops.lookup_tables import lookup
from nnopt_jax.ops.soft_clustering import soft_assign
from nnopt_jax.typing import Shape


@node
class Codebook(Node):
    r"""Weights that share a few values.

    $$ w_i = t_{a_i} $$

    Args:
        indices: `a`, integers of the logical shape, packed in storage.
        table: `t`, float, `(clusters,)`. A table for each channel has the axes of the weight, of
            size 1 where the table is shared, and `clusters` as the last axis: `(1, out, clusters)`.
            A later transform may quantize it.
        carry: the straight-through residual, which only receives the gradient of the latent weight
            and is not stored. The table receives a gradient of its own, summed over each cluster.
        dtype: dtype of the array the node stands for.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Codebook
        >>> shared = Codebook(jnp.array([[0, 1, 1]]), jnp.array([-1.0, 2.0]))
        >>> shared.materialize()
        Array([[-1.,  2.,  2.]], dtype=float32)
        >>> shared.store()
        Codebook(indices 1-bit[1,3], table float32[2], 24 bits/weight)
        >>> tables = jnp.array([[[-1.0, 2.0], [0.0, 4.0]]])
        >>> Codebook(jnp.array([[1, 0], [0, 1]]), tables).materialize()
        Array([[ 2.,  0.],
               [-1.,  4.]], dtype=float32)

    References:
        Han et al. 2016, Deep Compression, section 3.
    """

    indices: Field
    table: Field
    carry: Field = None
    dtype: Any = static(default="float32")  # pyright: ignore[reportIncompatibleMethodOverride]

    ELEMENTWISE = ("indices",)
    CODES = True
    SHARED = ("table",)
    LINEAR = ("table",)
    SLOTS = {"table": "inherit"}  # noqa: RUF012 - a constant, as declared in Node

    def zero_code(self) -> int:
        """Return the number of table entries below zero, averaged over tables.

        Tables ascend. A table that is a node is not materialized for this: 0.
        """
        if is_node(self.table):
            return 0
        return round((self.table < 0).sum() * self.table.shape[-1] / max(self.table.size, 1))

    def materialize(self) -> jax.Array:
        """Return `table[indices]`, cast once."""
        indices, table = materialize(self.indices).astype(jnp.int32), materialize(self.table)
        if table.ndim > 1:  # all tables one after another
            first = jnp.arange(table.size // table.shape[-1], dtype=jnp.int32) * table.shape[-1]
            indices = jnp.clip(indices, 0, table.shape[-1] - 1) + first.reshape(table.shape[:-1])
        dense = lookup(table.ravel(), indices).astype(self.dtype)
        return dense if self.carry is None else straight_through(dense, self.carry)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that the table has one axis, or one table for each channel."""
        found = [] if not is_node(self.table) else self.table.problems(self.table.shape)
        if is_node(self.indices):
            found += self.indices.problems(shape)
        *lead, entries = self.table.shape or (0,)
        fits = not lead or len(lead) == len(shape)
        fits = fits and all(one in (1, n) for one, n in zip(lead, shape, strict=False))
        if not (entries and fits):
            found.append(f"has a table of shape {self.table.shape}")
        return found

    def slot_axes(self, name: str, axes: Axes | None) -> Axes | None:
        """Return axes that contract the entries of a table, so that it gets one scale."""
        del name, axes
        last = self.table.ndim - 1
        return Axes(last, tuple(range(last))) if last else assumed_axes(self.table.shape)

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> Node:
        """Shard the indices like the weight, and tables of channels along their channel axes."""
        found = super().specs(spec, mesh)
        if self.table.ndim == 1:
            return found
        axes = (*spec, *(None for _ in range(self.table.ndim - len(spec))))
        return found.replace(table=field_specs(self.table, PartitionSpec(*axes), mesh))

    def store(self) -> Codebook:
        """Pack the indices and drop the straight-through residual."""
        indices = store_codes(self.indices, 0, self.table.shape[-1] - 1)
        return self.replace(indices=indices, table=store_field(self.table), carry=None)

    def move(self, movement: Moves, shape: Shape) -> Field:
        """Move the indices, if all of them share one table."""
        if self.table.ndim > 1:
            raise CannotStayPacked("one of its fields cannot be moved")
        return super().move(movement, shape)

    def integers(self) -> IntegerWeight | None:
        """Return the codes of a quantized table at the indices; None unless it has one scale."""
        table = integers(self.table)
        if table is None or table.scale.size != 1 or self.table.ndim > 1:
            return None
        codes = jnp.take(table.codes, materialize(self.indices).astype(jnp.int32), axis=0)
        one = (1,) * self.ndim
        zero = None if table.zero is None else table.zero.reshape(one)
        return IntegerWeight(codes, table.scale.reshape(one), zero)


@node
class SoftCodebook(Node):
    r"""Weighted means of the entries of a table, the differentiable form of the nearest entry.

    $$ y_i = \sum_c a_{ic} t_c, \qquad
       a_{i\cdot} = \mathrm{softmax}_c\left(-\frac{(w_i - t_c)^2}{h^2}\right) $$

    Args:
        values: `w`, float array.
        table: `t`, float, `(clusters,)`; a later transform may quantize it.
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
        """Return the weighted means, in float32 and cast once."""
        return soft_assign(self.values, materialize(self.table), self.width).astype(self.dtype)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that the table has one non-empty axis, and that the width is a scalar."""
        found = [] if not is_node(self.table) else self.table.problems(self.table.shape)
        if self.table.ndim != 1 or not self.table.shape[0] or self.width.ndim:
            found.append(f"has a table of shape {self.table.shape}, width of {self.width.shape}")
        if self.values.shape != shape:
            found.append(f"of shape {shape} has values of shape {self.values.shape}")
        return found
