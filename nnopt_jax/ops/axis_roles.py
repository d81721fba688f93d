"""The roles of the axes of a weight in its product: contracted, output and batch axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax

AxisOrAxes = int | tuple[int, ...]
"""One axis, or several in order, as `jax.nn.initializers.variance_scaling` takes them."""

_CONVOLUTIONS = (4, 5)  # ranks of kernels (h, w, in, out) and (d, h, w, in, out)


@dataclasses.dataclass(frozen=True)
class Axes:
    r"""The contracted, output and batch axes of a weight.

    $$ y_{b,o} = \sum_i x_{b,i}\, w_{b,i,o} $$

    Args:
        in_axis: the contracted axes `i`, in the order of the product, such as the inputs of a dense
            layer, `(h, w, in)` of a convolution, or `(heads, head_dim)` of an output projection.
        out_axis: the output axes `o`.
        batch_axis: the axes `b` whose indices number separate weights, such as scanned layers or
            experts.
        lookup: whether `in_axis` is looked up, like the rows of an embedding, rather than
            contracted.

    Example:
        >>> from nnopt_jax import Axes
        >>> query = Axes(in_axis=0, out_axis=(1, 2))
        >>> query.matrix_shape((128, 8, 16)), query
        ((128, 128), Axes(0, (1, 2)))
    """

    in_axis: AxisOrAxes
    out_axis: AxisOrAxes
    batch_axis: AxisOrAxes = ()
    lookup: bool = False

    def __post_init__(self) -> None:
        """Replace a tuple of one axis by that axis, so that equal roles compare equal."""
        for name in ("in_axis", "out_axis", "batch_axis"):
            given = getattr(self, name)
            if not isinstance(given, int):
                axes = tuple(int(axis) for axis in given)
                object.__setattr__(self, name, axes[0] if len(axes) == 1 else axes)

    @property
    def contracted(self) -> tuple[int, ...]:
        """The contracted axes."""
        return _tuple(self.in_axis)

    @property
    def output(self) -> tuple[int, ...]:
        """The output axes."""
        return _tuple(self.out_axis)

    @property
    def batch(self) -> tuple[int, ...]:
        """The batch axes."""
        return _tuple(self.batch_axis)

    @property
    def order(self) -> tuple[int, ...]:
        """All axes in the order of the matrix: batch, contracted, output."""
        return (*self.batch, *self.contracted, *self.output)

    def misfit(self, shape: Sequence[int]) -> str | None:
        """Return why these axes do not fit a shape; None if they do.

        Example:
            >>> Axes(0, 1).misfit((3, 3, 64))
            'Axes(0, 1) gives roles to axes 0, 1, and shape (3, 3, 64) has axes 0 to 2'
        """
        ndim = len(shape)
        named = sorted(axis + ndim if axis < 0 else axis for axis in self.order)
        if named == list(range(ndim)):
            return None
        given = ", ".join(map(str, self.order)) or "none"
        return (
            f"{self} gives roles to axes {given}, and shape {tuple(shape)} has axes 0 to {ndim - 1}"
        )

    def normalized(self, ndim: int) -> Axes:
        """Return the roles with all axes counted from the front.

        Args:
            ndim: the number of axes of the weight.
        """
        roles = (self.contracted, self.output, self.batch)
        return Axes(*(tuple(a % ndim for a in role) for role in roles), lookup=self.lookup)

    def is_matrix(self) -> bool:
        """Return whether the axes of the weight are already in the order `(*batch, in, out)`."""
        return self.order == tuple(range(len(self.order))) and (
            len(self.contracted) == len(self.output) == 1
        )

    def matrix_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the weight as matrices `(*batch, in, out)`, each role flattened.

        Args:
            shape: the shape of the weight.
        """
        sizes = [math.prod(shape[a] for a in role) for role in (self.contracted, self.output)]
        return (*(shape[axis] for axis in self.batch), *sizes)

    def to_matrix(self, x: jax.Array) -> jax.Array:
        """Transpose and reshape a weight to matrices `(*batch, in, out)`.

        Example:
            >>> import jax.numpy as jnp
            >>> Axes(in_axis=1, out_axis=0).to_matrix(jnp.arange(6).reshape(3, 2)).tolist()
            [[0, 2, 4], [1, 3, 5]]
        """
        return x.transpose(self.order).reshape(self.matrix_shape(x.shape))

    def from_matrix(self, matrix: jax.Array, shape: Sequence[int]) -> jax.Array:
        """Reshape and transpose matrices `(*batch, in, out)` to the axes of the weight.

        Args:
            matrix: the matrices `(*batch, in, out)`.
            shape: the shape of the weight.
        """
        return matrix.reshape([shape[a] for a in self.order]).transpose(self.inverse)

    @property
    def inverse(self) -> tuple[int, ...]:
        """The inverse of the permutation `order`."""
        return tuple(self.order.index(axis) for axis in range(len(self.order)))

    def __repr__(self) -> str:
        """Return the roles in the form of a call."""
        parts = [repr(self.in_axis), repr(self.out_axis)]
        parts += [f"batch_axis={self.batch_axis!r}"] if self.batch else []
        parts += ["lookup=True"] if self.lookup else []
        return f"Axes({', '.join(parts)})"


def matrix_axes(ndim: int) -> Axes:
    """Return the axes of a stack of matrices `(*batch, in, out)`.

    Args:
        ndim: the number of axes, 2 or more.

    Example:
        >>> matrix_axes(3)
        Axes(1, 2, batch_axis=0)
    """
    return Axes(ndim - 2, ndim - 1, tuple(range(ndim - 2)))


def assumed_axes(shape: Sequence[int]) -> Axes | None:
    """Return the axes that a weight is assumed to have without a graph; None if unclear.

    Two axes are `(in, out)`; four and five are those of Flax's convolutions, `(h, w, in, out)`.

    Example:
        >>> assumed_axes((784, 300)), assumed_axes((3, 3, 8, 16)), assumed_axes((128, 8, 16))
        (Axes(0, 1), Axes((0, 1, 2), 3), None)
    """
    if len(shape) == 2:
        return Axes(0, 1)
    if len(shape) in _CONVOLUTIONS:
        return Axes(tuple(range(len(shape) - 1)), len(shape) - 1)
    return None


def _tuple(axes: AxisOrAxes) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else axes
