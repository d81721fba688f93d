"""Sparse layouts of scattered entries: delta index and compressed sparse rows (CSR)."""

from __future__ import annotations

import math
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.nodes import Field, Node, is_node, node, show, static, summary
from nnopt_jax.arrays.packed_integers import Bits, width_for


class SparseLayout(Node):
    """Base of the nodes that stand for a mask; a plain bit for each element is `Bits` of width 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import DeltaIndex
        >>> support = DeltaIndex.of(jnp.array([False, True]), width=2)
        >>> support.dtype, support.most
        (dtype('bool'), 1)
    """

    @property
    def dtype(self) -> jnp.dtype:
        """Always bool."""
        return jnp.dtype(jnp.bool_)

    @property
    def most(self) -> int:
        """The most elements that can be kept, told from shapes alone."""
        return self.size

    @property
    def least(self) -> int:
        """The least number of elements that are kept, told from shapes alone."""
        return 0

    def store(self) -> Self:
        """Already in storage form."""
        return self


@node
class DeltaIndex(SparseLayout):
    """A mask as relative indices: how many masked elements lie before each kept one.

    A gap of `2^width - 1` stands for that many masked elements and no kept one, so that long
    gaps are sums. Stands for a bool array.

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

    @classmethod
    def of(cls, mask: jax.Array, width: int | None = None) -> DeltaIndex:
        """Encodes a concrete mask; the number of codes depends on it, and the best width too."""
        between = _entries_between(np.asarray(mask))
        width = _best_width(between) if width is None else width
        escape = 2**width - 1
        codes = np.full(_code_count(between, width), escape, np.int32)
        codes[np.cumsum(between // escape + 1) - 1] = between % escape
        return cls(Bits.of(codes, width), tuple(mask.shape), width)

    @staticmethod
    def cost(mask: np.ndarray) -> int:
        """Bits of what `of` makes of a mask, in the best width."""
        between = _entries_between(mask)
        width = _best_width(between)
        return Bits.cost((_code_count(between, width),), width)

    @property
    def most(self) -> int:
        """No more than there are codes."""
        return self.codes.size

    def materialize(self) -> jax.Array:
        """The bool mask."""
        codes = show(self.codes).astype(jnp.int32)
        kept = codes != 2**self.width - 1
        position = jnp.cumsum(codes + kept.astype(jnp.int32)) - 1
        size = math.prod(self.shape)
        flat = jnp.zeros(size, bool).at[jnp.where(kept, position, size)].set(True, mode="drop")
        return flat.reshape(self.shape)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """The codes must be a flat run of integers."""
        codes = super().problems(shape)
        if self.codes.ndim != 1 or not 1 <= self.width <= 16:
            codes.append(f"has codes {self.codes!r} of width {self.width!r}")
        return codes

    def outline(self) -> str:
        """`gaps 5-bit[8000]`."""
        return f"gaps {summary(self.codes)}"


def _entries_between(mask: np.ndarray) -> np.ndarray:
    """Masked elements before each kept one, in flat order."""
    return np.diff(np.flatnonzero(mask), prepend=-1) - 1


def _best_width(between: np.ndarray) -> int:
    """The width of 2 to 8 bits that needs the fewest bits; 1 bit would be a bit an element."""
    costs = {width: _code_count(between, width) * width for width in range(2, 9)}
    return min(costs, key=costs.__getitem__)


def _code_count(between: np.ndarray, width: int) -> int:
    """How many codes gaps take, those included that stand for no kept element."""
    return int((between // (2**width - 1) + 1).sum())


@node
class CSR(SparseLayout):
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

    @classmethod
    def of(cls, mask: jax.Array) -> CSR:
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
        return _packed_cost(rows, fullest + 1) + _packed_cost(int(counts.sum()), width)

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


def _packed_cost(size: int, kinds: int) -> int:
    """Bits of what `_packed` makes."""
    width = width_for(kinds)
    return Bits.cost((size,), width) if width <= 16 else 32 * size
