"""Which arrays of a program hold the same values, because they are computed alike."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np

from nnopt_jax.trace.jaxpr import Equation, is_variable


class ValueNumbers:
    """Numbers for arrays: equal for the same array, and for outcomes of equal steps of equals.

    Model code casts or reshapes an activation anew for each product; the outcomes are one input.

    References:
        Cocke 1970, Global Common Subexpression Elimination (value numbering).
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._held: list[Any] = []  # an id is that of one array as long as the array lives

    def of(self, x: Any) -> int:
        """Return the number of an array."""
        key: Hashable = id(x)
        if (not isinstance(x, jax.Array) and hasattr(x, "__array__")) or isinstance(x, int | float):
            if np.ndim(x) == 0:
                key = "number", str(getattr(x, "dtype", type(x))), str(np.asarray(x))
        if isinstance(key, int) and key not in self._numbers:
            self._held.append(x)
        return self._numbers.setdefault(key, len(self._numbers))

    def add(self, equation: Equation, operands: Sequence[Any], outcomes: Sequence[Any]) -> None:
        """Take note of the outcomes of a step.

        Args:
            equation: the step.
            operands: what it takes.
            outcomes: what it gives.
        """
        settings = tuple(sorted(equation.params.items(), key=lambda item: item[0]))
        key = equation.primitive, settings, tuple(map(self.of, operands))
        try:
            hash(key)
        except TypeError:  # settings that cannot be compared: a step like no other
            return
        if equation.effects:
            return
        for at, x in enumerate(outcomes):
            number = self._numbers.setdefault((key, at), len(self._numbers))
            self._held.append(x)
            self._numbers[id(x)] = number


def output_numbers(program: Any) -> list[int]:
    """Number the outputs of a program: equal where they are computed alike.

    Args:
        program: what was traced.
    """
    numbers = ValueNumbers()
    for equation in program.jaxpr.eqns:
        operands = [x if is_variable(x) else x.val for x in equation.invars]
        numbers.add(equation, operands, equation.outvars)
    return [numbers.of(x if is_variable(x) else x.val) for x in program.jaxpr.outvars]
