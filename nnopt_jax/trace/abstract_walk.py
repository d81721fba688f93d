"""Abstract interpretation: a walk through a program that propagates an analysis's values.

Control flow is handled here, once for all analyses. An analysis is a `Domain`: it defines the
abstract value of an array, how two values are joined, and the outcomes of one step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from nnopt_jax.trace.jaxpr import Equation, Program, is_variable
from nnopt_jax.trace.primitives import TABLE, Flow, Inner, MeshCut, OpRule, Programs, Table


class Live(NamedTuple):
    """The steps and inputs of a program that its needed outputs depend on.

    Args:
        steps: the number of each needed equation, the equation, and which outcomes are needed.
        inputs: which inputs are needed.
    """

    steps: list[tuple[int, Equation, list[bool]]]
    inputs: list[bool]


def live_steps(program: Program, wanted: Sequence[bool], table: Table = TABLE) -> Live:
    """Find the steps and inputs that some outputs of a program depend on.

    Args:
        program: the program.
        wanted: for each output whether it is needed.
        table: the rules of the primitives.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> program = jax.make_jaxpr(lambda x, y: (jnp.sin(x), jnp.cos(y)))(1.0, 2.0)
        >>> found = live_steps(program, [True, False])
        >>> [equation.primitive.name for _, equation, _ in found.steps], found.inputs
        (['sin'], [True, False])
    """
    jaxpr = program.jaxpr
    needed = {x for x, want in zip(jaxpr.outvars, wanted, strict=True) if want and is_variable(x)}
    steps = []
    # Backwards: a step is needed if a later needed step takes one of its outcomes.
    for number in reversed(range(len(jaxpr.eqns))):
        equation = jaxpr.eqns[number]
        out = [x in needed for x in equation.outvars]
        # Effects, such as debug prints, happen even if no outcome is needed.
        if not any(out) and not equation.effects:
            continue
        steps.append((number, equation, out))
        used = zip(equation.invars, operands_needed(equation, out, table), strict=True)
        needed |= {x for x, use in used if use and is_variable(x)}
    return Live(steps[::-1], [x in needed for x in jaxpr.invars])


def operands_needed(equation: Equation, wanted: Sequence[bool], table: Table = TABLE) -> list[bool]:
    """Return for each operand of an equation whether any wanted outcome depends on it.

    Args:
        equation: the equation.
        wanted: for each outcome whether it is needed.
        table: the rules of the primitives.
    """
    programs = table.programs_of(equation)
    # A custom derivative rule may use operands that the program itself does not use.
    if programs is None or programs.own_derivative:
        return [True] * len(equation.invars)
    used = [number in programs.chooses for number in range(len(equation.invars))]
    for inner in programs.inner:
        if not inner.outputs:  # the test of a loop
            mine = [True] * len(inner.inputs)
        else:
            outputs = outputs_needed(programs, inner, wanted, table)
            mine = live_steps(inner.program, outputs, table).inputs
        for operand, use in zip(inner.inputs, mine, strict=True):
            used[operand] |= use
    return used


def outputs_needed(
    programs: Programs, inner: Inner, wanted: Sequence[bool], table: Table = TABLE
) -> list[bool]:
    """Return which outputs of an inner program are needed, also by later iterations of a loop.

    Args:
        programs: the programs of the equation.
        inner: the program.
        wanted: for each outcome of the equation whether it is needed.
        table: the rules of the primitives.
    """
    if programs.own_derivative:
        return [True] * len(inner.outputs)
    found = [wanted[outcome] for outcome in inner.outputs]
    # The test of a `while` may depend on every part of the carry.
    if programs.flow is not Flow.LOOP or programs.times is None:
        return [True] * len(found) if programs.flow is Flow.LOOP else found
    # An output that a needed input of the next iteration takes is needed, too, and so on.
    position: dict[Any, int] = {operand: at for at, operand in enumerate(inner.inputs)}
    while True:
        inputs = live_steps(inner.program, found, table).inputs
        after = list(found)
        for operand, outcome in programs.carried:
            after[inner.outputs.index(outcome)] |= inputs[position[operand]]
        if after == found:
            return found
        found = after


Value = TypeVar("Value")

Values = Sequence[Any]
"""The abstract values of several arrays; None for dead arrays, which are not needed."""

Location = tuple[int, ...]
"""The path to a step: numbers of equations and inner programs in turn, outermost first."""


@dataclasses.dataclass(frozen=True)
class Site:
    """The location of a step or of an inner program, with the equations that enclose it.

    Args:
        location: the location, which is the same in every walk of the program.
        around: the equations that enclose the step, from the outermost to the step itself.
        times: the number of times that it runs, as far as lengths of loops are known.
    """

    location: Location = ()
    around: tuple[Equation, ...] = ()
    times: int = 1

    def step(self, number: int, equation: Equation) -> Site:
        """Return the site of an equation of the program at this site."""
        return Site((*self.location, number), (*self.around, equation), self.times)

    def inner(self, number: int, times: int = 1) -> Site:
        """Return the site of an inner program of this step, which runs `times` times."""
        return Site((*self.location, number), self.around, self.times * times)


class Domain(Protocol[Value]):
    """An analysis: the abstract values of arrays, and rules for steps, loops and branches.

    By default, layers, stacks and shards of an array have the value of the array, a loop stops when
    values are equal, and values enter and leave inner programs unchanged.
    """

    def constant(self, x: Any) -> Value:
        """Return the abstract value of a constant of the program."""
        ...

    def join(self, one: Value, other: Value) -> Value:
        """Return the abstract value of an array that is one or the other of two arrays."""
        ...

    def is_same(self, one: Value, other: Value) -> bool:
        """Return whether two values are equal, so that the walk of a loop is at its fixed point."""
        return one == other

    def layer(self, value: Value, site: Site) -> Value:
        """Return the abstract value of one slice of an array along its first axis."""
        return value

    def stack(self, value: Value, times: int, site: Site) -> Value:
        """Return the abstract value of `times` arrays that are stacked on a new first axis."""
        return value

    def part(self, value: Value, cut: MeshCut, mesh: Any, site: Site) -> Value:
        """Return the abstract value of one device's shard of an array."""
        return value

    def whole(self, value: Value, cut: MeshCut, mesh: Any, site: Site) -> Value:
        """Return the abstract value of a sharded array from that of its shards."""
        return value

    def enter(self, programs: Programs, values: Values, site: Site) -> Values:
        """Return the operands' values for a step's inner programs; None for dead arrays."""
        return values

    def leave(self, programs: Programs, values: Values, outcomes: Values, site: Site) -> Values:
        """Return the outcomes' values after the walk of a step's inner programs; None if dead."""
        return outcomes

    def step(self, equation: Equation, rule: OpRule, values: Values, site: Site) -> Sequence[Value]:
        """Return the abstract values of the outcomes of a step without inner programs."""
        ...


