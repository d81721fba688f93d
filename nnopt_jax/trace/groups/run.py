"""Runs a program without the removed units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from nnopt_jax.trace.groups.labels import Book, Labels
from nnopt_jax.trace.groups.reading import Reading, Step, as_traced, cut, resized, sizes
from nnopt_jax.trace.groups.rules import RULES
from nnopt_jax.trace.groups.value import Left
from nnopt_jax.trace.jaxpr import bind, primitives, read
from nnopt_jax.typing import Array


class Frame(NamedTuple):
    """A program that runs: its values so far, and where its inputs came from.

    Args:
        reading: the program.
        values: of its variables.
        steps: what made each variable.
        origins: of inputs of inlined programs: the frame and the variable there.
        inner: frames of inlined programs, by the step that holds them.
    """

    reading: Reading
    values: dict[Any, Any]
    steps: dict[Any, Step]
    origins: dict[Any, tuple[Frame, Any]]
    inner: dict[int, Frame]


class Running:
    """Computes readings at smaller sizes.

    Args:
        book: of the labels.
        removed: says of every label whether it goes; asked again when labels were added.
    """

    def __init__(self, book: Book, removed: Callable[[], np.ndarray]) -> None:
        self.book = book
        self._removed = removed
        self._gone = removed()
        self._kept: dict[int, tuple[Labels, np.ndarray | None]] = {}
        self._frame: Frame | None = None

    def kept(self, labels: Labels) -> np.ndarray | None:
        """Positions of an axis that are left; None for all."""
        # Arrays of labels go through programs as they are: few are looked at more than once.
        if id(labels) not in self._kept:
            gone = self._gone[labels]
            self._kept[id(labels)] = labels, np.flatnonzero(~gone) if gone.any() else None
        return self._kept[id(labels)][1]

    def late(self, step: Step) -> Any:
        """What a step makes on first use; it may hold new labels."""
        assert step.lazy is not None
        before = self.book.size
        found = step.lazy()
        if self.book.size != before or self.book.size != len(self._gone):
            self._gone = self._removed()
            self._kept.clear()
        return found

    def run(self, reading: Reading, values: Sequence[Any]) -> list[Any]:
        """Computes a program.

        Args:
            reading: the program, as it was read at full sizes.
            values: its inputs, without what is removed.
        """
        return self._run(Frame(reading, {}, {}, {}, {}), values)

    def inline(self, step: Step, values: Sequence[Any]) -> list[Any]:
        """Computes the one program of a step as if it were written there."""
        (reading,), frame = step.inner, self._frame
        assert frame is not None
        variables = reading.program.jaxpr.invars
        origins = dict(zip(variables, ((frame, x) for x in step.equation.invars), strict=True))
        inner = frame.inner[id(step)] = Frame(reading, {}, {}, origins, {})
        return self._run(inner, values)

    def _run(self, frame: Frame, values: Sequence[Any]) -> list[Any]:
        outside, self._frame = self._frame, frame
        reading, known = frame.reading, frame.values
        program = reading.program
        for variable, x, value in zip(
            program.jaxpr.constvars, program.consts, reading.consts, strict=True
        ):
            known[variable] = cut(x, value, self)
        known.update(zip(program.jaxpr.invars, values, strict=True))
        for step in reading.steps:
            self._frame = frame
            given = [read(known, variable) for variable in step.equation.invars]
            rule = RULES.get(step.equation.primitive)
            found = (as_traced if rule is None else rule.run)(step, given, self)
            known.update(zip(step.equation.outvars, found, strict=True))
            frame.steps.update(dict.fromkeys(step.equation.outvars, step))
        self._frame = outside
        return [read(known, variable) for variable in program.jaxpr.outvars]

    def ghost(self, variable: Any, axis: int) -> Array:
        """What a variable of the running program would hold at one removed element.

        Args:
            variable: an operand of the step that runs.
            axis: where units are removed.

        Returns:
            An array of the shape of the variable, of size 1 along the axis.
        """
        assert self._frame is not None
        return _Ghosts(self).of(self._frame, variable, axis)


class _Ghosts(NamedTuple):
    """Computes what removed units would hold, backwards from where that counts."""

    running: Running

    def of(self, frame: Frame, variable: Any, axis: int) -> Array:
        if variable in frame.origins:
            return self.of(*frame.origins[variable], axis)
        step = frame.steps[variable]
        return self._made(frame, step, step.equation.outvars.index(variable), axis)

    def _made(self, frame: Frame, step: Step, which: int, axis: int) -> Array:
        equation, out = step.equation, step.outs[which]
        primitive, k = equation.primitive, equation.params
        if primitive is primitives.jit_p:
            inner = frame.inner[id(step)]
            return self.of(inner, inner.reading.program.jaxpr.outvars[which], axis)
        if primitive is primitives.broadcast_in_dim_p:
            return self._repeated(frame, step, axis)
        if primitive is primitives.transpose_p:
            given = self._operand(frame, step, 0, k["permutation"][axis])
            return bind(equation, [given])[0]
        if primitive is primitives.squeeze_p:
            left = [x for x in range(len(step.ins[0].axes)) if x not in k["dimensions"]]
            return bind(equation, [self._operand(frame, step, 0, left[axis])])[0]
        if primitive is primitives.reduce_sum_p:
            left = [x for x in range(len(step.ins[0].axes)) if x not in k["axes"]]
            return bind(equation, [self._operand(frame, step, 0, left[axis])])[0]
        rank = len(out.axes)
        given = [
            self._operand(frame, step, at, axis)
            if len(value.axes) == rank
            else read(frame.values, equation.invars[at])
            for at, value in enumerate(step.ins)
        ]
        return bind(equation, given)[which]

    def _operand(self, frame: Frame, step: Step, at: int, axis: int) -> Array:
        variable, value = step.equation.invars[at], step.ins[at]
        x = read(frame.values, variable)
        if len(value.axes[axis]) == 1:  # repeated along it
            return x
        left = value.remains(axis)
        if isinstance(left, Left):
            return self.of(frame, variable, axis)
        return jnp.full_like(lax.slice_in_dim(x, 0, 1, 1, axis), left)

    def _repeated(self, frame: Frame, step: Step, axis: int) -> Array:
        (variable,), out = step.equation.invars, step.outs[0]
        targets = step.equation.params["broadcast_dimensions"]
        shape = list(sizes(out, self.running))
        shape[axis] = 1
        x = read(frame.values, variable)
        if axis in targets and len(step.ins[0].axes[targets.index(axis)]) != 1:
            x = self._operand(frame, step, 0, targets.index(axis))
        return resized(step, [x], self.running, shape=tuple(shape))[0]
