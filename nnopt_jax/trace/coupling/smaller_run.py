"""Execution of a program without the removed units."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from nnopt_jax.trace.abstract_walk import Location, live_steps, operands_needed, outputs_needed
from nnopt_jax.trace.control import CONTROL, Inside, is_inlined
from nnopt_jax.trace.coupling.coupling_domain import Coupling, Note
from nnopt_jax.trace.coupling.derivatives import DERIVED, Derived
from nnopt_jax.trace.coupling.labels import Labels
from nnopt_jax.trace.coupling.remains import Residue, same_axes
from nnopt_jax.trace.jaxpr import Equation, Program, bind, read
from nnopt_jax.trace.primitives import Kind, OpRule, Programs, factors_of
from nnopt_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Frame:
    """A program during its run: its values so far, and the steps that made them.

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
    """A step of a program during its run, with the analysis of the step and its operands.

    Args:
        frame: the program.
        number: the number of the step.
        equation: the step at full sizes.
        note: the result of its analysis.
        given: its operands without the removed units; None for operands that are not needed.
    """

    frame: Frame
    number: int
    equation: Equation
    note: Note
    given: list[Any]


Compute = Callable[[RunStep, list[Any], int], list[Any]]
"""A function that computes a step without inner programs, with size 1 on the given axis."""


def removed_values(compute: Compute, step: RunStep, operand: int, axis: int) -> Array:
    """Return the values of an operand at one removed element, an array of size 1 on the axis.

    Args:
        compute: a function that computes steps of the run.
        step: the step that takes the operand.
        operand: the number of the operand, whose values are equal for all removed units.
        axis: the axis on which units are removed.
    """
    value, x = step.note.ins[operand], step.given[operand]
    assert value is not None
    if len(value.axes[axis]) == 1:  # a broadcast axis, which does not lose elements
        return x
    left = value.remains_at(axis)
    if isinstance(left, Residue):
        return _recompute(compute, step.frame, step.equation.invars[operand], axis)
    shape = [1 if a == axis else size for a, size in enumerate(np.shape(x))]
    return jnp.full(shape, left, x.dtype)


def _recompute(compute: Compute, frame: Frame, variable: Any, axis: int) -> Array:
    """Recompute a variable at one removed element, by the step that made the variable."""
    # Inlined programs pass variables on: the step that made one is in another frame.
    if variable in frame.origins:
        return _recompute(compute, *frame.origins[variable], axis)
    step = frame.made[variable]
    which = step.equation.outvars.index(variable)
    assert step.note.rule is not None
    # Operands without the axis are the same for every unit.
    values = list(step.given)
    for operand, own in (same_axes(step.note.rule, which, axis) or {}).items():
        values[operand] = removed_values(compute, step, operand, own)
    return compute(step, values, axis)[which]


