"""Runs a program, follows parameters through it, and reports each use of a parameter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.trace.control import CONTROL, Inside, Slices
from nnopt_jax.trace.jaxpr import Equation, Program, bind, primitives, read
from nnopt_jax.trace.primitives import Rule, Table
from nnopt_jax.trace.statistics.followed_array import FollowedArray, LeafPart, is_followed
from nnopt_jax.trace.statistics.leaf_movement import CutAcrossError, moved_parts, moves
from nnopt_jax.trace.statistics.product_use import ProductStep, ProductUse

Extras = dict[Any, Any]

_WITH_RULES = {primitives.custom_jvp_call_p, primitives.custom_vjp_call_p}
_CALLS = {primitives.jit_p, primitives.remat_p, *_WITH_RULES}
"""Steps whose inner program runs whenever they do."""


class UsedAt(NamedTuple):
    """Where a leaf is used.

    Args:
        equation: the step.
        location: of the operand.
        rule: location of the outermost call with a derivative rule around it; empty without one.
        scope: location of the innermost loop or branch around it: all in it runs equally often.
    """

    equation: Equation
    location: Location
    rule: Location
    scope: Location


class UseReader(Protocol):
    """What a walk is for."""

    @property
    def table(self) -> Table:
        """Where primitives are described."""
        ...

    def use(self, part: LeafPart, at: UsedAt, use: ProductUse | str, arrays: Sequence[Any]) -> Any:
        """Return what one use adds to what is gathered.

        Args:
            part: the leaf as it lies there.
            at: where.
            use: what the leaf is multiplied with, or why nothing can be measured.
            arrays: the operands of the step.
        """
        ...

    def computed(
        self, equation: Equation, operands: Sequence[Any], outcomes: Sequence[Any]
    ) -> None:
        """Is called after a step in which no leaf takes part."""
        ...

    def nothing(self, location: Location) -> Extras:
        """Of all uses in a part of the program, what changes nothing when added."""
        ...

    def merge(self, one: Extras, other: Extras) -> Extras:
        """Adds up what was gathered twice."""
        ...

    def split(self, extras: Extras, depth: int) -> tuple[Extras, Extras]:
        """What belongs to the layers that the scan goes over, and what to all its steps."""
        ...


class _Around(NamedTuple):
    """Where a program is: its location, and the `rule` and `scope` of `UsedAt`."""

    location: Location = ()
    rule: Location = ()
    scope: Location = ()


_TOP = _Around()


def walk_leaves(
    program: Program, values: Sequence[Any], reader: UseReader, around: _Around = _TOP
) -> tuple[list[Any], Extras]:
    """Compute a program.

    Args:
        program: what was traced.
        values: arrays and `FollowedArray`s, one for each input.
        reader: hears of uses.
        around: where the program is.

    Returns:
        What comes out, and what was gathered.
    """
    environment = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    environment.update(zip(program.jaxpr.invars, values, strict=True))
    extras: Extras = {}
    for number, equation in enumerate(program.jaxpr.eqns):
        given = [read(environment, variable) for variable in equation.invars]
        if any(is_followed(value) for value in given):
            here = around._replace(location=(*around.location, number))
            found, more = _LeafStep(equation, reader, here).compute(given)
            extras |= more
        else:
            found = bind(equation, given)
            reader.computed(equation, given, found)
        environment.update(zip(equation.outvars, found, strict=True))
    return [read(environment, variable) for variable in program.jaxpr.outvars], extras


@dataclasses.dataclass(frozen=True)
class _LeafStep(Inside):
    """One step of a program."""

    equation: Equation
    reader: UseReader
    around: _Around

    def compute(self, values: list[Any]) -> tuple[list[Any], Extras]:
        """Inner programs run; leaves that are moved go on as such; all else is a use."""
        handler = CONTROL.get(self.equation.primitive)
        if handler is not None:
            return handler(self.equation, values, self)
        rule = self.reader.table.rule_of(self.equation)
        held: list[list[LeafPart]] = [[] for _ in self.equation.outvars]
        reasons: dict[int, str] = {}
        for at, value in enumerate(values):
            if not is_followed(value):
                continue
            if not moves(self.equation, rule, at):
                reasons[at] = ""
                continue
            try:
                found = moved_parts(self.equation, rule, at, value.parts)
            except CutAcrossError as error:
                reasons[at] = str(error)
            else:
                for parts, more in zip(held, found, strict=True):
                    parts += more
        used = {at: values[at] for at in reasons}
        arrays = [
            value.at(self._operand(at)) if at in used else value for at, value in enumerate(values)
        ]
        out = self._outcomes(arrays, held)
        extras: Extras = {}
        for at, value in used.items():
            extras |= self._uses(rule, at, value.parts, reasons[at], arrays, out[0])
        return out, extras

    def _operand(self, at: int) -> Location:
        return (*self.around.location, at)

    def _outcomes(self, values: list[Any], held: list[list[LeafPart]]) -> list[Any]:
        """The outcomes, followed where they hold a leaf, with a copy for each later use."""
        moved = [value for value in values if is_followed(value)]
        plain = bind(self.equation, [x.x if is_followed(x) else x for x in values])
        keys = dict.fromkeys(key for value in moved for key in value.copies)
        copies = {
            key: bind(self.equation, [x.at(key) if is_followed(x) else x for x in values])
            for key in keys
        }
        return [
            FollowedArray(x, {key: copy[at] for key, copy in copies.items()}, tuple(parts))
            if parts
            else x
            for at, (x, parts) in enumerate(zip(plain, held, strict=True))
        ]

    def _uses(
        self, rule: Rule, at: int, parts: Sequence[LeafPart], reason: str, arrays: list[Any],
        out: Any,
    ) -> Extras:  # fmt: skip
        arrays = [x.x if is_followed(x) else x for x in arrays]
        out = out.x if is_followed(out) else out
        extras: Extras = {}
        for number, part in enumerate(parts):
            use = reason or ProductStep(self.equation, rule, at, part, arrays, out).read()
            extras |= self._report(part, (*self._operand(at), number), use, arrays)
        return extras

    def _report(
        self, part: LeafPart, location: Location, use: ProductUse | str, arrays: Sequence[Any]
    ) -> Extras:
        at = UsedAt(self.equation, location, self.around.rule, self.around.scope)
        return self.reader.use(part, at, use, arrays)

    def run(self, program: Program, values: Sequence[Any], at: int = 0) -> tuple[list[Any], Extras]:
        """Computes a program inside of the step; leaves may come out of it."""
        location, (own, rule, scope) = self._operand(at), self.around
        rule = rule or (own if self.equation.primitive in _WITH_RULES else ())
        scope = scope if self.equation.primitive in _CALLS else location
        return walk_leaves(program, values, self.reader, _Around(location, rule, scope))

    def run_dense(
        self, program: Program, values: Sequence[Any], at: int = 0
    ) -> tuple[list[Any], Extras]:
        """As `run`; that a leaf comes out is a use of it."""
        found, extras = self.run(program, values, at)
        return self._arrays(found, (*self._operand(at), len(program.jaxpr.eqns))), extras

    def dense(self, values: Sequence[Any]) -> list[Any]:
        """Arrays that go into the step as they are, which is a use as well."""
        if self.equation.primitive in _WITH_RULES:  # its own rule has all that its inside has
            own = self.around.location
            return [value.at(own) if is_followed(value) else value for value in values]
        return self._arrays(values, self._operand(-1))

    def _arrays(self, values: Sequence[Any], place: Location) -> list[Any]:
        reason = f"it is carried through {self.equation.primitive.name}"
        found = []
        for number, value in enumerate(values):
            if is_followed(value):
                # Values may come one by one: the numbers of their leaves distinguish them.
                at = (*place, number, *(part.number for part in value.parts))
                for which, part in enumerate(value.parts):
                    self._report(part, (*at, which), reason, ())
                value = value.at(at)
            found.append(value)
        return found

    def slices(self, value: Any) -> Slices:
        """Of a leaf its layers, of an array its entries: the scan cuts both."""
        if not is_followed(value):
            return Slices(value, lambda part, _: part)
        length = value.x.shape[0]
        whole = all(
            part.axes[0].count == length if part.axes[0].is_constant else not part.axes[0].repeats
            for part in value.parts
        )
        if not whole:
            return Slices(self.dense([value])[0], lambda part, _: part)
        depth = len(self.around.location)
        return Slices(value, lambda part, _: part.layer(depth, length))

    def nothing(self, at: int | None = None) -> Extras:
        """Of all uses inside of the step."""
        return self.reader.nothing(self.around.location if at is None else self._operand(at))

    def merge(self, one: Extras, other: Extras) -> Extras:
        """Adds up what was gathered twice."""
        return self.reader.merge(one, other)

    def split(self, extras: Extras) -> tuple[Extras, Extras]:
        """What belongs to single layers, and what to all steps."""
        return self.reader.split(extras, len(self.around.location))
