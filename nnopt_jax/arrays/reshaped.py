"""Another view of an expression: its elements in another shape and order of axes."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.base import Field, Node, field_specs, kept, node, show, static
from nnopt_jax.ops.axes import Axes, matrix_axes


@node
class Reshaped(Node):
    """The elements of an expression, seen in another shape: reshape, permute axes, reshape.

    The kernel of a convolution is the view of a matrix that can be factored; a tied leaf is a
    view, perhaps transposed, of the leaf that it is tied to.

    Args:
        base: array or node.
        split: shape the base is seen in first.
        axes: the order its axes are then brought in, as `jnp.transpose` takes it; none, and no
            shapes, where the view is of the very layout of its base.
        sizes: shape of the outcome.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Reshaped
        >>> view = Reshaped.of(jnp.array([[1, 2, 3], [4, 5, 6]]), axes=(1, 0))
        >>> view.materialize()
        Array([[1, 4],
               [2, 5],
               [3, 6]], dtype=int32)
    """

    base: Field
    split: tuple[int, ...] = static(default=())
    axes: tuple[int, ...] = static(default=())
    sizes: tuple[int, ...] = static(default=())

    SLOTS = {"base": "inherit"}  # noqa: RUF012 - a constant, as declared in Node

    @classmethod
    def of(cls, base: Field, axes: tuple[int, ...] = ()) -> Reshaped:
        """A view with the axes in another order; of the same layout where none is told."""
        if axes == tuple(range(len(axes))):
            return cls(base)
        shape = tuple(base.shape)
        return cls(base, shape, axes, tuple(shape[axis] for axis in axes))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the view."""
        return self.sizes if self.axes else tuple(self.base.shape)

    @property
    def dtype(self) -> Any:
        """Dtype of the base."""
        return self.base.dtype

    @property
    def ELEMENTWISE(self) -> tuple[str, ...]:
        """The base, where it lies like the view."""
        return () if self.axes else ("base",)

    def materialize(self) -> jax.Array:
        """`base` in the shape `split`, its axes in the order `axes`, in the shape `sizes`."""
        dense = show(self.base)
        if not self.axes:
            return dense
        return dense.reshape(self.split).transpose(self.axes).reshape(self.sizes)

    def kept(self) -> Field:
        """The mask of the base, seen alike."""
        below = kept(self.base)
        return None if below is None else self.replace(base=below)

    def slot_mask(self, name: str, outer: jax.Array | None) -> jax.Array | None:
        """The mask as the base lies."""
        del name
        if outer is None or not self.axes:
            return outer
        back = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        moved = outer.reshape(tuple(self.split[axis] for axis in self.axes))
        return jnp.transpose(moved, back).reshape(self.base.shape)

    def slot_axes(self, name: str, axes: Axes | None) -> Axes | None:
        """Axes of the base: permuted back, or those of the matrix that a kernel is a view of."""
        del name
        if not self.axes:
            return axes
        if self.split != tuple(self.base.shape) or len(self.axes) != len(self.sizes):
            return matrix_axes(self.base.ndim) if self.base.ndim > 1 else None
        if axes is None:
            return None
        roles = (axes.contracted, axes.output, axes.batch)
        return Axes(
            *(tuple(self.axes[axis] for axis in role) for role in roles), lookup=axes.lookup
        )

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> Reshaped:
        """Where the view but permutes axes, the base is split as they are; else it is whole."""
        if not self.axes:
            return self.replace(base=field_specs(self.base, spec, mesh))
        axes = (*spec, *(None for _ in range(self.ndim - len(spec))))
        below = PartitionSpec()
        if self.split == tuple(self.base.shape) and len(self.axes) == len(self.shape):
            back = sorted(range(len(self.axes)), key=self.axes.__getitem__)
            below = PartitionSpec(*(axes[axis] for axis in back))
        return self.replace(base=field_specs(self.base, below, mesh))

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """All shapes must have as many elements as the base."""
        if not self.axes:
            return super().problems(shape)
        found = super().problems(self.base.shape)
        if sorted(self.axes) != list(range(len(self.split))):
            found.append(f"has axes {self.axes} of a base seen in shape {self.split}")
        if not self.base.size == math.prod(self.split) == math.prod(self.sizes):
            base = f"a base of shape {self.base.shape}, seen in shape {self.split}"
            found.append(f"of shape {self.sizes} has {base}")
        return found
