"""The steps of a program that its outcome depends on; XLA computes no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from nnopt_jax.trace.jaxpr import Equation, Program, closed, is_variable, primitives, scanned
from nnopt_jax.trace.probed import shard_map_p

CALLS: dict[Any, str] = {
    primitives.jit_p: "jaxpr",
    primitives.remat_p: "jaxpr",
    primitives.closed_call_p: "call_jaxpr",
    primitives.call_p: "call_jaxpr",
    primitives.custom_jvp_call_p: "call_jaxpr",
    primitives.custom_vjp_call_p: "call_jaxpr",
    shard_map_p: "jaxpr",
}
"""Steps that run one program of the same inputs and outputs, and the setting that holds it."""


class Live(NamedTuple):
    """What is needed of a program.

    Args:
        steps: the equations in order, and which of their outputs are needed.
        inputs: which inputs are.
    """

    steps: list[tuple[Equation, list[bool]]]
    inputs: list[bool]


def live(program: Program, wanted: Sequence[bool]) -> Live:
    """Finds what some outputs of a program depend on.

    Args:
        program: any.
        wanted: for each output whether it is needed.
    """
    jaxpr = program.jaxpr
    needed = {x for x, want in zip(jaxpr.outvars, wanted, strict=True) if want and is_variable(x)}
    steps = []
    for equation in reversed(jaxpr.eqns):
        out = [x in needed for x in equation.outvars]
        if not any(out) and not equation.effects:
            continue
        steps.append((equation, out))
        used = zip(equation.invars, _inputs(equation, out), strict=True)
        needed |= {x for x, use in used if use and is_variable(x)}
    return Live(steps[::-1], [x in needed for x in jaxpr.invars])


def called(equation: Equation) -> Program:
    """The program that one of `CALLS` runs."""
    return closed(equation.params[CALLS[equation.primitive]])


def _inputs(equation: Equation, wanted: Sequence[bool]) -> list[bool]:
    if equation.primitive in CALLS:
        return live(called(equation), wanted).inputs
    if equation.primitive is primitives.scan_p:
        return live(closed(equation.params["jaxpr"]), over_steps(equation, wanted)).inputs
    if equation.primitive is primitives.cond_p:
        each = [live(closed(b), wanted).inputs for b in equation.params["branches"]]
        return [True, *(any(uses) for uses in zip(*each, strict=True))]
    return [True] * len(equation.invars)


def over_steps(equation: Equation, wanted: Sequence[bool]) -> list[bool]:
    """Which outputs of the body of a scan are needed, in its last step or for a later one."""
    consts, count = scanned(equation)
    body, wanted = closed(equation.params["jaxpr"]), list(wanted)
    while True:
        carried = live(body, wanted).inputs[consts : consts + count]
        after = [a or b for a, b in zip(wanted, carried, strict=False)] + wanted[count:]
        if after == wanted:
            return wanted
        wanted = after