class SmallerRun:
    """An interpreter that runs programs without the removed units.

    Args:
        domain: the analysis of the programs at full sizes.
        removed: a function that returns for every label whether it is removed; called again after
            labels are added.
    """

    def __init__(self, domain: Coupling, removed: Callable[[], np.ndarray]) -> None:
        self.domain = domain
        self._removed_labels = removed
        self._gone = removed()
        self._kept: dict[int, tuple[Labels, np.ndarray | None]] = {}

    def run(self, program: Program, values: Sequence[Any], location: Location = ()) -> list[Any]:
        """Compute a program without the removed units.

        Args:
            program: the program as it was analyzed.
            values: its inputs, without the removed units.
            location: its location in the walk.
        """
        return self.run_frame(Frame(program, location), values, [True] * len(program.jaxpr.outvars))

    def run_frame(self, frame: Frame, values: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
        """Compute the wanted outputs of a program, and keep the values of all variables."""
        jaxpr, known, table = frame.program.jaxpr, frame.values, self.domain.table
        known.update(zip(jaxpr.constvars, frame.program.consts, strict=True))
        known.update(zip(jaxpr.invars, values, strict=True))
        for number, equation, needed in live_steps(frame.program, wanted, table).steps:
            note = self.domain.notes[*frame.location, number]
            given = [
                # Constants, for example, still have their full size.
                None if value is None else self.cut(read(known, x), value.axes)
                for x, value in zip(equation.invars, note.ins, strict=True)
            ]
            step = RunStep(frame, number, equation, note, given)
            programs = table.programs_of(equation)
            if programs is None:
                found = self._add_removed(step, self.compute(step, given))
            else:
                found = SmallerPrograms(self, step, programs, needed).compute()
            known.update(zip(equation.outvars, found, strict=True))
            frame.made.update(dict.fromkeys(equation.outvars, step))
        outputs = zip(jaxpr.outvars, wanted, strict=True)
        return [read(known, x) if want else None for x, want in outputs]

    def compute(self, step: RunStep, values: list[Any], single: int | None = None) -> list[Any]:
        """Compute a step without inner programs, on operands without the removed units.

        Args:
            step: the step.
            values: its operands at smaller sizes.
            single: an axis of the outcomes that has one element.
        """
        rule, equation, outs = step.note.rule, step.equation, step.note.outs
        assert rule is not None
        if rule.kind is Kind.MADE:
            # Positions and random bits depend on the full shape.
            found = bind(equation, values)
            return [self.cut(x, out.axes) for x, out in zip(found, outs, strict=True) if out]
        if _is_slice(rule):
            return [self._slice(rule, step, values[0])]
        shapes = [
            tuple(1 if axis == single else self._size(x) for axis, x in enumerate(out.axes))
            for out in outs if out is not None
        ]  # fmt: skip
        with contextlib.suppress(ValueError) if rule.is_identity else contextlib.nullcontext():
            return bind(rule.resized(equation, list(map(np.shape, values)), shapes), values)
        return values[: len(outs)]  # outside of `jit`, a sharding must divide the smaller sizes

    def _add_removed(self, step: RunStep, found: list[Any]) -> list[Any]:
        """Add the values at removed units to a sum, unless they are its neutral element."""
        rule = step.note.rule
        if rule is None or rule.kind is not Kind.REDUCTION or rule.neutral is None:
            return found
        (total,), value = found, step.note.ins[0]
        assert value is not None
        for axis, (labels, dim) in enumerate(zip(value.axes, rule.operands[0], strict=True)):
            count = len(labels) - self._size(labels)
            if (
                count
                and factors_of([dim]) <= rule.reduced
                and value.remains_at(axis) != rule.neutral
            ):
                (each,) = self.compute(step, [removed_values(self.compute, step, 0, axis)])
                # All removed units have the same content here, so one of them represents all.
                total = total + count * each
        return [total]

    def _slice(self, rule: OpRule, step: RunStep, x: Array) -> Array:
        """Compute a slice of an array without the removed units."""
        (value,) = step.note.ins
        assert value is not None
        for axis, (dim, labels) in enumerate(zip(rule.operands[0], value.axes, strict=True)):
            if rule.is_whole(dim, len(labels)):
                continue
            at, kept = dim[0].indices(rule.sizes).ravel(), self.kept_positions(labels)
            if kept is not None:
                at = np.flatnonzero(np.isin(kept, at))
            apart = np.unique(np.diff(at))
            if len(apart) > 1 or not at.size:
                x = jnp.take(x, at, axis)
            else:  # XLA fuses slices, but not `take`
                stride = int(apart[0]) if apart.size else 1
                x = lax.slice_in_dim(x, int(at[0]), int(at[-1]) + 1, stride, axis)
        return x

    def kept_positions(self, labels: Labels) -> np.ndarray | None:
        """Return the positions of an axis that remain; None if all do."""
        # Programs pass arrays of labels on unchanged, so a cache by identity finds most of them.
        if id(labels) not in self._kept:
            gone = self._gone[labels]
            self._kept[id(labels)] = labels, np.flatnonzero(~gone) if gone.any() else None
        return self._kept[id(labels)][1]

    def _size(self, labels: Labels) -> int:
        kept = self.kept_positions(labels)
        return len(labels) if kept is None else len(kept)

    def cut(self, x: Any, axes: Sequence[Labels]) -> Any:
        """Remove units from an array on the axes that still have their full size."""
        for axis, labels in enumerate(axes):
            kept = self.kept_positions(labels)
            # The step or program that made the array may have cut it already.
            if kept is not None and np.shape(x)[axis] == len(labels):
                x = jnp.take(x, kept, axis)
        return x

    def run_derived(self, find: Callable[[], tuple[Derived, ...]], number: int, values: Any) -> Any:
        """Compute a program of a derivative rule, after analyzing the rule if that is not done."""
        derived = find()[number]
        # The analysis of a rule adds labels, which the masks do not cover.
        if self.domain.sets.size != len(self._gone):
            self._gone = self._removed_labels()
            self._kept.clear()
        found = self.run(derived.program, values, derived.location)
        return [self.cut(x, value.axes) for x, value in zip(found, derived.outputs, strict=True)]


def _is_slice(rule: OpRule) -> bool:
    """Return whether a rule describes a slice with known positions on each axis."""
    if rule.kind is not Kind.MOVEMENT or len(rule.operands) != 1 or len(rule.outcomes) != 1:
        return False
    ours, theirs = rule.operands[0], rule.outcomes[0]
    if any(len(dim) != 1 or not isinstance(dim[0].start, int) for dim in (*ours, *theirs)):
        return False
    names = [dim[0].names for dim in ours]
    # With the same factors on each axis, only starts and strides may differ.
    return names == [dim[0].names for dim in theirs] and not all(
        rule.is_whole(dim, n) for dim, n in zip(ours, rule.operand_shapes[0], strict=True)
    )


@dataclasses.dataclass(frozen=True)
class SmallerPrograms(Inside):
    """An interpreter of a step's inner programs without the removed units.

    Args:
        running: the run.
        step: the step.
        programs: the inner programs of its equation.
        needed: whether each outcome is needed.
    """

    running: SmallerRun
    step: RunStep
    programs: Programs
    needed: Sequence[bool]

    def compute(self) -> list[Any]:
        """Compute the outcomes of a step that contains programs."""
        equation, table = self.step.equation, self.running.domain.table
        used = operands_needed(equation, self.needed, table)
        values = [x if use else None for x, use in zip(self.step.given, used, strict=True)]
        if equation.primitive in DERIVED and (find := self.step.note.derived):
            return DERIVED[equation.primitive](
                equation, values, lambda *given: self.run(self.programs.body.program, given)[0],
                lambda number, given: self.running.run_derived(find, number, given),
            )  # fmt: skip
        if equation.primitive in CONTROL:
            return CONTROL[equation.primitive](equation, values, self)[0]
        body = self.programs.body  # other primitives are calls of a single program
        found, _ = self.run(body.program, [values[i] for i in body.inputs])
        outs = dict(zip(body.outputs, found, strict=True))
        return [outs.get(number) for number in range(len(equation.outvars))]

    def run(self, program: Program, values: Sequence[Any], at: int = 0) -> tuple[list[Any], Any]:
        """Compute one inner program of the step without the removed units."""
        step, inner = self.step, self.programs.inner[at]
        wanted = [True] * len(program.jaxpr.outvars)
        if inner.outputs:
            table = self.running.domain.table
            wanted = outputs_needed(self.programs, inner, self.needed, table)
        frame, outer = Frame(program, (*step.frame.location, step.number, at)), step.frame
        if is_inlined(step.equation):  # its program takes all operands and returns all outcomes
            for own, x in zip(program.jaxpr.invars, step.equation.invars, strict=True):
                frame.origins[own] = outer, x
            for own, x in zip(program.jaxpr.outvars, step.equation.outvars, strict=True):
                outer.origins[x] = frame, own
        found = self.running.run_frame(frame, values, wanted)
        for number, outcome in enumerate(inner.outputs):
            if found[number] is not None and (value := step.note.outs[outcome]) is not None:
                # One iteration returns a stacked outcome without its first axis.
                axes = value.axes[1:] if outcome in self.programs.stacked else value.axes
                found[number] = self.running.cut(found[number], axes)
        return found, ()
