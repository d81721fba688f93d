"""Plain-text tables with aligned columns, and short representations of values."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax


def aligned(rows: Sequence[Sequence[str]], *, numbers: int = 0) -> list[str]:
    r"""Pad the cells of a table so that columns line up, and return its lines.

    Args:
        rows: the rows, all with the same number of cells.
        numbers: the number of columns at the end that are aligned to the right.

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
    """Base class of values with a short `repr`, and a table as `str` and in notebooks.

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
        """Return the class and the summary on one line of at most 100 columns."""
        return clipped(f"{type(self).__name__}({self.summary()})")

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return f"<pre>{html.escape(str(self))}</pre>"


WIDTH = 100
"""The greatest width of a `repr`, in columns of a terminal."""


def clipped(text: str, width: int = 0) -> str:
    """Return a text on one line, cut off if it is too wide.

    Args:
        text: the text, which ends with a closing parenthesis.
        width: the greatest number of columns; by default that of a terminal.

    Example:
        >>> from nnopt_jax.columns import clipped
        >>> clipped("Pair(first, second)", 15)
        'Pair(first,...)'
    """
    text, width = " ".join(text.split()), width or WIDTH
    return text if len(text) <= width else f"{text[: width - 4]}...)"


def brief(value: Any) -> str:
    """Return a short description of a value, without array entries or object addresses.

    Args:
        value: a setting, a function or a tree of arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.columns import brief
        >>> brief("2:4"), brief(0.1 + 0.2), brief(jnp.ones((2, 3))), brief({"w": jnp.ones(2)})
        ("'2:4'", '0.3', 'float32[2,3]', '1 array')
        >>> import numpy as np
        >>> brief(np.float16)
        'float16'
    """
    if isinstance(value, type):  # for NumPy's scalars, which have a dtype like arrays
        return value.__name__
    if isinstance(value, float):
        return f"{value:.6g}"
    if hasattr(value, "shape") and hasattr(value, "dtype") and not hasattr(value, "replace"):
        scalar = " ".join(str(value).split()) if value.shape == () else ""
        return (
            scalar if 0 < len(scalar) < 20 else f"{value.dtype}[{','.join(map(str, value.shape))}]"
        )
    if isinstance(value, Mapping | tuple | list):
        leaves = jax.tree.leaves(value)
        if any(hasattr(leaf, "shape") for leaf in leaves):
            return counted(len(leaves), "array")
        if isinstance(value, Mapping) and not leaves:
            return "{}"
        if type(value) in (tuple, list):
            inside = ", ".join(map(brief, value))
            return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    text = repr(value)
    if " at 0x" not in text:
        return text
    name, *within = getattr(value, "__qualname__", type(value).__name__).split(".<locals>")
    return f"{name}(...)" if within and "lambda" not in within[-1] else name.split(".")[-1]


def brief_fields(self: Any) -> str:
    """Return the class and short descriptions of its fields, as a `__repr__` for dataclasses.

    Args:
        self: a named tuple or a dataclass.

    Example:
        >>> import collections
        >>> from nnopt_jax.columns import brief_fields
        >>> brief_fields(collections.namedtuple("Pair", "first second")(1, None))
        'Pair(first=1)'
    """
    names = getattr(self, "_fields", None) or [field.name for field in dataclasses.fields(self)]
    given = [(name, getattr(self, name)) for name in names]
    texts = ((name, brief(value)) for name, value in given)
    fields = ", ".join(f"{name}={text}" for name, text in texts if text not in ("None", "''", "()"))
    return clipped(f"{type(self).__name__}({fields})")


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number and a noun, in the singular or plural.

    Args:
        count: the number.
        one: the noun.
        many: the plural; by default the noun with an s.

    Example:
        >>> from nnopt_jax.columns import counted
        >>> counted(1, "leaf", "leaves"), counted(2, "use")
        ('1 leaf', '2 uses')
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def listed(axes: Iterable[int]) -> str:
    """Return axis numbers as the text of a table cell; a dash for an empty list.

    Example:
        >>> from nnopt_jax.columns import listed
        >>> listed((0, 2)), listed(())
        ('0,2', '-')
    """
    return ",".join(map(str, axes)) or "-"
