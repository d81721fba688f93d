"""Measures of the sparsity of a tree: zeros by value and by mask, and threshold-free measures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.nodes import Field, is_node, kept, materialize
from nnopt_jax.columns import Tabular, aligned, brief_fields, counted
from nnopt_jax.pruning.pattern_names import PatternLike, parse_pattern
from nnopt_jax.pruning.patterns import NOfM, Pattern, WholeBlocks, conventional
from nnopt_jax.settings import Settings
from nnopt_jax.transform.validation import check_arrays
from nnopt_jax.tree.paths import flatten


@dataclasses.dataclass(frozen=True)
class SparsityRow:
    r"""The sparsity of one leaf, or of all leaves together.

    Args:
        path: the path of the leaf; `"total"` for all leaves.
        size: the number of entries.
        zeros: the number of entries that are zero in the dense array, -0 included.
        masked: the number of entries that a mask sets to zero; None without a mask.
        outputs: the number of outputs, which is the size of the last axis; None below two axes.
        zero_outputs: the number of outputs whose entries are all zero.
        l1: the sum of magnitudes.
        l2: the root of the sum of squares.
        groups: the number of groups of the pattern; None without a pattern, or if it does not fit
            the shape.
        good_groups: the number of groups that satisfy the pattern: at most `n` nonzero entries in a
            group of `m`, or only zeros in a block.

    Example:
        >>> from nnopt_jax.pruning import SparsityRow
        >>> row = SparsityRow("kernel", 4, 2, None, 2, 1, l1=7.0, l2=5.0)
        >>> row.sparsity, round(row.hoyer, 9)
        (0.5, 0.6)
    """

    path: str
    size: int
    zeros: int
    masked: int | None
    outputs: int | None
    zero_outputs: int | None
    l1: float
    l2: float
    groups: int | None = None
    good_groups: int | None = None

    __repr__ = brief_fields

    @property
    def sparsity(self) -> float:
        """The fraction of zeros."""
        return self.zeros / max(self.size, 1)

    @property
    def effective(self) -> float:
        r"""The number of entries of equal magnitude that would be as sparse: $(L_1 / L_2)^2$."""
        return (self.l1 / self.l2) ** 2 if self.l2 else 0.0

    @property
    def hoyer(self) -> float | None:
        r"""Hoyer's measure, from 0 (all entries equal) to 1 (a single nonzero entry).

        $$ \frac{\sqrt N - L_1 / L_2}{\sqrt N - 1} $$

        None for a single entry, and if all entries are zero.
        """
        if self.size < 2 or not self.l2:
            return None
        root = math.sqrt(self.size)
        return (root - self.l1 / self.l2) / (root - 1)


@dataclasses.dataclass(frozen=True, repr=False)
class SparsityTable(Tabular):
    """A table of the sparsity of each leaf, for printing and for JSON.

    Args:
        rows: a row for each leaf.
        pattern: the pattern of the counted groups, as the caller wrote it.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.measure_sparsity({"kernel": jnp.eye(2)}).total.zeros
        2
    """

    rows: tuple[SparsityRow, ...]
    pattern: str | None = None

    def summary(self) -> str:
        """Return the number of leaves and the sparsity, for `repr`."""
        total = self.total
        return f"{counted(len(self.rows), 'leaf', 'leaves')}, {100 * total.sparsity:.2f} % zeros"

    @property
    def total(self) -> SparsityRow:
        """The table row with the totals of all leaves."""
        return SparsityRow(
            "total",
            sum(row.size for row in self.rows),
            sum(row.zeros for row in self.rows),
            _sum(row.masked for row in self.rows),
            _sum(row.outputs for row in self.rows),
            _sum(row.zero_outputs for row in self.rows),
            math.fsum(row.l1 for row in self.rows),
            math.hypot(*(row.l2 for row in self.rows)),
            _sum(row.groups for row in self.rows),
            _sum(row.good_groups for row in self.rows),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the table as dictionaries and lists, with None for undefined values."""
        return {
            "pattern": self.pattern,
            "rows": [_as_json(row) for row in self.rows],
            "total": _as_json(self.total),
        }

    def __str__(self) -> str:
        """Return the table as text."""
        head = ["leaf", "size", "zeros", "by mask", "zero outputs", "Hoyer", "effective"]
        cells = [head if self.pattern is None else [*head, self.pattern]]
        for row in (*self.rows, self.total):
            line = [
                row.path,
                f"{row.size:,}",
                f"{row.zeros:,} ({100 * row.sparsity:.2f} %)",
                "-" if row.masked is None else f"{row.masked:,}",
                _of(row.zero_outputs, row.outputs),
                "-" if row.hoyer is None else f"{row.hoyer:.3f}",
                f"{row.effective:,.1f}",
            ]
            cells.append([*line, _of(row.good_groups, row.groups)][: len(cells[0])])
        return "\n".join(aligned(cells))


