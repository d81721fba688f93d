"""Sparse layouts of scattered entries: delta index and compressed sparse rows (CSR)."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.nodes import Field, Node, materialize, node, static, summary
from nnopt_jax.arrays.packed_integers import Bits, width_for


class SparseLayout(Node):
    """Base of the sparse layouts of a mask; `Bits` of width 1 serves as a layout, too.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import DeltaIndex
        >>> support = DeltaIndex.of(jnp.array([False, True]), width=2)
        >>> support.dtype, support.most
        (dtype('bool'), 1)
    """

    INDICES: ClassVar[tuple[str, ...]] = ()
    """Fields of indices that a mask determines, if the layout has one for each kept element."""

    def host_mask(self, *indices: np.ndarray) -> np.ndarray:
        """Compute the mask of indices given in the order of `INDICES`, with NumPy.

        Raises:
            IndexError: the indices reach beyond the mask.
        """
        raise NotImplementedError

    def host_indices(self, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        """Compute the indices of a mask, in the order of `INDICES`, with NumPy."""
        raise NotImplementedError

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of a mask: bool."""
        return jnp.dtype(jnp.bool_)

    @property
    def most(self) -> int:
        """The greatest number of elements that can be kept, derived from shapes alone."""
        return self.size

    @property
    def least(self) -> int:
        """The smallest number of elements that can be kept, derived from shapes alone."""
        return 0

    def store(self) -> Self:
        """Return the node itself, which is in storage form already."""
        return self


