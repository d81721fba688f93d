"""Runs a program and tells of each use of each leaf that is followed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from nnopt_jax.trace.control import CONTROL, Inside, Slices
from nnopt_jax.trace.jaxpr import Equation, Program, bind, primitives, read
from nnopt_jax.trace.statistics.meeting import Meeting, meeting
from nnopt_jax.trace.statistics.moves import moved_dims
from nnopt_jax.trace.statistics.view import Place, View, is_view
from nnopt_jax.typing import Array

Extras = dict[Any, Any]

_WITH_RULES = {primitives.custom_jvp_call_p, primitives.custom_vjp_call_p}


class Met(Protocol):
    """Is told of each use of a leaf; what it returns comes out of the program."""

    def __call__(
        self, view: View, equation: Equation, place: Place, rule: Place, what: Meeting | str
    ) -> Extras:
        """Of a leaf, the step, its place, and what the leaf meets there, or why nothing.

        `rule` is the place of the call with a derivative rule around it, if there is any.
        """
        ...


class Gathered(Protocol):
    """What a walk is for."""

    met: Met

    def nothing(self, place: Place) -> Extras:
        """Of all uses in a part of the program, what changes nothing when added."""
        ...

    def merge(self, one: Extras, other: Extras) -> Extras:
        """Adds up what was gathered twice."""
        ...

    def split(self, extras: Extras, depth: int) -> tuple[Extras, Extras]:
        """What belongs to the layers that the scan goes over, and what to all its steps."""
        ...


def walk(
    program: Program, values: Sequence[Any], what: Gathered, place: Place = (), rule: Place = ()
) -> tuple[list[Any], Extras]:
    """Computes a program.

    Args:
        program: what was traced.
        values: arrays and `View`s, one for each input.
        what: is told of uses.
        place: of the program.
        rule: place of the outermost call with a derivative rule of its own around it.

    Returns:
        The outputs, and what was gathered.
    """
    environment = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    environment.update(zip(program.jaxpr.invars, values, strict=True))
    extras: Extras = {}
    for number, equation in enumerate(program.jaxpr.eqns):
        given = [read(environment, variable) for variable in equation.invars]
        if any(is_view(value) for value in given):
            found, more = _Step(equation, what, (*place, number), rule).compute(given)
            extras |= more
        else:
            found = bind(equation, given)
        environment.update(zip(equation.outvars, found, strict=True))
    return [read(environment, variable) for variable in program.jaxpr.outvars], extras


@dataclasses.dataclass(frozen=True)
class _Step(Inside):
    """One step of a program."""

    equation: Equation
    what: Gathered
    place: Place
    rule: Place

    def compute(self, values: list[Any]) -> tuple[list[Any], Extras]:
        """Inner programs run; what is but moved goes on as a leaf; all else is a use."""
        handler = CONTROL.get(self.equation.primitive)
        if handler is not None:
            return handler(self.equation, values, self)
        views = {at: value for at, value in enumerate(values) if is_view(value)}
        if len(views) == 1:
            ((at, view),) = views.items()
            dims = moved_dims(self.equation, at, view)
            if dims is not None:
                return self._moved(values, at, dims), {}
        arrays = [x.at((*self.place, at)) if is_view(x) else x for at, x in enumerate(values)]
        out = bind(self.equation, arrays)
        extras: Extras = {}
        for at, view in views.items():
            met = meeting(self.equation, at, view, arrays, out[0])
            extras |= self.what.met(view, self.equation, (*self.place, at), self.rule, met)
        return out, extras

    def _moved(self, values: list[Any], at: int, dims: list[Any]) -> list[View]:
        def move(number: int, x: Array) -> Array:
            return bind(self.equation, [*values[:at], x, *values[at + 1 :]])[number]

        return [
            values[at].moved(lambda x, number=number: move(number, x), each)
            for number, each in enumerate(dims)
        ]

    def run(self, program: Program, values: Sequence[Any], at: int = 0) -> tuple[list[Any], Extras]:
        """Computes a program inside of the step; leaves may come out of it."""
        place = (*self.place, at)
        own = self.equation.primitive in _WITH_RULES
        return walk(program, values, self.what, place, self.rule or (self.place if own else ()))

    def run_dense(
        self, program: Program, values: Sequence[Any], at: int = 0
    ) -> tuple[list[Array], Extras]:
        """As `run`; that a leaf comes out is a use of it."""
        found, extras = self.run(program, values, at)
        return self._arrays(found, (*self.place, at, len(program.jaxpr.eqns))), extras

    def dense(self, values: Sequence[Any]) -> list[Array]:
        """Arrays that go into the step as they are, which is a use as well."""
        if self.equation.primitive in _WITH_RULES:  # its own rule has all that its inside has
            return [value.at(self.place) if is_view(value) else value for value in values]
        return self._arrays(values, (*self.place, -1))

    def _arrays(self, values: Sequence[Any], place: Place) -> list[Array]:
        reason = f"it is carried through {self.equation.primitive.name}"
        found = []
        for number, value in enumerate(values):
            if is_view(value):
                # Values may come one by one: the leaf's own number tells them apart.
                at = (*place, number, value.number)
                self.what.met(value, self.equation, at, self.rule, reason)
                value = value.at(at)
            found.append(value)
        return found

    def slices(self, value: Any) -> Slices:
        """Of a leaf its layers, of an array its entries: the scan cuts both."""
        if is_view(value) and len({factor.back for factor in value.dims[0]}) > 1:
            (value,) = self.dense([value])  # of an axis that runs both ways
        if not is_view(value):
            return Slices(value, lambda part, _: part)
        return Slices(value, lambda part, _: part.layer(len(self.place)))

    def nothing(self, at: int | None = None) -> Extras:
        """Of all uses inside of the step."""
        return self.what.nothing(self.place if at is None else (*self.place, at))

    def merge(self, one: Extras, other: Extras) -> Extras:
        """Adds up what was gathered twice."""
        return self.what.merge(one, other)

    def split(self, extras: Extras) -> tuple[Extras, Extras]:
        """What belongs to single layers, and what to all steps."""
        return self.what.split(extras, len(self.place))
