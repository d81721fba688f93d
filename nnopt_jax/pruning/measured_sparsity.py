"""How sparse a tree is: zeros by value and by mask, and measures that need no threshold."""

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
from nnopt_jax.transform.given import require_arrays
from nnopt_jax.tree.paths import flatten


@dataclasses.dataclass(frozen=True)
class SparsityRow:
    r"""One leaf, or all together.

    Args:
        path: its name; `"total"` of all.
        size: number of entries.
        zeros: entries that are shown as zero, -0 included.
        masked: entries that a mask says are zero; None where there is no mask.
        outputs: indices of the last axis; None below two axes.
        zero_outputs: those of them whose entries are all zero.
        l1: sum of magnitudes.
        l2: root of the sum of squares.
        groups: groups of the pattern; None without one, or where it does not fit the shape.
        good_groups: those of them that have at most `n` entries that are not zero, or, of blocks,
            those that are all zero.

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
        r"""How many entries of one magnitude would be as sparse: $(L_1 / L_2)^2$."""
        return (self.l1 / self.l2) ** 2 if self.l2 else 0.0

    @property
    def hoyer(self) -> float | None:
        r"""Hoyer's measure, from 0 (all alike) to 1 (a single entry).

        $$ \frac{\sqrt N - L_1 / L_2}{\sqrt N - 1} $$

        None of a single entry, and where all are zero.
        """
        if self.size < 2 or not self.l2:
            return None
        root = math.sqrt(self.size)
        return (root - self.l1 / self.l2) / (root - 1)


@dataclasses.dataclass(frozen=True, repr=False)
class SparsityTable(Tabular):
    """A printable, JSON-able table of how sparse each leaf is.

    Args:
        rows: one for each leaf.
        pattern: what groups were counted, as it was written.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.measure_sparsity({"kernel": jnp.eye(2)}).total.zeros
        2
    """

    rows: tuple[SparsityRow, ...]
    pattern: str | None = None

    def summary(self) -> str:
        """Return what `repr` shows."""
        total = self.total
        return f"{counted(len(self.rows), 'leaf', 'leaves')}, {100 * total.sparsity:.2f} % zeros"

    @property
    def total(self) -> SparsityRow:
        """All leaves, laid end to end."""
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
        """The table as dictionaries and lists; what is undefined is None."""
        return {
            "pattern": self.pattern,
            "rows": [_as_json(row) for row in self.rows],
            "total": _as_json(self.total),
        }

    def __str__(self) -> str:
        """The table."""
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
    r"""Measures how sparse the arrays are that a tree shows.

    Zeros are counted by value in the dense arrays, and by mask where a mask (in training form or
    stored) says which entries are zero: a kept weight may be zero by value. Hoyer's measure and the
    effective number need no threshold, and tell how far weights are from being sparse.

    $$ \text{Hoyer} = \frac{\sqrt N - L_1 / L_2}{\sqrt N - 1}, \qquad
       \text{effective} = (L_1 / L_2)^2 $$

    Args:
        tree: any pytree of arrays and expressions; packed parameters, or what `tx.encode` returns.
        pattern: `"n:m"`: counts the groups of `m` along the inputs, which are all axes of a leaf
            but the last (of three axes the second), that have at most `n` entries which are not
            zero. Block sizes such as `(4, 4)`: counts the blocks that are all zero.

    Returns:
        The `SparsityTable`; leaf by leaf, sums are computed in float64 on the host.

    Raises:
        ValueRangeError: the pattern cannot be read.

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
    require_arrays("pruning.measure_sparsity", leaves)
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
    """What masks say is kept, of a leaf in training form or stored; None where there is no mask."""
    mask = kept(leaf)
    return None if mask is None else np.asarray(materialize(mask)).astype(bool)


def _groups(present: np.ndarray, pattern: Pattern) -> tuple[int | None, int | None]:
    """Groups of a pattern, and how many are good."""
    if not present.size or pattern.misfit(present.shape):
        return None, None
    if isinstance(pattern, NOfM):
        axes = conventional(present.shape)
        outputs = math.prod(present.shape[axis] for axis in axes.output)
        split = present.reshape(-1, pattern.m, outputs)  # batch, contracted, output: in this order
        good = split.sum(1) <= pattern.n
        return good.size, int(good.sum())
    if not isinstance(pattern, WholeBlocks):
        return None, None
    for axis, part in enumerate(pattern.block(present.shape)):
        starts = np.arange(0, present.shape[axis], part)
        present = np.logical_or.reduceat(present, starts, axis)
    return present.size, int((~present).sum())


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum of those there are."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _of(part: int | None, whole: int | None) -> str:
    return "-" if part is None or whole is None else f"{part:,} of {whole:,}"


def _as_json(row: SparsityRow) -> dict[str, Any]:
    measures = {"sparsity": row.sparsity, "hoyer": row.hoyer, "effective": row.effective}
    raw = dataclasses.asdict(row) | measures
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in raw.items()}
