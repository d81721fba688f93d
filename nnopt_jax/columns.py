"""Tables as plain text: every row a line, every column of one width."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


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


class Tabular:
    """Base class of values whose `str` is a table: a short `repr`, and the table in notebooks.

    Example:
        >>> from nnopt_jax.columns import Tabular
        >>> class Pair(Tabular):
        ...     def summary(self):
        ...         return "2 rows"
        >>> Pair()
        Pair(2 rows)
    """

    def summary(self) -> str:
        """Return the settings and sizes that `repr` shows."""
        return ""

    def __repr__(self) -> str:
        """Return the class and the summary, in one line of at most 100 columns."""
        text = f"{type(self).__name__}({self.summary()})"
        return text if len(text) <= WIDTH else f"{text[: WIDTH - 4]}...)"

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return f"<pre>{html.escape(str(self))}</pre>"


WIDTH = 100
"""The columns of a terminal that a `repr` may take."""


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun.

    Args:
        count: the number.
        one: the noun.
        many: its plural; by default with an s.

    Example:
        >>> from nnopt_jax.columns import counted
        >>> counted(1, "leaf", "leaves"), counted(2, "use")
        ('1 leaf', '2 uses')
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def listed(axes: Iterable[int]) -> str:
    """Return the numbers of axes for a cell of a table; a dash for none.

    Example:
        >>> from nnopt_jax.columns import listed
        >>> listed((0, 2)), listed(())
        ('0,2', '-')
    """
    return ",".join(map(str, axes)) or "-"