@dataclasses.dataclass(frozen=True)
class Walk(Generic[Value]):
    """An interpreter that runs an analysis on programs.

    Args:
        domain: the analysis.
        table: the rules of the primitives.

    Example:
        See `nnopt_jax.trace.axis_analysis`, whose domain is a hundred lines.
    """

    domain: Domain[Value]
    table: Table = TABLE

    def run(
        self, program: Program, inputs: Sequence[Value], wanted: Sequence[bool] | None = None,
        site: Site = Site(),
    ) -> list[Value]:  # fmt: skip
        """Return the abstract values of the outputs of a program.

        Args:
            program: the traced program.
            inputs: a value for each input; None is allowed for inputs that are not needed.
            wanted: for each output whether it is needed; steps that no needed output depends on are
                skipped. None for all.
            site: the site of the program.
        """
        jaxpr = program.jaxpr
        known: dict[Any, Any] = dict(
            zip(jaxpr.constvars, map(self.domain.constant, program.consts), strict=True)
        )
        known.update(zip(jaxpr.invars, inputs, strict=True))
        wanted = [True] * len(jaxpr.outvars) if wanted is None else wanted
        # Dead steps are skipped: they would count as uses, or fix and couple axes.
        for number, equation, needed in live_steps(program, wanted, self.table).steps:
            values = [self._read(known, x) for x in equation.invars]
            found = self._step(equation, values, needed, site.step(number, equation))
            known.update(zip(equation.outvars, found, strict=True))
        return [self._read(known, x) for x in jaxpr.outvars]

    def _read(self, known: dict[Any, Any], x: Any) -> Any:
        return known.get(x) if is_variable(x) else self.domain.constant(x.val)

    def _step(
        self, equation: Equation, values: Values, needed: list[bool], site: Site
    ) -> Sequence[Any]:
        programs = self.table.programs_of(equation)
        if programs is None:
            return self.domain.step(equation, self.table.rule_of(equation), values, site)
        walk = {Flow.LOOP: self._loop, Flow.BRANCH: self._branch, Flow.CALL: self._call}
        # A domain may change operands before the walk, such as those it does not follow inside.
        entered = list(self.domain.enter(programs, values, site))
        found = walk[programs.flow](programs, entered, needed, site)
        return self.domain.leave(programs, values, found, site)

    def _branch(
        self, programs: Programs, values: Values, needed: list[bool], site: Site
    ) -> list[Any]:
        each = [
            self._inner(programs, inner, values, needed, site.inner(number))
            for number, inner in enumerate(programs.inner)
        ]
        return [self._join(outs) for outs in zip(*each, strict=True)]

    def _inner(
        self, programs: Programs, inner: Inner, values: Values, needed: list[bool], site: Site
    ) -> list[Any]:
        """Walk one inner program of an equation, and return the equation's outcomes."""
        wanted = outputs_needed(programs, inner, needed, self.table)
        found = self.run(inner.program, [values[i] for i in inner.inputs], wanted, site)
        outs: list[Any] = [None] * len(needed)
        for outcome, value in zip(inner.outputs, found, strict=True):
            outs[outcome] = value
        return outs

    def _call(
        self, programs: Programs, values: Values, needed: list[bool], site: Site
    ) -> list[Any]:
        if programs.mesh is None:
            return self._inner(programs, programs.body, values, needed, site.inner(0))
        domain, mesh = self.domain, programs.mesh
        parts = [
            value if value is None else domain.part(value, cut, mesh, site)
            for value, cut in zip(values, programs.operand_cuts, strict=True)
        ]
        # Every device runs the program once.
        found = self._inner(programs, programs.body, parts, needed, site.inner(0, mesh.size))
        return [
            value if value is None else domain.whole(value, cut, mesh, site)
            for value, cut in zip(found, programs.outcome_cuts, strict=True)
        ]

    def _loop(
        self, programs: Programs, values: Values, needed: list[bool], site: Site
    ) -> list[Any]:
        """Walk the body of a loop until the values of the carry no longer change."""
        domain = self.domain
        given = list(values)
        for operand in programs.sliced:
            if given[operand] is not None:
                given[operand] = domain.layer(given[operand], site)
        # The body is the last inner program; a `while` has its test before it.
        at = len(programs.inner) - 1
        turns = site.inner(at, programs.times or 1)
        while True:
            outs = self._inner(programs, programs.body, given, needed, turns)
            stable = True
            for operand, outcome in programs.carried:
                before, out = given[operand], outs[outcome]
                # `join` only widens a value, so that the iteration ends.
                after = self._join([before, out])
                stable &= before is after or (
                    before is not None and after is not None and domain.is_same(before, after)
                )
                given[operand] = after
            if stable:
                break
        # The test is walked last, on values that hold in every iteration.
        for number, test in enumerate(programs.inner[:-1]):
            self.run(test.program, [given[i] for i in test.inputs], None, site.inner(number))
        for operand, outcome in programs.carried:
            # A loop may run zero times, so its result may also be the initial carry.
            outs[outcome] = given[operand]
        for outcome in programs.stacked:
            if outs[outcome] is not None:
                outs[outcome] = domain.stack(outs[outcome], programs.times or 1, site)
        return outs

    def _join(self, values: Values) -> Any:
        """Join the values of live arrays; return None if all arrays are dead."""
        first, *others = [value for value in values if value is not None] or [None]
        for other in others:
            first = self.domain.join(first, other)
        return first
