"""Tables as plain text: every row a line, every column of one width."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, numbers: int = 0) -> list[str]:
    r"""Pads cells so that columns line up.

    Args:
        rows: of equally many cells.
        numbers: how many columns at the end are set to the right.

    Returns:
        A line for each row.

    Example:
        >>> from nnopt_jax.columns import aligned
        >>> print(*aligned([("leaf", "bytes"), ("dense/bias", "40")], numbers=1), sep="\n")
        leaf        bytes
        dense/bias     40
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(widths) - numbers
    return [
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
