"""The storage form of a masked weight: kept elements, and a sparse layout of the mask."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from nnopt_jax.arrays.ell import ELL, BlockELL, longest_list
from nnopt_jax.arrays.hooks import integers
from nnopt_jax.arrays.index_layouts import SparseLayout
from nnopt_jax.arrays.nodes import Field, Node, is_node, map_elementwise, materialize, node, static
from nnopt_jax.arrays.packed_integers import Bits
from nnopt_jax.arrays.pattern_layouts import BSR
from nnopt_jax.arrays.products.dispatch import prefer_ell, thresholds
from nnopt_jax.arrays.products.integer_products import IntegerWeight, under_mask
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.ops.masks import mask_rank

_WIDE = 8
"""The least number of outputs of a block for block ELL; narrower blocks use ELL."""


@node
class Sparse(Node):
    """The kept elements of a weight, and a sparse layout of its mask.

    The node materializes in three steps: it expands the kept elements, applies the inner formula,
    and computes `where(support, values, 0)`. Scales, zero points and tables stay those of the whole
    array, so that any granularity survives a mask. Products use the dense array, in which a pruned
    weight is an ordinary zero, so an infinite or NaN input times it is NaN. The ELL form, see
    `ELL`, omits these products.

    Args:
        values: array or node whose elementwise fields hold the kept elements, in flat order.
        support: the sparse layout of the mask: `Bits` of width 1, `DeltaIndex`, `CSR`, `NMIndex`,
            `BSR`, or a `Reshaped` view of one of them.
        shape: the logical shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Bits, Sparse
        >>> mask = jnp.array([[True, False], [False, True]])
        >>> Sparse(jnp.array([5.0, 7.0]), Bits.of(mask, 1), mask.shape).materialize()
        Array([[5., 0.],
               [0., 7.]], dtype=float32)
    """

    values: Field
    support: Field
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]

    LINEAR = ("values",)
    TYPED = ("values",)

    def expanded(self) -> tuple[Field, jax.Array]:
        """Return the values at full size, arbitrary where the mask is False, and the mask."""
        mask = materialize(self.support).astype(bool)
        place = mask_rank(mask)

        def expand(kept: jax.Array) -> jax.Array:
            if not kept.size:
                return jnp.zeros(self.shape, kept.dtype)
            return jnp.take(kept, place, mode="clip").reshape(self.shape)

        return map_elementwise(self.values, expand), mask

    def materialize(self) -> jax.Array:
        """Expand and materialize the kept elements, and set all masked entries to zero."""
        values, mask = self.expanded()
        values = materialize(values)
        return jnp.where(mask, values, jnp.zeros((), values.dtype))

    def prepack(self, backend: str) -> Node:
        """Return the ELL form of a kernel, if it is smaller than the array."""
        del backend
        found = self._row_fraction()
        if found is None:
            return self
        mask, sizes, part = found
        width = jnp.dtype(self.dtype).itemsize
        if part * (width + 4 / math.prod(sizes)) >= width:
            return self
        dense = self.materialize()
        return ELL.of(dense, mask) if sizes == (1, 1) else BlockELL.of(dense, sizes, mask)

    def multiplies(self, backend: str) -> bool:
        """Return whether products with the ELL form are faster than with the array."""
        found = self._row_fraction()
        if found is None:
            return False
        _, sizes, part = found
        limits = thresholds(backend)
        return prefer_ell(self.size, part, blocks=sizes != (1, 1), limits=limits)

    def _row_fraction(self) -> tuple[np.ndarray, tuple[int, int], float] | None:
        """Return the mask, block sizes and the longest ELL row as a fraction of the inputs.

        The result is None where there is no ELL form: under `jax.jit`, for ranks other than two,
        and for integers.
        """
        is_traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(self))
        is_float = jnp.issubdtype(self.dtype, jnp.floating)
        if is_traced or self.ndim != 2 or not is_float or not self.size:
            return None
        mask, sizes = np.asarray(materialize(self.support)).astype(bool), (1, 1)
        if isinstance(self.support, BSR):
            tall, wide = (1, 1, *self.support.sizes)[-2:]
            sizes = (tall, wide) if wide >= _WIDE else sizes
        return mask, sizes, longest_list(mask, sizes) * sizes[0] / self.shape[0]

    def integers(self) -> IntegerWeight | None:
        """Return the codes of the values, with codes of zero under the mask."""
        values, mask = self.expanded()
        return under_mask(integers(values), mask)

    def kept(self) -> Field:
        """Return the sparse layout of the mask."""
        return self.support

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that the layout has the shape of the weight and enough values."""
        found = super().problems(self.shape)
        support = self.support.base if isinstance(self.support, Reshaped) else self.support
        if not isinstance(support, (Bits, SparseLayout)) or self.support.shape != self.shape:
            return [*found, f"of shape {self.shape} has support {self.support!r}"]
        shapes = set(_elementwise_shapes(self.values))
        least = support.least if isinstance(support, SparseLayout) else 0
        fits = len(shapes) == 1 and all(len(shape) == 1 for shape in shapes)
        if not (fits and least <= min(shapes)[0] <= math.prod(self.shape)):
            sizes = " and ".join(map(str, sorted(shapes)))
            found.append(f"has values of shape {sizes} for the support {self.support!r}")
        return found

    def store(self) -> Sparse:
        """Return the node itself, which is in storage form already."""
        return self


def _elementwise_shapes(field: Field) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of the arrays with one entry for each kept element."""
    if is_node(field) and field.ELEMENTWISE:
        for name in field.ELEMENTWISE:
            yield from _elementwise_shapes(getattr(field, name))
    else:
        yield tuple(field.shape)
