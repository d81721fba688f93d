"""Sparse weights in ELL form (padded rows), the fastest form for products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nnopt_jax.arrays.hooks import CannotStayPacked, Moves
from nnopt_jax.arrays.nodes import Field, Node, node, static
from nnopt_jax.arrays.products.contraction import Contraction
from nnopt_jax.arrays.products.integer_products import in_rows
from nnopt_jax.arrays.products.product import Product, dense_product, differentiated_as
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.typing import Array, Shape

UNROLLED = 8
"""The number of list entries that are summed before the sum is written. Writing it an eighth as
often makes products of 32 rows five times as fast.
"""


class _PaddedRows(Node):
    """Base of the nodes that list the inputs of each output (ELL) or output block (block ELL)."""

    indices: jax.Array
    values: jax.Array

    LINEAR = ("values",)
    TYPED = ("values",)

    @property
    def dtype(self) -> Any:
        """The dtype of the values."""
        return self.values.dtype

    def store(self) -> Self:
        """Return the node itself, which is in storage form already."""
        return self

    def move(self, movement: Moves, shape: Shape) -> Field:
        """Return a transposed view of this node, without changing the lists."""
        if not movement.axes:
            raise CannotStayPacked("one of its fields cannot be moved")
        return Reshaped.of(self, movement.axes)

    def _product(self, x: Array, how: Product, exact: Callable[..., Array]) -> Array:
        """Compute the product by `exact`, with the derivatives of the dense product.

        The derivative with regard to the array is a product with the transposed weight, for which
        the lists of inputs are no help.
        """
        how = how.as_contraction()
        if tuple(how.right) != (0,):
            raise CannotStayPacked("it is prepacked for sums over its first axis")
        if not x.size:
            raise CannotStayPacked("nothing is multiplied")
        return differentiated_as(dense_product, exact, how, x, self)


@node
class ELL(_PaddedRows):
    r"""A sparse matrix in ELL form: each output lists as many inputs as the fullest one has.

    $$ W_{a_{kj}, j} = v_{kj}, \qquad (x W)_j = \sum_k x_{a_{kj}} v_{kj} $$

    No output lists an input twice. Outputs with fewer weights list other inputs as well, with
    weights of zero, so that every entry of a list is a valid position and no padding mark is
    needed.

    A pruned weight is not a connection: an infinite or NaN input does not reach an output that does
    not list it, while a product with the dense array computes `0 * inf`, which is NaN.

    Args:
        indices: `a`, int32, `(longest list, outputs)`: inputs, ascending along axis 0.
        values: `v`, float, likewise.
        shape: `(inputs, outputs)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import ELL
        >>> few = ELL.of(jnp.array([[0.0, 7.0], [5.0, 0.0], [0.0, 0.0]]))
        >>> few, few.indices
        (ELL(indices int32[1,2], values float32[1,2], 21.33 bits/weight), Array([[1, 0]], dtype=int32))

    References:
        Kincaid et al. 1989, ITPACKV 2D User's Guide (ELLPACK, stored by columns).
    """  # noqa: E501 - printed by the doctest

    indices: jax.Array
    values: jax.Array
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]

    @classmethod
    def of(cls, dense: jax.Array, mask: jax.Array | np.ndarray | None = None) -> ELL:
        """Convert a concrete matrix; `mask` selects the entries to store, by default nonzeros."""
        matrix, kept = _concrete(dense, mask)
        lists = _lists(kept)
        indices = np.ascontiguousarray(lists.T)
        values = np.take_along_axis(matrix, indices, 0)
        return cls(jnp.asarray(indices), jnp.asarray(values), tuple(matrix.shape))

    def materialize(self) -> jax.Array:
        """Scatter the values into zeros."""
        empty = jnp.zeros(self.shape, self.dtype)
        places = self.indices, jnp.arange(self.shape[1])
        return empty.at[places].set(self.values, mode="drop", unique_indices=True)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that both lists have the same shape and are at most as long as the inputs."""
        inputs, outputs = self.shape
        lists = longest, count = self.indices.shape
        fits = self.values.shape == lists and count == outputs and longest <= inputs
        return [] if fits and _is_integer(self.indices) else _misfit(self)

    def dot(self, x: Array, how: Product) -> Array:
        r"""Compute `(x W)_j = sum_k x_{a_kj} v_kj`, one list entry of all outputs at a time."""
        return self._product(x, how, _by_places)


@node
class BlockELL(_PaddedRows):
    r"""A block-sparse matrix in ELL form: each output block lists equally many input blocks.

    $$ W_{[a_{jk}], [j]} = v_{jk}^T, \qquad (x W)_{[j]} = \sum_k v_{jk} \, x_{[a_{jk}]} $$

    No block of outputs lists a block of inputs twice. Short lists are padded with other blocks,
    whose values are zero, as in `ELL`.

    Args:
        indices: `a`, int32, `(blocks of outputs, longest list)`: blocks of inputs, ascending along
            axis 1.
        values: `v`, float, `(blocks of outputs, outputs of a block, longest list, inputs of a
            block)`, such that the entries of each sum lie together.
        shape: `(inputs, outputs)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import BlockELL
        >>> weight = jnp.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
        >>> few = BlockELL.of(weight, (2, 2))
        >>> few.indices, few.values.shape
        (Array([[0]], dtype=int32), (1, 2, 1, 2))

    References:
        Choi et al. 2010, Model-driven autotuning of sparse matrix-vector multiply on GPUs (blocked
        ELLPACK).
    """

    indices: jax.Array
    values: jax.Array
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]

    @classmethod
    def of(
        cls, dense: jax.Array, sizes: tuple[int, int], mask: jax.Array | np.ndarray | None = None
    ) -> BlockELL:
        """Convert a concrete matrix; `mask` selects the blocks that hold an entry to store."""
        matrix, kept = _concrete(dense, mask)
        (inputs, outputs), (tall, wide) = matrix.shape, sizes
        split = inputs // tall, tall, outputs // wide, wide
        indices = _lists(_grid(kept, sizes))
        blocks = matrix.reshape(split).transpose(2, 0, 3, 1)
        values = blocks[np.arange(len(indices))[:, None], indices].transpose(0, 2, 1, 3)
        values = jnp.asarray(np.ascontiguousarray(values))
        return cls(jnp.asarray(indices), values, tuple(matrix.shape))

    def materialize(self) -> jax.Array:
        """Scatter the blocks into zeros."""
        count, wide, _, tall = self.values.shape
        empty = jnp.zeros((count, self.shape[0] // tall, wide, tall), self.dtype)
        places = jnp.arange(count)[:, None], self.indices
        blocks = self.values.transpose(0, 2, 1, 3)
        filled = empty.at[places].set(blocks, mode="drop", unique_indices=True)
        return filled.transpose(1, 3, 0, 2).reshape(self.shape)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that blocks divide the matrix, and that no list is longer than the input blocks."""
        inputs, outputs = self.shape
        count, wide, longest, tall = self.values.shape
        fits = self.indices.shape == (count, longest) and count * wide == outputs
        fits = fits and tall > 0 and inputs % tall == 0 and longest * tall <= inputs
        return [] if fits and _is_integer(self.indices) else _misfit(self)

    def dot(self, x: Array, how: Product) -> Array:
        r"""Compute `(x W)_[j] = sum_k v_jk x_[a_jk]`, for all output blocks at once or in a loop.

        Computing all at once keeps the gathered inputs of all output blocks in memory. This is
        faster while they are smaller than the weight, which holds for fewer rows than a block has
        outputs.
        """
        return self._product(x, how, _by_blocks)


