"""The values at removed units, where the model with zeros in their place sums over them.

After a bias, for example, the removed features of a layer normalization all hold the same number,
which need not be zero; the sum over features includes it once for each of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.trace.coupling.coupling_domain import Note
from nnopt_jax.trace.coupling.remains import followed
from nnopt_jax.trace.coupling.value import Left
from nnopt_jax.trace.jaxpr import Equation, Program
from nnopt_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Frame:
    """A running program: its values so far, and the steps that made them.

    Args:
        program: the program.
        location: its location in the walk.
        values: the values of its variables.
        made: the step that made each variable.
        origins: for inputs and outcomes of inlined programs, the frame and variable that each is
            equal to.
    """

    program: Program
    location: Location
    values: dict[Any, Any] = dataclasses.field(default_factory=dict)
    made: dict[Any, RunStep] = dataclasses.field(default_factory=dict)
    origins: dict[Any, tuple[Frame, Any]] = dataclasses.field(default_factory=dict)


class RunStep(NamedTuple):
    """A step of a running program.

    Args:
        frame: the program.
        number: the number of the step.
        equation: the step at full sizes.
        note: the result of its analysis.
        given: its operands without the removed units; None where nothing needs them.
    """

    frame: Frame
    number: int
    equation: Equation
    note: Note
    given: list[Any]


Compute = Callable[[RunStep, list[Any], int], list[Any]]
"""A function that computes a step without inner programs, with one element on the given axis."""


def ghost(compute: Compute, step: RunStep, operand: int, axis: int) -> Array:
    """Return the values of an operand at one removed element: an array of size 1 on the axis.

    Args:
        compute: computes steps of the run.
        step: the step that takes the operand.
        operand: the number of the operand; it holds the same for all removed units.
        axis: the axis on which units are removed.
    """
    value, x = step.note.ins[operand], step.given[operand]
    assert value is not None
    if len(value.axes[axis]) == 1:  # a broadcast axis, which loses no element
        return x
    left = value.remains(axis)
    if isinstance(left, Left):
        return _made(compute, step.frame, step.equation.invars[operand], axis)
    shape = [1 if a == axis else size for a, size in enumerate(np.shape(x))]
    return jnp.full(shape, left, x.dtype)


def _made(compute: Compute, frame: Frame, variable: Any, axis: int) -> Array:
    """Return the values of a variable at one removed element, from the step that made it."""
    if variable in frame.origins:
        return _made(compute, *frame.origins[variable], axis)
    step = frame.made[variable]
    which = step.equation.outvars.index(variable)
    assert step.note.rule is not None
    values = list(step.given)
    for operand, own in (followed(step.note.rule, which, axis) or {}).items():
        values[operand] = ghost(compute, step, operand, own)
    return compute(step, values, axis)[which]