def measure_sparsity(tree: Any, *, pattern: PatternLike = None) -> SparsityTable:
    r"""Measure the sparsity of each array of a tree.

    Zeros are counted by value in the dense arrays and, where a leaf has a mask (in training or
    storage form), by mask, since a kept weight may be zero, too. Hoyer's measure and the effective
    number of entries need no threshold; they measure how close weights are to being sparse.

    $$ \text{Hoyer} = \frac{\sqrt N - L_1 / L_2}{\sqrt N - 1}, \qquad
       \text{effective} = (L_1 / L_2)^2 $$

    Args:
        tree: any pytree of arrays and packed parameters, or the result of `tx.encode`.
        pattern: `"n:m"` counts the groups of `m` inputs with at most `n` nonzero entries; inputs
            are all axes of a leaf but the last, and the second of three axes. Block sizes such as
            `(4, 4)` count the blocks of zeros.

    Returns:
        The table, computed leaf by leaf in float64 on the host.

    Raises:
        ValueRangeError: the pattern is not valid.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"bias": jnp.ones(4), "kernel": jnp.array([[0.0, 3.0], [0.0, 4.0]])}
        >>> print(nnopt.pruning.measure_sparsity(params))
        leaf    size  zeros        by mask  zero outputs  Hoyer  effective
        bias    4     0 (0.00 %)   -        -             0.000  4.0
        kernel  4     2 (50.00 %)  -        1 of 2        0.600  2.0
        total   8     2 (25.00 %)  -        1 of 2        0.430  4.2

    References:
        Hurley and Rickard 2009, Comparing Measures of Sparsity, section 2
        (https://arxiv.org/abs/0811.4706).
    """
    settings = Settings("pruning.measure_sparsity")
    found = parse_pattern(pattern, settings)
    settings.done()
    leaves = flatten(tree, is_node)
    check_arrays("pruning.measure_sparsity", leaves)
    rows = [
        _row(path, leaf, found)
        for path, leaf in leaves.items()
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    ]
    return SparsityTable(tuple(rows), None if pattern is None else str(pattern))


def _row(path: str, leaf: Field, pattern: Pattern) -> SparsityRow:
    dense = np.asarray(materialize(leaf))
    mask = known_mask(leaf)
    magnitudes = np.abs(dense.astype(np.float64))
    groups, good = _groups(dense != 0, pattern)
    matrix = dense.reshape(-1, dense.shape[-1]) if dense.ndim >= 2 and dense.size else None
    return SparsityRow(
        path,
        dense.size,
        int((dense == 0).sum()),
        None if mask is None else int((~mask).sum()),
        None if matrix is None else matrix.shape[1],
        None if matrix is None else int((matrix == 0).all(0).sum()),
        float(magnitudes.sum()),
        float(np.sqrt((magnitudes**2).sum())),
        groups,
        good,
    )


def known_mask(leaf: Field) -> np.ndarray | None:
    """Return the mask of a leaf, in training or storage form; None for an unmasked leaf."""
    mask = kept(leaf)
    return None if mask is None else np.asarray(materialize(mask)).astype(bool)


def _groups(present: np.ndarray, pattern: Pattern) -> tuple[int | None, int | None]:
    """Return the number of groups in an array, and the number that satisfy the pattern."""
    if not present.size or pattern.misfit(present.shape):
        return None, None
    if isinstance(pattern, NOfM):
        axes = conventional(present.shape)
        outputs = math.prod(present.shape[axis] for axis in axes.output)
        split = present.reshape(-1, pattern.m, outputs)  # in the order batch, contracted, output
        good = split.sum(1) <= pattern.n
        return good.size, int(good.sum())
    if not isinstance(pattern, WholeBlocks):
        return None, None
    for axis, part in enumerate(pattern.block(present.shape)):
        starts = np.arange(0, present.shape[axis], part)
        present = np.logical_or.reduceat(present, starts, axis)
    return present.size, int((~present).sum())


def _sum(values: Iterable[int | None]) -> int | None:
    """Return the sum of the values that are not None; None if all are."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _of(part: int | None, whole: int | None) -> str:
    return "-" if part is None or whole is None else f"{part:,} of {whole:,}"


def _as_json(row: SparsityRow) -> dict[str, Any]:
    measures = {"sparsity": row.sparsity, "hoyer": row.hoyer, "effective": row.effective}
    raw = dataclasses.asdict(row) | measures
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in raw.items()}
