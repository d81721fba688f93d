"""Formatting of numbers for people: three digits and a unit."""

from __future__ import annotations

_UNITS = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))


def amount(number: float) -> str:
    """Format a number with three digits and a unit.

    Example:
        >>> from nnopt_jax.trace.cost.amounts import amount
        >>> [amount(n) for n in (0, 999, 1234, 999_999, 4_089_184_256)]
        ['0', '999', '1.23 k', '1.00 M', '4.09 G']
    """
    for size, unit in _UNITS:
        if number >= 0.9995 * size:
            return digits(number / size) + unit
    return digits(number) if number % 1 else str(int(number))


def digits(number: float) -> str:
    """Format a number with three significant digits.

    Example:
        >>> from nnopt_jax.trace.cost.amounts import digits
        >>> [digits(n) for n in (0.01234, 2.0, 123.4)]
        ['0.0123', '2.00', '123']
    """
    return f"{number:#.3g}".rstrip(".")
