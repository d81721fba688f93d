"""What removed units would hold, where the model with zeros in their place counts it.

After a bias, say, the removed features of a layer normalization are all the same number, which is
not zero; a sum over features counts it as often as there are such features.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.trace.coupling.coupling_domain import Note
from nnopt_jax.trace.coupling.remains import followed
from nnopt_jax.trace.coupling.value import Left
from nnopt_jax.trace.jaxpr import Equation, Program
from nnopt_jax.typing import Array


class Frame(NamedTuple):
    """A program that runs: its values so far, and where its inputs came from.

    Args:
        program: the program.
        location: where it is.
        values: of its variables.
        made: the step that made each variable.
        origins: of inputs of inlined programs: the frame and the variable there.
        inner: frames of inlined programs, by the number of the step that holds them.
    """

    program: Program
    location: Location
    values: dict[Any, Any]
    made: dict[Any, RunStep]
    origins: dict[Any, tuple[Frame, Any]]
    inner: dict[int, Frame]


class RunStep(NamedTuple):
    """A step of a program that runs.

    Args:
        frame: the program.
        number: of the step.
        equation: the step at full sizes.
        note: what was found of it.
        given: its operands without the removed units; None where nothing needs them.
    """

    frame: Frame
    number: int
    equation: Equation
    note: Note
    given: list[Any]


class Running(Protocol):
    """What ghosts need of the run."""

    def compute(self, step: RunStep, values: list[Any], single: int | None = None) -> list[Any]:
        """Compute a step that holds no program; outcomes may have one element along an axis."""
        ...


class Ghosts(NamedTuple):
    """Computes what a variable holds at one removed element, backwards from where that counts.

    Args:
        running: the run.
    """

    running: Running

    def of(self, frame: Frame, variable: Any, axis: int) -> Array:
        """Return an array of the shape of a variable, of size 1 along the axis.

        Args:
            frame: the program of the variable.
            variable: what it would hold there is the same for all removed units.
            axis: where units are removed.
        """
        if variable in frame.origins:
            return self.of(*frame.origins[variable], axis)
        step = frame.made[variable]
        which = step.equation.outvars.index(variable)
        if step.number in frame.inner:
            inner = frame.inner[step.number]
            return self.of(inner, inner.program.jaxpr.outvars[which], axis)
        assert step.note.rule is not None
        values = list(step.given)
        for operand, own in (followed(step.note.rule, which, axis) or {}).items():
            values[operand] = self.operand(step, operand, own)
        return self.running.compute(step, values, axis)[which]

    def operand(self, step: RunStep, operand: int, axis: int) -> Array:
        """Likewise of an operand of a step, by its number."""
        value, x = step.note.ins[operand], step.given[operand]
        assert value is not None
        if len(value.axes[axis]) == 1:  # repeated along it
            return x
        left = value.remains(axis)
        if isinstance(left, Left):
            return self.of(step.frame, step.equation.invars[operand], axis)
        shape = list(np.shape(x))
        shape[axis] = 1
        return jnp.full(shape, left, x.dtype)
