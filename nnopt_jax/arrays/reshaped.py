"""Views of an array or node: its elements in another shape and order of axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.hooks import CannotStayPacked, Moves, after, dot, move
from nnopt_jax.arrays.nodes import Field, Node, field_specs, kept, materialize, node, static
from nnopt_jax.arrays.products.product import Product
from nnopt_jax.arrays.products.view_product import with_base
from nnopt_jax.ops.axis_roles import Axes, matrix_axes
from nnopt_jax.typing import Shape


@node
class Reshaped(Node):
    """A view of an array or node: reshaped, with permuted axes, and reshaped again.

    A factored convolution kernel is a view of the matrix that was factored. A tied leaf is a view,
    perhaps transposed, of the leaf that it is tied to.

    Args:
        base: array or node.
        split: the shape that the base is first reshaped to.
        axes: the permutation that follows, as `jnp.transpose` takes it. If the view has the layout
            of its base, `axes` and both shapes are empty.
        sizes: the shape of the view.

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

    LINEAR = ("base",)
    TYPED = ("base",)
    SLOTS = {"base": "inherit"}  # noqa: RUF012 - a constant, as declared in Node

    @classmethod
    def of(cls, base: Field, axes: tuple[int, ...] = ()) -> Reshaped:
        """Return a view with permuted axes, or, without `axes`, one of the same layout."""
        if axes == tuple(range(len(axes))):
            return cls(base)
        shape = tuple(base.shape)
        return cls(base, shape, axes, tuple(shape[axis] for axis in axes))

    @classmethod
    def of_matrix(cls, matrix: Field, axes: Axes, shape: Sequence[int]) -> Field:
        """Return the weight that a matrix `(*batch, in, out)` stands for.

        Args:
            matrix: array or node.
            axes: the axes of the weight, counted from the front.
            shape: the shape of the weight.

        Returns:
            The view, or the matrix itself if it has the axes of the weight.

        Example:
            >>> import jax.numpy as jnp
            >>> from nnopt_jax.arrays import Reshaped
            >>> from nnopt_jax.ops.axis_roles import Axes
            >>> Reshaped.of_matrix(jnp.ones((8, 6)), Axes(1, (0, 2)), (3, 8, 2)).shape
            (3, 8, 2)
        """
        if axes.is_matrix():
            return matrix
        split = tuple(shape[axis] for axis in axes.order)
        return cls(matrix, split, axes.inverse, tuple(shape))

    def runs(self) -> tuple[tuple[int, ...], ...] | None:
        """Return for each axis of the base the axes of the view that it is split into, in order.

        Returns:
            The axes; None if an axis of the view merges several axes of the base.

        Example:
            >>> import jax.numpy as jnp
            >>> from nnopt_jax.arrays import Reshaped
            >>> from nnopt_jax.ops.axis_roles import Axes
            >>> Reshaped.of_matrix(jnp.ones((8, 6)), Axes(1, (0, 2)), (3, 8, 2)).runs()
            ((1,), (0, 2))
        """
        shape = tuple(self.base.shape)
        if not self.axes:
            return tuple((axis,) for axis in range(len(shape)))
        if self.sizes != tuple(self.split[axis] for axis in self.axes):
            return None
        if self.split == shape:
            return tuple((self.axes.index(axis),) for axis in range(len(shape)))
        runs, end = [], 0
        for number, size in enumerate(shape):
            first, found = end, 1
            one = size == 1 and self.split[end : end + 1] == (1,)
            # Remaining axes of size 1 belong to the last axis of the base.
            while end < len(self.split) and (found < size or one or number == len(shape) - 1):
                found, end, one = found * self.split[end], end + 1, False
            if found != size:
                return None
            runs.append(tuple(self.axes.index(axis) for axis in range(first, end)))
        return tuple(runs)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the view."""
        return self.sizes if self.axes else tuple(self.base.shape)

    @property
    def FACTORS(self) -> tuple[str, ...]:
        """The name of the base, if it is a product of factors."""
        return ("base",) if isinstance(self.base, Node) and self.base.FACTORS else ()

    @property
    def ELEMENTWISE(self) -> tuple[str, ...]:
        """The name of the base, if its entries lie in the view as they do in the base."""
        return () if self.axes else ("base",)

    def materialize(self) -> jax.Array:
        """Reshape the base to `split`, permute its axes by `axes`, reshape to `sizes`."""
        dense = materialize(self.base)
        if not self.axes:
            return dense
        return dense.reshape(self.split).transpose(self.axes).reshape(self.sizes)

    def kept(self) -> Field:
        """Return the same view of the mask of the base."""
        below = kept(self.base)
        return None if below is None else self.replace(base=below)

    def slot_mask(self, name: str, outer: jax.Array | None) -> jax.Array | None:
        """Return the outer mask in the shape of the base."""
        del name
        if outer is None or not self.axes:
            return outer
        back = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        moved = outer.reshape(tuple(self.split[axis] for axis in self.axes))
        return jnp.transpose(moved, back).reshape(self.base.shape)

    def slot_axes(self, name: str, axes: Axes | None) -> Axes | None:
        """Return the axes of the base: permuted back, or those of the matrix that was reshaped."""
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
        """Shard the axes of the base like the same axes of the view; replicate split axes."""
        if not self.axes:
            return self.replace(base=field_specs(self.base, spec, mesh))
        axes = (*spec, *(None for _ in range(self.ndim - len(spec))))
        runs = self.runs() or ()
        below = PartitionSpec(*(axes[run[0]] if len(run) == 1 else None for run in runs))
        return self.replace(base=field_specs(self.base, below, mesh))

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that all shapes have as many elements as the base."""
        if not self.axes:
            return super().problems(shape)
        found = super().problems(self.base.shape)
        if sorted(self.axes) != list(range(len(self.split))):
            found.append(f"has axes {self.axes} of a base seen in shape {self.split}")
        if not self.base.size == math.prod(self.split) == math.prod(self.sizes):
            base = f"a base of shape {self.base.shape}, seen in shape {self.split}"
            found.append(f"of shape {self.sizes} has {base}")
        return found

    def order_in_memory(self) -> Shape:
        """Return the order in memory of the base, if the view only permutes axes."""
        if not self.axes or len(self.axes) != self.ndim:
            return super().order_in_memory()
        return tuple(sorted(range(self.ndim), key=self.axes.__getitem__))

    def dot(self, x: jax.Array, how: Product) -> jax.Array:
        """Multiply by the base in its own axes, then permute the outcome like the view."""
        how = how.as_contraction()
        if not self.axes:
            return dot(x, self.base, how)
        found = with_base(self.runs(), self.shape, x.ndim, how)
        if found is None:
            raise CannotStayPacked("it is a view of another shape")
        inputs, there, outputs = found
        return after(lambda: dot(inputs(x), self.base, there), outputs)

    def move(self, movement: Moves, shape: Shape) -> Field:
        """Move the base, if the movement cuts its first axis or only permutes axes."""
        runs = self.runs()
        if runs is None or not self.axes:
            raise CannotStayPacked("one of its fields cannot be moved")
        if movement.axes:
            order = tuple(self.axes[axis] for axis in movement.axes)
            return self.replace(axes=order, sizes=tuple(shape[axis] for axis in movement.axes))
        count, lies = len(self.axes), tuple(self.base.shape)
        gone, permutes = count - len(movement.shape), self.split == lies
        leads = self.axes[0] == 0 and runs[0] == (0,)
        if leads and movement.kept >= count - 1 and gone in (0, 1):
            base, rest = move(self.base, movement, lies), tuple(a - gone for a in self.axes[gone:])
            if permutes:
                return Reshaped.of(base, rest)
            split = (*movement.shape[: 1 - gone], *self.split[1:])
            return self.replace(base=base, split=split, axes=rest, sizes=movement.shape)
        if not permutes:
            raise CannotStayPacked("one of its fields cannot be moved")
        return move(self.materialize(), movement, shape)


def transposed_in_memory(x: jax.Array) -> Reshaped:
    """Return an array whose last two axes are swapped in memory: `(out, in)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays.reshaped import transposed_in_memory
        >>> transposed_in_memory(jnp.ones((2, 3)))
        Reshaped(base float32[3,2], 32 bits/weight)
    """
    order = swapped_axes(x.ndim)
    return Reshaped.of(x.transpose(order), order)


def swapped_axes(ndim: int) -> Shape:
    """Return the permutation that swaps the last two axes."""
    return (*range(ndim - 2), ndim - 1, ndim - 2)