@node
class DeltaIndex(SparseLayout):
    """A mask as relative indices: the number of masked elements before each kept one.

    A gap of `2^width - 1` stands for that many masked elements that no kept one follows, so that a
    long gap is written as a sum. The node stands for a bool array.

    Args:
        codes: `Bits` (or an integer array) of the gaps, in flat order.
        shape: shape of the mask.
        width: bits of a gap.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import DeltaIndex
        >>> gaps = DeltaIndex.of(jnp.array([False, True, False, False, False, True]), width=2)
        >>> gaps.codes.materialize(), gaps.materialize()
        (Array([1, 3, 0], dtype=int32), Array([False,  True, False, False, False,  True], dtype=bool))

    References:
        Han et al. 2016, Deep Compression, section 2 (relative indices; they pad with zeros).
    """  # noqa: E501 - printed by the doctest

    codes: Field
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]
    width: int = static(default=8)

    INDICES = ("codes",)

    @classmethod
    def of(cls, mask: jax.Array, width: int | None = None) -> DeltaIndex:
        """Encode a concrete mask with the given or the best width."""
        between = _entries_between(np.asarray(mask))
        width = _best_width(between) if width is None else width
        return cls(Bits.of(_delta_codes(between, width), width), tuple(mask.shape), width)

    @staticmethod
    def cost(mask: np.ndarray) -> int:
        """Return the bits that `of` needs for a mask, at the best width."""
        between = _entries_between(mask)
        width = _best_width(between)
        return Bits.cost((_code_count(between, width),), width)

    @property
    def most(self) -> int:
        """The greatest number of kept elements: one for each code."""
        return self.codes.size

    def materialize(self) -> jax.Array:
        """Return the bool mask."""
        codes = materialize(self.codes).astype(jnp.int32)
        kept = codes != 2**self.width - 1
        position = jnp.cumsum(codes + kept.astype(jnp.int32)) - 1
        size = math.prod(self.shape)
        flat = jnp.zeros(size, bool).at[jnp.where(kept, position, size)].set(True, mode="drop")
        return flat.reshape(self.shape)

    def host_mask(self, *indices: np.ndarray) -> np.ndarray:
        """Compute the mask from gaps, with NumPy."""
        codes = indices[0].astype(np.int64)
        kept = codes != 2**self.width - 1
        places = (np.cumsum(codes + kept) - 1)[kept]
        mask = np.zeros(self.size, bool)
        mask[places] = True
        return mask.reshape(self.shape)

    def host_indices(self, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        """Compute the gaps of a mask, with NumPy."""
        return (_delta_codes(_entries_between(mask), self.width),)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that the codes are integers on one axis."""
        codes = super().problems(shape)
        if self.codes.ndim != 1 or not 1 <= self.width <= 16:
            codes.append(f"has codes {self.codes!r} of width {self.width!r}")
        return codes

    def outline(self) -> str:
        """Return a summary such as `gaps 5-bit[8000]`."""
        return f"gaps {summary(self.codes)}"


def _entries_between(mask: np.ndarray) -> np.ndarray:
    """Return the number of masked elements before each kept one, in flat order."""
    return np.diff(np.flatnonzero(mask), prepend=-1) - 1


def _delta_codes(between: np.ndarray, width: int) -> np.ndarray:
    """Return the codes of gaps: `2^width - 1` means that the gap continues in the next code."""
    escape = 2**width - 1
    codes = np.full(_code_count(between, width), escape, np.int64)
    codes[np.cumsum(between // escape + 1) - 1] = between % escape
    return codes


def _best_width(between: np.ndarray) -> int:
    """Return the width from 2 to 8 bits that needs the fewest bits in total."""
    costs = {width: _code_count(between, width) * width for width in range(2, 9)}
    return min(costs, key=costs.__getitem__)


def _code_count(between: np.ndarray, width: int) -> int:
    """Count the codes, including those that only extend a long gap."""
    return int((between // (2**width - 1) + 1).sum())


@node
class CSR(SparseLayout):
    """A mask as compressed sparse rows: the column of each kept element, and row counts.

    A leaf of any rank is read as a matrix whose columns are the last axis: a kernel `(in, out)` has
    a row for each input, a convolution `(h, w, in, out)` one for each `(h, w, in)`. Row counts are
    stored in place of row pointers, because they need only the bits of the fullest row.

    Args:
        counts: `Bits` (or an integer array), `(rows,)`: kept elements of each row.
        columns: `Bits` (or an integer array), the column of each kept element, in flat order.
        shape: shape of the mask.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import CSR
        >>> rows = CSR.of(
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

    INDICES = ("counts", "columns")

    @classmethod
    def of(cls, mask: jax.Array) -> CSR:
        """Encode a concrete mask; the mask determines the shapes of the arrays."""
        counts, columns = _rows_of(np.asarray(mask))
        width, fullest = _matrix(mask.shape)[1], int(counts.max(initial=0))
        return cls(_pack(counts, fullest + 1), _pack(columns, width), tuple(mask.shape))

    @staticmethod
    def cost(mask: np.ndarray) -> int:
        """Return the bits that `of` needs for a mask."""
        rows, width = _matrix(mask.shape)
        counts = mask.reshape(rows, width).sum(1)
        fullest = int(counts.max(initial=0))
        return _pack_cost(rows, fullest + 1) + _pack_cost(int(counts.sum()), width)

    @property
    def starts(self) -> jax.Array:
        """The row pointers, int32 `(rows + 1,)`: SciPy's `indptr`; `columns` are its `indices`."""
        counts = materialize(self.counts).astype(jnp.int32)
        return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts)])

    @property
    def most(self) -> int:
        """The number of kept elements, one for each entry of `columns`."""
        return self.columns.size

    @property
    def least(self) -> int:
        """The number of kept elements, one for each entry of `columns`."""
        return self.columns.size

    def materialize(self) -> jax.Array:
        """Return the bool mask."""
        (rows, width), stored = _matrix(self.shape), self.columns.size
        flat = jnp.zeros(rows * width, bool)
        if not stored:
            return flat.reshape(self.shape)
        counts, columns = (materialize(x).astype(jnp.int32) for x in (self.counts, self.columns))
        row = jnp.repeat(jnp.arange(rows), counts, total_repeat_length=stored)
        return flat.at[row * width + columns].set(True, mode="drop").reshape(self.shape)

    def host_mask(self, *indices: np.ndarray) -> np.ndarray:
        """Compute the mask from counts and columns, with NumPy."""
        counts, columns = indices
        table = np.zeros(_matrix(self.shape), bool)
        table[np.repeat(np.arange(len(counts)), counts), columns] = True
        return table.reshape(self.shape)

    def host_indices(self, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        """Compute the counts and the columns of a mask, with NumPy."""
        return _rows_of(mask)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that there is one count for each row, and that the columns have one axis."""
        found = self.inner_problems()
        rows, width = _matrix(self.shape)
        flat = self.counts.shape == (rows,) and self.columns.ndim == 1
        if not flat or self.columns.size > rows * width:
            found.append(f"of {rows} rows has {self.outline()}")
        return found

    def outline(self) -> str:
        """Return a summary such as `rows 3-bit[300] columns 7-bit[900]`."""
        return f"rows {summary(self.counts)} columns {summary(self.columns)}"


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the number of rows and the length of a row."""
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def _rows_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of kept elements of each row, and the column of each."""
    table = mask.reshape(_matrix(mask.shape))
    return table.sum(1, dtype=np.int64), np.nonzero(table)[1]


def _pack(integers: np.ndarray, kinds: int) -> jax.Array | Bits:
    """Pack integers below `kinds` in the fewest bits, or in int32 from 17 bits on."""
    width = width_for(kinds)
    return Bits.of(integers, width) if width <= 16 else jnp.asarray(integers, jnp.uint32)


def _pack_cost(size: int, kinds: int) -> int:
    """Return the bits that `_pack` needs."""
    width = width_for(kinds)
    return Bits.cost((size,), width) if width <= 16 else 32 * size
