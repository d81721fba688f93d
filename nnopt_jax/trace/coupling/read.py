"""Reads a program: labels go through its steps, and meet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from nnopt_jax.trace.coupling.ghosts import FOLLOWED
from nnopt_jax.trace.coupling.labels import Book
from nnopt_jax.trace.coupling.reading import (
    Inside,
    NoRule,
    Reading,
    Reason,
    Step,
    made,
    shape_of,
    unknown,
)
from nnopt_jax.trace.coupling.rules import RULES
from nnopt_jax.trace.coupling.value import Left, Value
from nnopt_jax.trace.jaxpr import Equation, Program, is_variable


class Walk:
    """Reads programs into one book.

    Args:
        book: of labels.
        depth: how many derivative rules the program lies in.
        around: the steps it lies in, the outermost first.
    """

    def __init__(self, book: Book, depth: int = 0, around: Sequence[Equation] = ()) -> None:
        self.book = book
        self.depth = depth
        self.around = list(around)

    def reason(self, text: str) -> Reason:
        """Why the step that is read wants elements to stay."""
        return Reason(text, tuple(reversed(self.around)))

    def deeper(self) -> Walk:
        """For derivative rules."""
        return Walk(self.book, self.depth + 1, self.around)

    def program(self, program: Program, inputs: Sequence[Value], inline: bool = False) -> Reading:
        """Reads a program.

        Args:
            program: what was traced.
            inputs: what is known of each input.
            inline: whether it is known what made the inputs.
        """
        inputs = tuple(inputs if inline else map(_apart, inputs))
        consts = tuple(self._constant(x) for x in program.consts)
        known = dict(zip(program.jaxpr.constvars, consts, strict=True))
        known.update(zip(program.jaxpr.invars, inputs, strict=True))
        steps = []
        for equation in program.jaxpr.eqns:
            step = self._step(equation, [_operand(known, x) for x in equation.invars])
            known.update(zip(equation.outvars, step.outs, strict=True))
            steps.append(step)
        outputs = tuple(_operand(known, x) for x in program.jaxpr.outvars)
        if not inline:
            outputs = tuple(map(_apart, outputs))
        return Reading(program, inputs, consts, tuple(steps), outputs)

    def _step(self, equation: Equation, ins: list[Value]) -> Step:
        rule = RULES.get(equation.primitive)
        self.around.append(equation)
        try:
            if rule is None:
                raise NoRule(equation.primitive.name)
            found = rule.read(self, equation, ins)
        except NoRule as missing:
            found = self._whole(equation, ins, str(missing))
        finally:
            self.around.pop()
        if isinstance(found, Inside):
            outs, inner, lazy = found
        else:
            outs, inner, lazy = found, (), None
        if equation.primitive not in FOLLOWED:
            outs = [_apart(out) for out in outs]
        if any(x.parameter for x in ins) and all(map(_brings_no_units, ins)):
            outs = [self._of_parameters(out, ins) for out in outs]
        return Step(equation, tuple(ins), tuple(outs), inner, lazy)

    def _of_parameters(self, out: Value, ins: Sequence[Value]) -> Value:
        for labels in out.axes:
            self.book.derive(labels, (x for value in ins for x in value.axes))
        return out._replace(parameter=True)

    def _whole(self, equation: Equation, ins: list[Value], what: str) -> list[Value]:
        """What is not understood keeps all that it touches."""
        reason = self.reason(f"no rule for {what}")
        for value in ins:
            for labels in value.axes:
                self.book.fix(labels, reason)
        return [unknown(self.book, shape_of(out), reason) for out in equation.outvars]

    def _constant(self, x: Any) -> Value:
        """An array that the program brings: it is cut where what it meets is."""
        shape = np.shape(x)
        if isinstance(x, Tracer) or jnp.issubdtype(x.dtype, jax.dtypes.extended):
            value = made(self.book, shape)
            for labels in value.axes:
                self.book.order(labels)
            return value
        array = np.asarray(x)
        alike = array.size and bool((array == array.flat[0]).all())
        value = made(self.book, shape, constant=_number(array.flat[0]) if alike else None)
        for axis, labels in enumerate(value.axes):
            if not alike and (array != array.take([0], axis)).any():
                self.book.order(labels)
        return value


def _brings_no_units(value: Value) -> bool:
    return value.parameter or not value.axes or value.constant is not None


def _apart(value: Value) -> Value:
    """What is known of an array where it is not known what made it."""
    if Left.ALIKE not in value.left:
        return value
    left = tuple(Left.UNKNOWN if x is Left.ALIKE else x for x in value.left)
    return value._replace(left=left)


def _operand(known: dict[Any, Value], variable: Any) -> Value:
    if is_variable(variable):
        return known[variable]
    return Value((), (), _number(variable.val))


def _number(x: Any) -> float | None:
    x = np.asarray(x)
    if x.dtype.kind not in "biuf" and not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    return None if math.isnan(x) else float(x)
