"""A mask as compressed sparse rows (CSR)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.base import Field, is_node, node, show, static, summary
from nnopt_jax.arrays.bits import Bits, width_for
from nnopt_jax.arrays.supports.base import Support


@node
class Rows(Support):
    """A mask as compressed sparse rows: the column of each kept element, and where rows start.

    A leaf of any rank is seen as a matrix of the sizes of its last axis: a kernel `(in, out)` has
    a row for each input, a convolution `(h, w, in, out)` one for each `(h, w, in)`. Of the row
    pointers their differences are stored, which need the bits of the fullest row only.

    Args:
        counts: `Bits` (or an integer array), `(rows,)`: kept elements of each row.
        columns: likewise, one for each kept element, in flat order.
        shape: shape of the mask.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Rows
        >>> rows = Rows.of(
        ...     jnp.array([[False, True, True], [False, False, False], [True, False, False]])
        ... )
        >>> rows.starts, rows.columns.materialize()
        (Array([0, 2, 2, 3], dtype=int32), Array([1, 2, 0], dtype=int32))

    References:
        Tinney and Walker 1967, Direct Solutions of Sparse Network Equations; SciPy's `csr_array`.
    """

    counts: Field
    columns: Field
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]

    @classmethod
    def of(cls, mask: jax.Array) -> Rows:
        """Encodes a concrete mask; the number of columns stored depends on it."""
        rows, width = _matrix(mask.shape)
        table = np.asarray(mask).reshape(rows, width)
        counts, columns = table.sum(1), np.nonzero(table)[1]
        fullest = int(counts.max(initial=0))
        return cls(_packed(counts, fullest + 1), _packed(columns, width), tuple(mask.shape))

    @staticmethod
    def cost(mask: np.ndarray) -> int:
        """Bits of what `of` makes of a mask."""
        rows, width = _matrix(mask.shape)
        counts = mask.reshape(rows, width).sum(1)
        fullest = int(counts.max(initial=0))
        return _cost(rows, fullest + 1) + _cost(int(counts.sum()), width)

    @property
    def starts(self) -> jax.Array:
        """Row pointers, int32 `(rows + 1,)`: SciPy's `indptr`; `columns` are its `indices`."""
        counts = show(self.counts).astype(jnp.int32)
        return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts)])

    @property
    def most(self) -> int:
        """As many as there are columns."""
        return self.columns.size

    @property
    def least(self) -> int:
        """As many as there are columns."""
        return self.columns.size

    def materialize(self) -> jax.Array:
        """The bool mask."""
        (rows, width), stored = _matrix(self.shape), self.columns.size
        flat = jnp.zeros(rows * width, bool)
        if not stored:
            return flat.reshape(self.shape)
        counts, columns = (show(x).astype(jnp.int32) for x in (self.counts, self.columns))
        row = jnp.repeat(jnp.arange(rows), counts, total_repeat_length=stored)
        return flat.at[row * width + columns].set(True, mode="drop").reshape(self.shape)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """One count for each row, and a flat run of columns."""
        found = [text for _, field in self.fields() if is_node(field)
                 for text in field.problems(field.shape)]  # fmt: skip
        rows, width = _matrix(self.shape)
        flat = self.counts.shape == (rows,) and self.columns.ndim == 1
        if not flat or self.columns.size > rows * width:
            found.append(f"of {rows} rows has {self.outline()}")
        return found

    def outline(self) -> str:
        """`rows 3-bit[300] columns 7-bit[900]`."""
        return f"rows {summary(self.counts)} columns {summary(self.columns)}"


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows, and the entries of each."""
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def _packed(integers: np.ndarray, kinds: int) -> jax.Array | Bits:
    """Integers below `kinds` in the fewest bits; 17 and more take 32."""
    width = width_for(kinds)
    return Bits.of(integers, width) if width <= 16 else jnp.asarray(integers, jnp.uint32)


def _cost(size: int, kinds: int) -> int:
    """Bits of what `_packed` makes."""
    width = width_for(kinds)
    return Bits.cost((size,), width) if width <= 16 else 32 * size
