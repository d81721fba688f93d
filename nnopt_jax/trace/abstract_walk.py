"""The abstract walk: values of an analysis go through a program; nothing is computed.

Control flow is written once, here. An analysis is a `Domain`: what it knows of an array, how two
are joined, and what one step makes of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from nnopt_jax.trace.jaxpr import Equation, Program, is_variable
from nnopt_jax.trace.liveness import live, outputs_needed
from nnopt_jax.trace.primitives import TABLE, Flow, Inner, MeshCut, Programs, Rule, Table

Value = TypeVar("Value")

Location = tuple[int, ...]
"""Where a step is: numbers of equations, and of programs inside of them, from the outermost."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A step of a program.

    Args:
        location: where it is; the same however often its program is walked.
        around: the equations that it lies in, the outermost first, and itself.
        times: how often it runs, as far as lengths of loops are known.
    """

    location: Location = ()
    around: tuple[Equation, ...] = ()
    times: int = 1

    def step(self, number: int, equation: Equation) -> Site:
        """Return the site of an equation of the program that this site is of."""
        return Site((*self.location, number), (*self.around, equation), self.times)

    def inner(self, number: int, times: int = 1) -> Site:
        """The site of a program inside of this step, which runs so many times."""
        return Site((*self.location, number), self.around, self.times * times)


class Domain(Protocol[Value]):
    """What an analysis knows of arrays, and how it goes through steps.

    A class that names it as its base inherits what the plainest do: layers, stacks and parts of an
    array are as the array, a loop stops when values are equal, and nothing happens where inner
    programs begin and end.
    """

    def constant(self, x: Any) -> Value:
        """Of a number or an array that the program brings."""
        ...

    def join(self, one: Value, other: Value) -> Value:
        """Of an array that is one of two."""
        ...

    def same(self, one: Value, other: Value) -> bool:
        """Whether a loop may stop: another turn would find nothing new."""
        return one == other

    def layer(self, value: Value, site: Site) -> Value:
        """Of one entry along the first axis."""
        return value

    def stack(self, value: Value, times: int, site: Site) -> Value:
        """Of as many entries along a new first axis."""
        return value

    def part(self, value: Value, cut: MeshCut, mesh: Any, site: Site) -> Value:
        """Of what one device has of an array that a mesh cuts."""
        return value

    def whole(self, value: Value, cut: MeshCut, mesh: Any, site: Site) -> Value:
        """Of the array whose parts devices have."""
        return value

    def enter(
        self, programs: Programs, values: Sequence[Value | None], site: Site
    ) -> Sequence[Value | None]:
        """Of the operands of a step, as its programs take them; None where it is not known."""
        return values

    def leave(
        self,
        programs: Programs,
        values: Sequence[Value | None],
        outcomes: Sequence[Value | None],
        site: Site,
    ) -> Sequence[Value | None]:
        """Of the outcomes of a step whose programs have been walked; dead arrays are None."""
        return outcomes

    def step(
        self, equation: Equation, rule: Rule, values: list[Value], site: Site
    ) -> Sequence[Value]:
        """Of the outcomes of a step that holds no program."""
        ...


@dataclasses.dataclass(frozen=True)
class Walk(Generic[Value]):
    """Takes an analysis through programs.

    Args:
        domain: the analysis.
        table: where primitives are described.

    Example:
        See `nnopt_jax.trace.axes`, whose domain is a hundred lines.
    """

    domain: Domain[Value]
    table: Table = TABLE

    def run(
        self,
        program: Program,
        inputs: Sequence[Value],
        wanted: Sequence[bool] | None = None,
        site: Site = Site(),
    ) -> list[Value]:
        """Return the values of the outputs.

        Args:
            program: what was traced.
            inputs: a value for each input; inputs that nothing needs may be None.
            wanted: for each output whether it is needed; steps that no wanted output depends on
                are left out. None for all.
            site: where the program is.
        """
        jaxpr = program.jaxpr
        known: dict[Any, Any] = dict(
            zip(jaxpr.constvars, map(self.domain.constant, program.consts), strict=True)
        )
        known.update(zip(jaxpr.invars, inputs, strict=True))
        wanted = [True] * len(jaxpr.outvars) if wanted is None else wanted
        for number, equation, needed in live(program, wanted, self.table).steps:
            values = [self._read(known, x) for x in equation.invars]
            found = self._step(equation, values, needed, site.step(number, equation))
            known.update(zip(equation.outvars, found, strict=True))
        return [self._read(known, x) for x in jaxpr.outvars]

    def _read(self, known: dict[Any, Any], x: Any) -> Any:
        return known.get(x) if is_variable(x) else self.domain.constant(x.val)

    def _step(
        self, equation: Equation, values: list[Any], needed: list[bool], site: Site
    ) -> Sequence[Any]:
        programs = self.table.programs_of(equation)
        if programs is None:
            return self.domain.step(equation, self.table.rule_of(equation), values, site)
        walk = {Flow.LOOP: self._loop, Flow.BRANCH: self._branch, Flow.CALL: self._call}
        entered = list(self.domain.enter(programs, values, site))
        found = walk[programs.flow](programs, entered, needed, site)
        return self.domain.leave(programs, values, found, site)

    def _branch(
        self, programs: Programs, values: list[Any], needed: list[bool], site: Site
    ) -> list[Any]:
        each = [
            self._inner(programs, inner, values, needed, site.inner(number))
            for number, inner in enumerate(programs.inner)
        ]
        return [self._joined(outs) for outs in zip(*each, strict=True)]

    def _inner(
        self,
        programs: Programs,
        inner: Inner,
        values: Sequence[Any],
        needed: list[bool],
        site: Site,
    ) -> list[Any]:
        """The outcomes of the equation that one of its programs gives."""
        wanted = outputs_needed(programs, inner, needed, self.table)
        found = self.run(inner.program, [values[i] for i in inner.inputs], wanted, site)
        outs: list[Any] = [None] * len(needed)
        for outcome, value in zip(inner.outputs, found, strict=True):
            outs[outcome] = value
        return outs

    def _call(
        self, programs: Programs, values: list[Any], needed: list[bool], site: Site
    ) -> list[Any]:
        if programs.mesh is None:
            return self._inner(programs, programs.body, values, needed, site.inner(0))
        domain, mesh = self.domain, programs.mesh
        parts = [
            value if value is None else domain.part(value, cut, mesh, site)
            for value, cut in zip(values, programs.operand_cuts, strict=True)
        ]
        found = self._inner(programs, programs.body, parts, needed, site.inner(0, mesh.size))
        return [
            value if value is None else domain.whole(value, cut, mesh, site)
            for value, cut in zip(found, programs.outcome_cuts, strict=True)
        ]

    def _loop(
        self, programs: Programs, values: list[Any], needed: list[bool], site: Site
    ) -> list[Any]:
        """Walk the body until what is known of the carry holds in every turn."""
        domain = self.domain
        given = list(values)
        for operand in programs.sliced:
            if given[operand] is not None:
                given[operand] = domain.layer(given[operand], site)
        at = len(programs.inner) - 1
        turns = site.inner(at, programs.times or 1)
        while True:
            outs = self._inner(programs, programs.body, given, needed, turns)
            settled = True
            for operand, outcome in programs.carried:
                before, out = given[operand], outs[outcome]
                after = self._joined([before, out])
                settled &= before is after or (
                    before is not None and after is not None and domain.same(before, after)
                )
                given[operand] = after
            if settled:
                break
        for number, test in enumerate(programs.inner[:-1]):
            self.run(test.program, [given[i] for i in test.inputs], None, site.inner(number))
        for operand, outcome in programs.carried:
            outs[outcome] = given[operand]
        for outcome in programs.stacked:
            if outs[outcome] is not None:
                outs[outcome] = domain.stack(outs[outcome], programs.times or 1, site)
        return outs

    def _joined(self, values: Sequence[Any]) -> Any:
        """Of an array that is one of several; of dead ones nothing is known."""
        first, *others = [value for value in values if value is not None] or [None]
        for other in others:
            first = self.domain.join(first, other)
        return first