def longest_list(mask: np.ndarray, sizes: tuple[int, int]) -> int:
    """Return the greatest number of input blocks that an output block uses, at least 1.

    Example:
        >>> import numpy as np
        >>> longest_list(np.array([[True, False], [True, True]]), (1, 1))
        2
    """
    return max(int(_grid(mask, sizes).sum(0).max(initial=0)), 1)


def _grid(mask: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
    """Return for each block whether the mask keeps any of its entries."""
    (inputs, outputs), (tall, wide) = mask.shape, sizes
    split = mask.reshape(inputs // tall, tall, outputs // wide, wide)
    return np.asarray(split.any((1, 3)))


def _concrete(
    dense: jax.Array, mask: jax.Array | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the masked matrix and the mask as NumPy arrays."""
    matrix = np.asarray(dense)
    kept = matrix != 0 if mask is None else np.asarray(mask)
    return np.where(kept, matrix, matrix.dtype.type(0)), kept


def _lists(kept: np.ndarray) -> np.ndarray:
    """Return the indices of the kept inputs of each output, padded with those of other inputs."""
    longest = longest_list(kept, (1, 1))
    first = np.argsort(~kept.T, axis=1, kind="stable")[:, :longest]
    return np.sort(first, axis=1).astype(np.int32)


def _is_integer(indices: jax.Array) -> bool:
    return bool(jnp.issubdtype(indices.dtype, jnp.integer))


def _misfit(field: ELL | BlockELL) -> list[str]:
    """Report that the shapes of the fields do not fit the shape of the matrix."""
    return [f"of shape {field.shape} has {field.outline()}"]


def _by_places(how: Contraction, x: Array, weight: ELL) -> Array:
    columns, dtype = _columns(x, weight, how)

    def add(total: Array, place: tuple[Array, Array]) -> tuple[Array, None]:
        index, value = place
        taken = columns.at[index].get(mode="promise_in_bounds")
        return total + taken * value.astype(dtype)[:, None], None

    nothing = jnp.zeros((weight.shape[1], columns.shape[1]), dtype)
    found, _ = lax.scan(add, nothing, (weight.indices, weight.values), unroll=UNROLLED)
    return _in_contraction_order(found, x, how)


def _by_blocks(how: Contraction, x: Array, weight: BlockELL) -> Array:
    count, wide, longest, tall = weight.values.shape
    columns, dtype = _columns(x, weight, how)
    rows = columns.shape[1]
    blocks = columns.reshape(-1, tall, rows)
    values = weight.values.astype(dtype).reshape(count, wide, longest * tall)
    precision = dict(how.settings).get("precision")

    def one(block: tuple[Array, Array]) -> Array:
        index, value = block
        taken = blocks.at[index].get(mode="promise_in_bounds")
        return jnp.matmul(value, taken.reshape(-1, rows), precision=precision)

    if rows >= wide:
        found = lax.map(one, (weight.indices, values))
    else:
        taken = blocks.at[weight.indices].get(mode="promise_in_bounds")
        taken = taken.reshape(count, longest * tall, rows)
        found = jnp.matmul(values, taken, precision=precision)
    return _in_contraction_order(found.reshape(count * wide, rows), x, how)


def _columns(x: Array, weight: ELL | BlockELL, how: Contraction) -> tuple[Array, Any]:
    """Return the array as (contracted, rows), and the dtype in which products are summed."""
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, weight.dtype), jnp.float32)
    return in_rows(x, how).T.astype(dtype), dtype


def _in_contraction_order(found: Array, x: Array, how: Contraction) -> Array:
    """Return products of shape (outputs, rows) in the axis order of the contraction."""
    free = [x.shape[axis] for axis in how.left_free(x.ndim)]
    return found.T.reshape(*free, found.shape[0]).astype(how.dtype(x))
