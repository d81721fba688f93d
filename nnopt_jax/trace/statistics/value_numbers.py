"""Value numbering: arrays of a program that hold the same values because of equal computations."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from nnopt_jax.trace.jaxpr import Equation, Program, is_variable


class ValueNumbers:
    """Value numbers of arrays: equal for the outcomes of equal steps with equal operands.

    Model code may cast or reshape an activation anew for each product; this finds that the
    products have the same input.

    References:
        Cocke 1970, Global Common Subexpression Elimination (value numbering).
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def new(self) -> int:
        """Return the number of an array that equals no other."""
        return self.of(object())

    def of(self, key: Hashable) -> int:
        """Return the number of the array that a key stands for."""
        return self._numbers.setdefault(key, len(self._numbers))

    def constant(self, x: Any) -> int:
        """Return the number of a constant of a program."""
        if np.ndim(x) == 0:
            return self.of((str(getattr(x, "dtype", type(x))), str(np.asarray(x))))
        return self.of(("constant", id(x)))

    def outcomes(self, equation: Equation, operands: Sequence[int]) -> list[int]:
        """Return the numbers of the outcomes of a step.

        Args:
            equation: the step.
            operands: the numbers of its operands.
        """
        settings = tuple(sorted(equation.params.items(), key=lambda item: item[0]))
        key: Hashable = equation.primitive, settings, tuple(operands)
        try:
            hash(key)
        except TypeError:  # settings that cannot be compared: the step equals no other
            key = object()
        if equation.effects:
            key = object()
        return [self.of((key, at)) for at, _ in enumerate(equation.outvars)]


def output_numbers(program: Program) -> list[int]:
    """Number the outputs of a program; outputs of equal computations get equal numbers.

    Args:
        program: the traced program.
    """
    numbers = ValueNumbers()
    known = {x: numbers.new() for x in (*program.jaxpr.constvars, *program.jaxpr.invars)}

    def read(x: Any) -> int:
        return known[x] if is_variable(x) else numbers.constant(x.val)

    for equation in program.jaxpr.eqns:
        found = numbers.outcomes(equation, [read(x) for x in equation.invars])
        known.update(zip(equation.outvars, found, strict=True))
    return [read(x) for x in program.jaxpr.outvars]
