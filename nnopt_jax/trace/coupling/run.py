"""Runs a program without the removed units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nnopt_jax.trace.coupling.ghosts import Frame, Ghosts
from nnopt_jax.trace.coupling.labels import Book, Labels
from nnopt_jax.trace.coupling.reading import Reading, Step, as_traced, cut
from nnopt_jax.trace.coupling.rules import RULES
from nnopt_jax.trace.jaxpr import read
from nnopt_jax.typing import Array


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

    def ghost(self, step: Step, operand: int, axis: int) -> Array:
        """What an operand of the step that runs would hold at one removed element.

        Args:
            step: the step.
            operand: its number.
            axis: where units are removed.

        Returns:
            An array of the shape of the operand, of size 1 along the axis.
        """
        assert self._frame is not None
        return Ghosts(self).operand(self._frame, step, operand, axis)
