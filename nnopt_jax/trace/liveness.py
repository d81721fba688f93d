"""Liveness: the steps of a program that its outputs depend on; XLA computes no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from nnopt_jax.trace.jaxpr import Equation, Program, is_variable
from nnopt_jax.trace.primitives import TABLE, Flow, Inner, Programs, Table


class Live(NamedTuple):
    """The live steps and inputs of a program.

    Args:
        steps: the number of each needed equation, the equation, and which outcomes are needed.
        inputs: which inputs are needed.
    """

    steps: list[tuple[int, Equation, list[bool]]]
    inputs: list[bool]


def live(program: Program, wanted: Sequence[bool], table: Table = TABLE) -> Live:
    """Find the steps and inputs that some outputs of a program depend on.

    Args:
        program: the program.
        wanted: for each output whether it is needed.
        table: the rules of the primitives.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> program = jax.make_jaxpr(lambda x, y: (jnp.sin(x), jnp.cos(y)))(1.0, 2.0)
        >>> found = live(program, [True, False])
        >>> [equation.primitive.name for _, equation, _ in found.steps], found.inputs
        (['sin'], [True, False])
    """
    jaxpr = program.jaxpr
    needed = {x for x, want in zip(jaxpr.outvars, wanted, strict=True) if want and is_variable(x)}
    steps = []
    for number in reversed(range(len(jaxpr.eqns))):
        equation = jaxpr.eqns[number]
        out = [x in needed for x in equation.outvars]
        if not any(out) and not equation.effects:
            continue
        steps.append((number, equation, out))
        used = zip(equation.invars, operands_needed(equation, out, table), strict=True)
        needed |= {x for x, use in used if use and is_variable(x)}
    return Live(steps[::-1], [x in needed for x in jaxpr.invars])


def operands_needed(equation: Equation, wanted: Sequence[bool], table: Table = TABLE) -> list[bool]:
    """Return for each operand of an equation whether the wanted outcomes depend on it.

    Args:
        equation: the equation.
        wanted: for each outcome whether it is needed.
        table: the rules of the primitives.
    """
    programs = table.programs_of(equation)
    if programs is None or programs.own_derivative:
        return [True] * len(equation.invars)
    used = [number in programs.chooses for number in range(len(equation.invars))]
    for inner in programs.inner:
        if not inner.outputs:  # the test of a loop
            mine = [True] * len(inner.inputs)
        else:
            mine = live(inner.program, outputs_needed(programs, inner, wanted, table), table).inputs
        for operand, use in zip(inner.inputs, mine, strict=True):
            used[operand] |= use
    return used


def outputs_needed(
    programs: Programs, inner: Inner, wanted: Sequence[bool], table: Table = TABLE
) -> list[bool]:
    """Return which outputs of an inner program are needed, later iterations of a loop included.

    Args:
        programs: the programs of the equation.
        inner: the program.
        wanted: for each outcome of the equation whether it is needed.
        table: the rules of the primitives.
    """
    if programs.own_derivative:
        return [True] * len(inner.outputs)
    found = [wanted[outcome] for outcome in inner.outputs]
    if programs.flow is not Flow.LOOP or programs.times is None:
        return [True] * len(found) if programs.flow is Flow.LOOP else found
    position: dict[Any, int] = {operand: at for at, operand in enumerate(inner.inputs)}
    while True:
        inputs = live(inner.program, found, table).inputs
        after = list(found)
        for operand, outcome in programs.carried:
            after[inner.outputs.index(outcome)] |= inputs[position[operand]]
        if after == found:
            return found
        found = after
