"""Large arrays cut into classes of like rows and columns, each with statistics of its own.

Pruning leaves some inputs and some outputs of a layer more weights than others, and quantization
with one scale leaves them larger codes. Rows and columns are sorted by how busy they are; blocks
of equal sums of row and column class then hold symbols of about one distribution.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

COUNT = 32
"""Of rows, and of columns."""
_STEPS = 2
"""Classes to a doubling of how busy a row is."""
_COMMON = 0.25

Block = tuple[np.ndarray, np.ndarray]
"""Numbers of rows and of columns."""


def find(matrix: np.ndarray, alphabet: int, center: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes of the rows and columns of a matrix of symbols.

    A symbol is busy where it is not the most common one; where none is common, the busier the
    farther it lies from the center.

    Args:
        matrix: `(rows, columns)`, at least one of each.
        alphabet: symbols lie below it.
        center: the first symbol that stands for zero or more.

    Returns:
        uint8 below `COUNT`, `(rows,)` and `(columns,)`.

    Example:
        >>> find(np.array([[0, 0, 0, 0], [0, 1, 0, 1]]), 2, 0)
        (array([ 0, 31], dtype=uint8), array([ 0, 31,  0, 31], dtype=uint8))
    """
    counts = np.bincount(matrix.ravel(), minlength=alphabet)
    top = int(counts.argmax())
    if counts[top] >= _COMMON * matrix.size:
        weight = (np.arange(alphabet) != top).astype(np.float32)
    else:
        weight = np.abs(np.arange(alphabet, dtype=np.float32) - center)
    busy = weight[matrix]
    return _classes(busy.mean(1)), _classes(busy.mean(0))


def _classes(busy: np.ndarray) -> np.ndarray:
    level = np.rint(_STEPS * np.log2(np.maximum(busy, 2.0 ** -(COUNT // _STEPS) * busy.max())))
    return np.clip(level - level.min(), 0, COUNT - 1).astype(np.uint8)


def blocks(rows: np.ndarray, columns: np.ndarray) -> list[list[Block]]:
    """The blocks of each class of symbols, in a fixed order.

    Args:
        rows: classes of the rows.
        columns: classes of the columns.

    Returns:
        For every sum of classes that occurs, its blocks.

    Example:
        >>> found = blocks(np.array([0, 1, 0]), np.array([0, 0]))
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


def gather(matrix: np.ndarray, of_class: list[Block]) -> np.ndarray:
    """The symbols of one class, flat.

    Example:
        >>> gather(np.array([[1, 2], [3, 4]]), [(np.array([1]), np.array([0, 1]))])
        array([3, 4])
    """
    return np.concatenate([matrix[np.ix_(*block)].ravel() for block in of_class])


def scatter(matrix: np.ndarray, of_class: list[Block], symbols: np.ndarray) -> None:
    """Puts the symbols of one class where `gather` took them."""
    at = 0
    for rows, columns in of_class:
        size = len(rows) * len(columns)
        matrix[np.ix_(rows, columns)] = symbols[at : at + size].reshape(len(rows), -1)
        at += size
