"""Classes of rows and columns with about the same distribution of symbols.

After pruning, some inputs and outputs of a layer have more weights than others, and after
quantization with one scale, larger codes. Rows and columns are sorted by activity; blocks with an
equal sum of row class and column class then have about the same distribution of symbols, and share
a frequency table.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

CLASSES = 32
"""The number of classes of rows, and of columns."""
_STEPS = 2
"""The number of classes for a doubling of the activity of a row."""
_COMMON = 0.25

Block = tuple[np.ndarray, np.ndarray]
"""The indices of rows and of columns."""


def find_classes(matrix: np.ndarray, counts: np.ndarray, center: int) -> list[np.ndarray]:
    """Sort the rows and columns of a matrix of symbols into classes.

    The activity of a row is the number of its symbols other than the most common one or, if no
    symbol is common, their distance from the center.

    Args:
        matrix: `(rows, columns)`, not empty.
        counts: how often each symbol occurs, see `count_symbols`.
        center: the first symbol that stands for a non-negative value.

    Returns:
        The classes of the rows and of the columns, uint8 below `CLASSES`.

    Example:
        >>> find_classes(np.array([[0, 0, 0, 0], [0, 1, 0, 1]]), np.array([6, 2]), 0)
        [array([ 0, 31], dtype=uint8), array([ 0, 31,  0, 31], dtype=uint8)]
    """
    top = int(counts.argmax())
    if counts[top] >= _COMMON * matrix.size:
        weight = (np.arange(len(counts)) != top).astype(np.float32)
    else:
        weight = np.abs(np.arange(len(counts), dtype=np.float32) - center)
    classes = []
    for axis in (1, 0):
        busy = weight[matrix].mean(axis)
        level = np.rint(
            _STEPS * np.log2(np.maximum(busy, 2.0 ** -(CLASSES // _STEPS) * busy.max()))
        )
        classes.append(np.clip(level - level.min(), 0, CLASSES - 1).astype(np.uint8))
    return classes


def class_blocks(rows: np.ndarray, columns: np.ndarray) -> list[list[Block]]:
    """List the blocks of each sum of row and column class that occurs, in a fixed order.

    Args:
        rows: the classes of the rows.
        columns: the classes of the columns.

    Example:
        >>> found = class_blocks(np.array([0, 1, 0]), np.array([0, 0]))
        >>> [[(a.tolist(), b.tolist()) for a, b in block] for block in found]
        [[([0, 2], [0, 1])], [([1], [0, 1])]]
    """
    by_sum: dict[int, list[Block]] = {}
    for row, its_rows in _members(rows):
        for column, its_columns in _members(columns):
            by_sum.setdefault(row + column, []).append((its_rows, its_columns))
    return [by_sum[total] for total in sorted(by_sum)]


def _members(classes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for kind in np.unique(classes).tolist():
        yield kind, np.flatnonzero(classes == kind)


def gather(matrix: np.ndarray, blocks: list[Block]) -> np.ndarray:
    """Return the symbols of one class, flat."""
    return np.concatenate([matrix[np.ix_(*block)].ravel() for block in blocks])


def scatter(matrix: np.ndarray, blocks: list[Block], symbols: np.ndarray) -> None:
    """Put the symbols of one class back where `gather` took them."""
    at = 0
    for rows, columns in blocks:
        size = len(rows) * len(columns)
        matrix[np.ix_(rows, columns)] = symbols[at : at + size].reshape(len(rows), -1)
        at += size
